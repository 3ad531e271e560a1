"""A recipe made for one data set, fitted to another of a different size. No torch here.

Only what is the recipe's changes: an option that somebody has set stays as it is, and so does every
option of a configuration that is a file of somebody's own.
"""

from __future__ import annotations

import math
from typing import Any

from vitbase.config.batch import batch_layout, peak_rate, scaling_of
from vitbase.config.config import OF_THE_IMAGES, Config, Origin

_STEPS_OF_AN_EPOCH = 32
"""An epoch has at least as many updates: with fewer, a run of a recipe's epochs learns little."""

_SMALLEST_BATCH = 8
"""Images of an update that a smaller data set does not make fewer."""

_ALIKE = 1.05
"""Numbers of images that differ by less are those of one data set."""

_FEW = 0.25
"""The share of a recipe's images below which features of a frozen backbone are computed once."""

_EVALUATIONS = 10
"""Of a run on features, whose epochs take less time than to store their result."""

_BY_CLASSES = 0.75
"""Exponent of the number of classes in the rate of a head: of fewer classes, each gradient is
larger. Measured on photographs of clothing, of 4 and of 10 classes, against published 1000."""

_BATCH = {"global_batch", "batch_size", "accumulation_steps"}
_LENGTH = {"epoch_size", "total_steps"}
_WARMUP = {"warmup_epochs", "warmup_steps"}
_FITTED = ("global_batch", "lr_init", "lr_by_global_batch", *_LENGTH, *_WARMUP, "ema_decay")
_FITTED += ("frozen_views", "eval_every_epochs")


def as_begun(config: Config, saved: Config) -> Config:
    """Give options that were fitted to a run's images, and are nobody's own, the run's values.

    Args:
      config: what is asked for.
      saved: the complete configuration of the run that is to be continued.
    """
    origin = config.origin
    if origin is None:
        return config
    fitted = saved.data.num_train_images != origin.base.data.num_train_images
    options = {*OF_THE_IMAGES, *(_FITTED if fitted else ())} - origin.given
    return config.derive(**{option: saved.value(option) for option in options})


def adapt(
    config: Config, num_images: int, num_classes: int | None, num_ranks: int
) -> tuple[Config, tuple[str, ...]]:
    """Fit a recipe to the number of training images.

    The batch leaves an epoch of a smaller data set 32 updates, and the learning rate follows it by
    the recipe's rule. Such a run has the recipe's epochs, also where the recipe counts updates; one
    of a larger data set has its updates. Warm-up and the average of the weights keep their share of
    the run. Where the backbone is frozen and images are few, features are computed once, and the
    rate follows the number of classes, too.

    Args:
      config: what is asked for.
      num_images: that there are.
      num_classes: of theirs, where it is known.
      num_ranks: that share an update.
    Returns: the configuration, and in words what was changed.
    Raises: ConfigError as `batch_layout`.
    """
    origin = config.origin
    if origin is None:
        return config, ()
    made_for = origin.base.data.num_train_images
    if made_for is not None and 1 / _ALIKE < num_images / made_for < _ALIKE:
        return config, ()
    before = batch_layout(config, num_ranks).global_batch
    batch = before
    if not _BATCH & origin.given:
        batch = min(before, _largest_batch(config, num_images, num_ranks, made_for is not None))
    changes: dict[str, Any] = {"global_batch": batch} if batch != before else {}
    if not {"lr_init", "lr_by_global_batch"} & origin.given:
        changes["lr_init"] = config.optimizer.lr_init * _rate_factor(config, batch / before)
    if made_for is not None:
        usual = batch_layout(origin.base, num_ranks).global_batch
        changes |= _length(config, origin, num_images / made_for, batch / usual, made_for // usual)
        few = num_images < _FEW * made_for and config.model.freeze_backbone
        if few and "frozen_views" not in origin.given and not config.augment.mixes:
            changes["frozen_views"] = 1
        if changes.get("frozen_views", config.model.frozen_views):
            changes |= _on_features(config, origin, batch, num_classes, changes)
    changes = {option: value for option, value in changes.items() if value != config.value(option)}
    if not changes:
        return config, ()
    adapted = config.derive(**changes, num_train_images=num_images)
    rates = peak_rate(config, before).lr, peak_rate(adapted, batch).lr
    shown = {
        option: (value, config.value(option))
        for option, value in changes.items()
        if option not in {"lr_init", "lr_by_global_batch"}
    }
    if batch != before:
        shown["global_batch"] = (batch, before)
    if rates[0] != rates[1]:
        shown["lr_init"] = (rates[1], rates[0])
    words = [
        f"{option} {after:.4g}" + ("" if was is None else f" instead of {was:.4g}")
        for option, (after, was) in shown.items()
    ]
    made = f"was made for {made_for:,} images" if made_for else "has larger batches"
    return adapted, (
        f"Recipe {origin.recipe} {made}. For these {num_images:,}: {', '.join(words)}. Options "
        f"that are given stay as they are.",
    )


def _largest_batch(config: Config, num_images: int, num_ranks: int, of_a_data_set: bool) -> int:
    """Return the largest batch for so many images: for each rank a power of two."""
    most = num_images
    if of_a_data_set:
        most = min(most, max(num_images // _STEPS_OF_AN_EPOCH, _SMALLEST_BATCH))
    unit = num_ranks * (2 if config.augment.mixes else 1)
    return int(unit * 2 ** int(math.log2(max(most // unit, 1))))


def _rate_factor(config: Config, batches: float) -> float:
    """Return what a rate becomes with the batch, where no list of pairs says it."""
    if config.optimizer.lr_by_global_batch:
        return 1.0
    return batches if scaling_of(config) == "linear" else math.sqrt(batches)


def _on_features(
    config: Config, origin: Origin, batch: int, num_classes: int | None, changes: dict[str, Any]
) -> dict[str, Any]:
    """Return what else is fitted where a head learns on features that are computed once."""
    more: dict[str, Any] = {}
    usual = origin.base.data.num_classes
    rate = peak_rate(config.derive(**changes), batch).lr
    if usual and num_classes and not {"lr_init", "lr_by_global_batch"} & origin.given:
        more["lr_init"] = rate * min(1.0, num_classes / usual) ** _BY_CLASSES
        more["lr_by_global_batch"] = ()
    if "eval_every_epochs" not in origin.given:
        epochs = changes.get("epoch_size", config.schedule.epoch_size)
        more["eval_every_epochs"] = max(1, epochs // _EVALUATIONS)
    return more


def _length(
    config: Config, origin: Origin, images: float, batches: float, steps_of_an_epoch: int
) -> dict[str, Any]:
    """Return how long a run is, and what of it depends on that.

    Args:
      images, batches: the run's training images and batch, as multiples of the recipe's.
      steps_of_an_epoch: of the recipe, on the images it was made for.
    """
    base, asked, given = origin.base.schedule, config.schedule, origin.given
    changes: dict[str, Any] = {}
    epochs, total = asked.epoch_size, asked.total_steps
    if not _LENGTH & given:
        if total is None and images > 1:
            changes["epoch_size"] = epochs = max(1, round(epochs / images))
        elif total is not None and images < 1:
            changes["total_steps"] = total = max(2, round(total * images / batches))
    usual = base.total_steps or base.epoch_size * steps_of_an_epoch
    share = (total or epochs * steps_of_an_epoch * images / batches) / usual
    if not _WARMUP & given:
        if base.warmup_steps is not None and asked.warmup_steps is not None:
            changes["warmup_steps"] = min(asked.warmup_steps, int(base.warmup_steps * share))
        elif epochs != asked.epoch_size:
            changes["warmup_epochs"] = round(asked.warmup_epochs * epochs / asked.epoch_size, 4)
    decay = config.optimizer.ema_decay
    if decay is not None and "ema_decay" not in given and share < 1:
        changes["ema_decay"] = round(max(0.01, 1 - (1 - decay) / share), 6)
    return changes
