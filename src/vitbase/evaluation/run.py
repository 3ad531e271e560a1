"""Evaluation that visits every image exactly once, and says so."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitbase.config import Config
from vitbase.data.augment import EvalTransform, normalize
from vitbase.data.loader import EvalLoader
from vitbase.data.sources import Source, open_val
from vitbase.errors import ConfigError, DataError
from vitbase.evaluation.metrics import ClassificationSums
from vitbase.options import Preprocess, describe_differences
from vitbase.runtime import Runtime, open_runtime
from vitbase.weights.checkpoints import find_weights
from vitbase.weights.load import LoadedModel, load_model, read_preprocess


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One weights file and how good it is."""

    weights: Path
    sums: ClassificationSums
    seconds: float
    notes: tuple[str, ...]


def evaluate_model(
    model: nn.Module,
    source: Source,
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    batch_size: int,
    num_workers: int | None = None,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> ClassificationSums:
    """Evaluate a model on every image of a source.

    An image that cannot be read is reported and counts as wrong.

    Args:
      model: on the runtime's device already; its mode is restored afterwards.
      on_unreadable: receives a line for each image that could not be read.
    Raises: DataError if the source is empty.
    """
    if len(source) == 0:
        raise DataError("There are no evaluation images.")
    loader = EvalLoader(
        source,
        EvalTransform(preprocess),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=runtime.pin_memory,
    )
    visits = np.zeros(len(source), dtype=np.int64)
    sums = ClassificationSums()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            (images,) = runtime.send(batch.images)
            with runtime.autocast():
                logits = model(normalize(images, preprocess))
            for image in batch.bad:
                on_unreadable(
                    f"Unreadable evaluation image {image.place}: {image.cause}; counted as wrong"
                )
            sums += ClassificationSums.of(logits.cpu(), batch.labels.cpu(), batch.readable)
            np.add.at(visits, batch.positions.numpy(), 1)
    model.train(was_training)
    if not (visits == 1).all():
        raise RuntimeError(
            f"evaluation visited {int((visits > 0).sum())} of {len(source)} images, "
            f"some up to {int(visits.max())} times"
        )
    return sums


def describe_sums(sums: ClassificationSums) -> str:
    """Return the log line of an evaluation."""
    unreadable = f", {sums.unreadable} unreadable counted as wrong" if sums.unreadable else ""
    return (
        f"evaluated {sums.images} of {sums.images}, each once{unreadable}: "
        f"top-1 {sums.top1:.2%} (standard error {sums.top1_standard_error:.2%})  "
        f"top-5 {sums.top5:.2%}  loss {sums.loss:.4f}"
    )


def evaluate(config: Config) -> list[Evaluation]:
    """Evaluate the checkpoint, or each checkpoint of the folder, that `checkpoint_path` names.

    Raises: ConfigError, DataError, CheckpointError or WeightsError.
    """
    return list(evaluate_each(config))


def evaluate_each(
    config: Config, on_unreadable: Callable[[str], None] = lambda line: None
) -> Iterator[Evaluation]:
    """As :func:`evaluate`, yielding each result as soon as it is there."""
    if config.model.checkpoint_path is None:
        raise ConfigError("Nothing to evaluate: give --checkpoint_path.")
    runtime = open_runtime(config.run.device_target, config.run.device_id, config.run.precision)
    source: Source | None = None
    for path in find_weights(config.model.checkpoint_path):
        heads = config.model.num_heads
        theirs = read_preprocess(path, num_heads=heads, image_size=config.data.image_size)
        preprocess = config.data.preprocess_after(theirs)
        size = (preprocess.height, preprocess.width)
        loaded = load_model(path, num_heads=heads, image_size=size)
        if source is None:
            source = open_val(config, loaded.labels)
        notes = (*source.notes, *_check_fit(preprocess, loaded, source))
        started = time.perf_counter()
        sums = evaluate_model(
            loaded.model.to(runtime.device),
            source,
            preprocess,
            runtime,
            batch_size=config.data.eval_batch_size or config.data.batch_size,
            num_workers=config.data.num_workers,
            on_unreadable=on_unreadable,
        )
        yield Evaluation(path, sums, time.perf_counter() - started, notes)


def _check_fit(preprocess: Preprocess, loaded: LoadedModel, source: Source) -> tuple[str, ...]:
    spec = loaded.spec
    if spec.in_channels != preprocess.channels:
        raise ConfigError(
            f"{loaded.path} takes images of {spec.in_channels} channels; give --image_channels "
            f"{spec.in_channels}."
        )
    if len(source.class_names) > spec.num_classes:
        raise DataError(
            f"The evaluation images have {len(source.class_names)} classes, but "
            f"{loaded.path} tells {spec.num_classes} apart. Is it another data set's?"
        )
    if loaded.labels is not None and loaded.labels[: len(source.class_names)] != source.class_names:
        raise DataError(
            f"The classes of the evaluation images ({_few(source.class_names)}) are not those "
            f"of {loaded.path} ({_few(loaded.labels)})."
        )
    differences = describe_differences(loaded.preprocess, preprocess)
    if differences:
        return (
            f"Warning: images are prepared otherwise than {loaded.path} was trained on: "
            + "; ".join(f"{name} {ours} instead of {theirs}" for name, theirs, ours in differences),
        )
    return ()


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
