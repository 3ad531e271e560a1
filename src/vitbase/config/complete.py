"""The configuration of a run, completed once: what is unset follows from facts gathered before.

Pure functions: the same options and facts give the same configuration on every rank.
"""

from __future__ import annotations

import dataclasses

from vitbase.config.adapt import adapt, as_begun
from vitbase.config.batch import BatchLayout, PeakRate, batch_layout, peak_rate
from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess
from vitbase.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run beside its options.

    Attributes:
      weights: what images must become for the weights that a new run starts from, if it does.
      saved: the complete configuration of the run that is to be continued, if there is one.
      global_batch: of that run, as its newest checkpoint has it.
      num_train_images: how many there are, where they have been counted.
      num_classes: what they are filed under, where that is known.
    """

    weights: Preprocess | None = None
    saved: Config | None = None
    global_batch: int | None = None
    num_train_images: int | None = None
    num_classes: int | None = None

    def counted(self, num_train_images: int, num_classes: int) -> Facts:
        """Return these facts, and what the opened data has told."""
        return dataclasses.replace(self, num_train_images=num_train_images, num_classes=num_classes)


@dataclasses.dataclass(frozen=True)
class Completed:
    """A configuration that alone repeats the run, on any number of devices that can share it.

    Attributes:
      notes: lines for the log, about what a recipe says of other images than these.
    """

    config: Config
    layout: BatchLayout
    rate: PeakRate
    notes: tuple[str, ...] = ()


def complete(config: Config, facts: Facts, num_ranks: int) -> Completed:
    """Say what follows from the options, the facts, and the number of ranks at the first start.

    What is unset is as the run to be continued has it (its weights need not be there any more),
    or as the weights need it, or a default. What is a recipe's, and nobody's own, fits the number
    of images.

    Raises: ConfigError if the ranks cannot share the global batch evenly.
    """
    saved = facts.saved
    preprocess = config.data.preprocess_after(saved.data.preprocess if saved else facts.weights)
    notes: tuple[str, ...] = ()
    if saved is not None:
        config = as_begun(config, saved)
    elif facts.num_train_images is not None:
        config, notes = adapt(
            config, facts.num_train_images, config.data.num_classes or facts.num_classes, num_ranks
        )
    if facts.global_batch is not None and config.data.global_batch in (None, facts.global_batch):
        config = config.derive(global_batch=facts.global_batch, accumulation_steps=None)
    layout = batch_layout(config, num_ranks)
    rate = peak_rate(config, layout.global_batch)
    classes = saved.data.num_classes if saved else facts.num_classes
    fixed = config.with_preprocess(preprocess).derive(
        frozen_views=_frozen_views(config, saved),
        num_classes=config.data.num_classes or classes,
        pre_trained=config.starts_from_weights,
        global_batch=layout.global_batch,
        accumulation_steps=None,
        lr_init=rate.lr,
        lr_by_global_batch=(),
    )
    return Completed(fixed, layout, rate, notes)


def _frozen_views(config: Config, saved: Config | None) -> int | None:
    """Return how many views of an image a frozen backbone sees before training; 0: sees them all.

    A run that began before there was a choice keeps None, which is 0.

    Raises: ConfigError if images are to be mixed, of which features say nothing.
    """
    views = config.model.frozen_views
    if not config.model.freeze_backbone:
        return views
    if views is None:
        views = saved.model.frozen_views if saved else int(not config.augment.mixes)
    elif views and config.augment.mixes:
        raise ConfigError(
            f"MixUp and CutMix mix images, and frozen_views {views} trains on features: give "
            f"--frozen_views 0, or --mixup_alpha 0 --cutmix_alpha 0."
        )
    return views
