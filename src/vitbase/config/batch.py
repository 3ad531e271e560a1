"""How many images an update takes, how they are dealt out, and the learning rate that goes with it.

The global batch belongs to the run: it is fixed at the first start, and kept on any number of
devices. No torch here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vitbase.config.config import Config
from vitbase.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the images of an update are dealt out: the product of the other three is the first."""

    global_batch: int
    num_ranks: int
    accumulation_steps: int
    batch_size: int

    def describe(self) -> str:
        """Return the product that makes the global batch."""
        devices = f" x {self.num_ranks} devices" if self.num_ranks > 1 else ""
        passes = f" x accumulation {self.accumulation_steps}" if self.accumulation_steps > 1 else ""
        return f"batch_size {self.batch_size}{devices}{passes}"


def batch_layout(config: Config, num_ranks: int) -> BatchLayout:
    """Deal out the images of an update.

    Without ``global_batch``, it is batch_size x num_ranks x accumulation_steps. With it, each rank
    has its even share, in as few equal forward passes of at most ``batch_size`` as there can be.

    Raises: ConfigError if the ranks cannot have equal shares; or if images are mixed in pairs and
      a forward pass would have an odd number of them.
    """
    asked, size = config.data.global_batch, config.data.batch_size
    passes = config.optimizer.accumulation_steps
    if asked is None:
        passes = passes or 1
        layout = BatchLayout(size * num_ranks * passes, num_ranks, passes, size)
    else:
        share = _even_share(config, asked, num_ranks)
        if passes is not None:
            if share % passes:
                raise ConfigError(
                    f"global_batch {asked} gives each of {num_ranks} devices {share} images, which "
                    f"accumulation_steps {passes} does not divide. Leave out --accumulation_steps."
                )
        else:
            passes = math.ceil(share / size)
            even = 2 if config.augment.mixes else 1
            while share % passes or (share // passes) % even:
                passes += 1
                if passes > share:
                    break
        layout = BatchLayout(asked, num_ranks, passes, share // passes)
    if config.augment.mixes and (layout.batch_size % 2 or layout.batch_size == 0):
        raise ConfigError(
            f"MixUp and CutMix mix images in pairs, but a forward pass has {layout.batch_size} "
            f"({layout.describe()} = {layout.global_batch}). Give an even --batch_size."
        )
    return layout


def _even_share(config: Config, global_batch: int, num_ranks: int) -> int:
    unit = num_ranks * (2 if config.augment.mixes else 1)
    if global_batch % unit:
        pairs = ", mixed in pairs," if config.augment.mixes else ""
        near = max(1, round(global_batch / unit)) * unit
        raise ConfigError(
            f"The {global_batch} images of an update (global_batch) cannot be dealt evenly{pairs} "
            f"to {num_ranks} devices. Use a number of devices that divides it, or start a new run "
            f"with --global_batch {near}."
        )
    return global_batch // num_ranks


@dataclasses.dataclass(frozen=True)
class PeakRate:
    """The learning rate after warm-up, and the rule that gave it."""

    lr: float
    rule: str


def peak_rate(config: Config, global_batch: int) -> PeakRate:
    """Return the peak learning rate of a run, which depends on its global batch alone.

    A given ``lr_init`` is used as it is. Else the pair of ``lr_by_global_batch`` for this batch, or
    the one nearest to it (by ratio), scaled: in proportion to the batch for Momentum, to its root
    for optimizers that divide by the gradient's size.

    Source: Goyal et al. (arXiv 1706.02677) for the first, Malladi et al. (arXiv 2205.10287) for
      the second.
    """
    options = config.optimizer
    pairs = options.lr_by_global_batch
    if not pairs:
        return PeakRate(options.lr_init, f"lr_init, {_says_lr_init(config)}")
    batch, lr = min(pairs, key=lambda pair: abs(math.log(pair[0] / global_batch)))
    if batch == global_batch:
        return PeakRate(lr, f"lr_by_global_batch at {batch} images a step")
    scaling = scaling_of(config)
    ratio = global_batch / batch
    factor = ratio if scaling == "linear" else math.sqrt(ratio)
    root = "" if scaling == "linear" else "the root of "
    return PeakRate(
        lr * factor,
        f"{scaling} scaling: {lr:g} at {batch} images a step, times {root}{global_batch} / {batch}",
    )


def _says_lr_init(config: Config) -> str:
    origin = config.origin
    if origin is None or "lr_init" in origin.given:
        return "as given"
    own = origin.base.optimizer.lr_init == config.optimizer.lr_init
    return f"of recipe {origin.recipe}" if own else "fitted to the images"


def scaling_of(config: Config) -> Literal["linear", "sqrt"]:
    """Return how the learning rate follows the batch."""
    options = config.optimizer
    return options.lr_scaling or ("linear" if options.optimizer == "momentum" else "sqrt")
