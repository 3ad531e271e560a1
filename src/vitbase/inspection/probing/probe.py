"""Weights -> how good their features are for some images, before anything is trained.

The features are those that `vitbase train linear_probe` trains a head on, found in the same place
if they were computed before, and the held-out images are those that a run would hold out.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.config.config import Config, load_config
from vitbase.errors import ConfigError, WeightsError
from vitbase.evaluation.features import FeatureStore, Views
from vitbase.inspection.probing.images import check_counts, find_readable, open_images
from vitbase.inspection.probing.knn import classify_by_neighbours
from vitbase.inspection.probing.logistic import fit_logistic
from vitbase.inspection.probing.shots import measure_shots
from vitbase.inspection.probing.squares import fit_squares
from vitbase.inspection.probing.table import Probe, Probed
from vitbase.runtime import Runtime, local_runtime
from vitbase.sources.open import TrainVal
from vitbase.weights.load import LoadedModel, load_opened, open_weights

OPTIONS = (
    *("data_path", "val_data_path", "layout", "holdout_fraction", "max_bad_images"),
    *("batch_size", "num_workers", "num_heads", "device_target", "precision", "seed"),
)
"""Options of a run that a probe has, too."""
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of a probe.

    Attributes:
      config: of the images and the device.
      shots: images of each class, for few-shot accuracy; None: 5 and 10, where there are as many.
      neighbours: that vote; None: 20, or all images, if they are fewer.
      draws: of few-shot images.
      max_images: of training, and of evaluation; None: all.
      image_size: (height, width) that the weights are resampled to; None: theirs.
    """

    config: Config
    shots: tuple[int, ...] | None = None
    neighbours: int | None = None
    draws: int = 5
    max_images: int | None = None
    image_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, **options: Any) -> Plan:
        """Check the options of :func:`probe`. Raises: ConfigError naming the wrong one."""
        own = {name: options.pop(name) for name in _OWN if name in options}
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise ConfigError(f"Unknown option '{unknown[0]}'.")
        config = load_config("finetune", **{"batch_size": _BATCH, **options})
        if own.get("shots") is not None:
            own["shots"] = tuple(sorted(set(own["shots"])))
        plan = cls(config, **own)
        for name, least in (("shots", 1), ("neighbours", 1), ("draws", 1), ("max_images", 2)):
            value = getattr(plan, name)
            if value is None:
                continue
            if min(value if isinstance(value, tuple) else (value,), default=0) < least:
                raise ConfigError(f"Option '{name}' should be at least {least}.")
        return plan


_OWN = tuple(field.name for field in dataclasses.fields(Plan))[1:]


def probe(
    weights: str | Path | Sequence[str | Path],
    data_path: str | Path,
    *,
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Probe:
    """Measure how good the features of weights are for some images: kNN, linear and few-shot.

    No weights are trained: classifiers are solved for. Features are kept in the cache folder, where
    a later call and `vitbase train linear_probe` find them.

    Args:
      weights: anything `checkpoint_path` takes, one or several; they need no head.
      data_path: the images, as in training; "embedded" for those of the package.
      tell: gets a line about what is remarkable.
      **options: fields of :class:`Plan`, and of a run: val_data_path, layout, holdout_fraction,
        max_bad_images, batch_size, num_workers, num_heads, device_target, precision and seed.
    Returns: the numbers, which show themselves as a table.
    Raises: WeightsError or CheckpointError for weights that do not open, DataError for the images,
      ConfigError for options that are wrong, or ask for more images than there are.
    """
    given = [weights] if isinstance(weights, str | Path) else [*weights]
    return run_probe(list(map(str, given)), Plan.of(data_path=str(data_path), **options), tell)


def run_probe(
    weights: Sequence[str], plan: Plan, tell: Callable[[str], None] = lambda line: None
) -> Probe:
    """As :func:`probe`, of a plan."""
    loaders = _open_each(weights, plan)
    runtime = local_runtime(
        plan.config.run.device_target, plan.config.run.device_id, plan.config.run.precision
    )
    data = open_images(plan.config, plan.max_images)
    for note in data.notes:
        tell(note)
    check_counts(data.train.labels, data.train.class_names, plan.shots, plan.neighbours)
    rows = []
    for name, load in loaders.items():
        loaded = load()
        for line in loaded.report.lines():
            tell(line)
        rows.append(_probe_one(name, loaded, data, plan, runtime, tell))
    return Probe(tuple(rows), len(data.train), len(data.val), plan.config.data.data_path or "")


def _open_each(weights: Sequence[str], plan: Plan) -> dict[str, Callable[[], LoadedModel]]:
    """Open weights without reading their tensors: a mistake shows before the long work."""
    if not weights:
        raise ConfigError("There is nothing to probe: give weights.")
    loaders: dict[str, Callable[[], LoadedModel]] = {}
    places: dict[str, str] = {}
    for name in weights:
        opened = open_weights(
            name,
            num_heads=plan.config.model.num_heads,
            image_size=plan.image_size,
            new_head=True,
        )
        place = os.path.realpath(opened.path)
        if place in places:
            raise ConfigError(f"{places[place]} and {name} are the same weights.")
        places[place] = name
        changes: dict[str, Any] = {} if plan.image_size is None else {"image_size": plan.image_size}
        loaders[name] = partial(load_opened, opened, **changes)
    return loaders


def _probe_one(
    name: str,
    loaded: LoadedModel,
    data: TrainVal,
    plan: Plan,
    runtime: Runtime,
    tell: Callable[[str], None],
) -> Probed:
    started = time.perf_counter()
    model, config = loaded.model.to(runtime.device), plan.config
    stores = [
        FeatureStore(
            model,
            source,
            Views(loaded.preprocess),
            runtime,
            batch_size=config.data.batch_size,
            num_workers=config.data.num_workers,
            what=f"{name}: features of the {what} images",
        )
        for source, what in ((data.train, "training"), (data.val, "evaluation"))
    ]
    for store in stores:
        store.find()
    were_kept = all(store.found for store in stores)
    for store in stores:
        store.compute()
    computed = time.perf_counter()
    train, val = (store.features for store in stores)
    readable_N = find_readable(train, data.train, "training", config.data.max_bad_images, tell)
    found_M = find_readable(val, data.val, "evaluation", None, tell)
    train_ND, labels_N = train.values[0], torch.from_numpy(np.asarray(data.train.labels))
    if not readable_N.all():
        kept = torch.from_numpy(readable_N)
        train_ND, labels_N = train_ND[kept], labels_N[kept]
    names, images_MD = data.train.class_names, val.values[0]
    answers_M: NDArray[np.int64] = np.where(found_M, data.val.labels, -1)
    shots, neighbours, notes = check_counts(labels_N.numpy(), names, plan.shots, plan.neighbours)
    for note in notes:
        tell(note)
    if not all(bool(values.isfinite().all()) for values in (train_ND, images_MD)):
        raise WeightsError(
            f"{loaded.path}: features are not finite in {runtime.precision}: give --precision fp32."
        )
    linear = fit_logistic(train_ND, labels_N, len(names))
    squares = fit_squares(train_ND, labels_N, len(names))
    votes = classify_by_neighbours(
        train_ND, labels_N, images_MD, len(names), neighbours, runtime.device
    )
    few = [
        measure_shots(
            train_ND, labels_N, images_MD, answers_M, len(names), each, plan.draws, config.run.seed
        )
        for each in shots
    ]
    return Probed(
        weights=name,
        path=loaded.path,
        width=train_ND.shape[1],
        image_size=loaded.spec.image_size,
        neighbours=neighbours,
        strength=linear.strength,
        knn_right=votes.numpy() == answers_M,
        linear_right=linear.classify(images_MD).numpy() == answers_M,
        squares_right=squares.classify(images_MD).numpy() == answers_M,
        few_shot=tuple(few),
        unreadable=(len(train.causes), len(val.causes)),
        features_were_kept=were_kept,
        features_seconds=computed - started,
        classifiers_seconds=time.perf_counter() - computed,
    )
