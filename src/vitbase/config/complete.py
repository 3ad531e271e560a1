"""The configuration of a run, completed once: what is unset follows from facts gathered before.

Pure functions: the same options and facts give the same configuration on every rank.
"""

from __future__ import annotations

import dataclasses

from vitbase.config.batch import BatchLayout, PeakRate, batch_layout, peak_rate
from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run before its data is opened.

    Attributes:
      weights: what images must become for the weights that a new run starts from, if it does.
      saved: the complete configuration of the run that is to be continued, if there is one.
      global_batch: of that run, as its newest checkpoint has it.
    """

    weights: Preprocess | None = None
    saved: Config | None = None
    global_batch: int | None = None


@dataclasses.dataclass(frozen=True)
class Completed:
    """A configuration that alone repeats the run, on any number of devices that can share it."""

    config: Config
    layout: BatchLayout
    rate: PeakRate


def complete(config: Config, facts: Facts, num_ranks: int) -> Completed:
    """Say what follows from the options, the facts, and the number of ranks at the first start.

    What is unset is as the run to be continued has it (its weights need not be there any more),
    or as the weights need it, or a default.

    Raises: ConfigError if the ranks cannot share the global batch evenly.
    """
    saved = facts.saved
    preprocess = config.data.preprocess_after(saved.data.preprocess if saved else facts.weights)
    if facts.global_batch is not None and config.data.global_batch in (None, facts.global_batch):
        config = config.replace(global_batch=facts.global_batch, accumulation_steps=None)
    layout = batch_layout(config, num_ranks)
    rate = peak_rate(config, layout.global_batch)
    fixed = config.with_preprocess(preprocess).replace(
        num_classes=config.data.num_classes or (saved.data.num_classes if saved else None),
        pre_trained=config.starts_from_weights,
        global_batch=layout.global_batch,
        accumulation_steps=None,
        lr_init=rate.lr,
        lr_by_global_batch=(),
    )
    return Completed(fixed, layout, rate)


def complete_from_data(config: Config, class_names: tuple[str, ...]) -> Config:
    """Add what only the opened data can tell: how many classes there are, if nobody said it."""
    return config.replace(num_classes=config.data.num_classes or len(class_names))
