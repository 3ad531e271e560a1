"""Evaluation that visits every image exactly once, and says so."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess, describe_differences
from vitbase.data.augment import EvalTransform
from vitbase.data.loader import Batch, EvalLoader
from vitbase.data.normalize import normalize
from vitbase.errors import CheckpointError, ConfigError, DataError
from vitbase.evaluation.answers import NOTHING, Answers, Keep, Keeper
from vitbase.evaluation.metrics import ClassificationSums, MultiLabelSums
from vitbase.model.vit import VisionTransformer
from vitbase.runs.checkpoints import is_own_weights
from vitbase.runtime import Runtime, joined_runtime
from vitbase.sources.open import Source, open_val
from vitbase.weights.find import list_weights
from vitbase.weights.load import LoadedModel, load_opened, open_weights

Sums = ClassificationSums | MultiLabelSums
"""What is counted: with one label an image, or with any number of them."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One weights file and how good it is.

    Attributes:
      class_names: of the classes that were counted.
      notes: what is remarkable.
      source: the images.
      answers: to each of them.
      preprocess: what was done to them.
    """

    weights: Path
    sums: Sums
    seconds: float
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    source: Source
    answers: Answers
    preprocess: Preprocess


class EachOnce:
    """Counts a model's answers to the images of a source, and that each image had one.

    Args:
      keeper: keeps them, too, if they are needed one by one.
    """

    def __init__(self, source: Source, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self._kind = MultiLabelSums if source.labels.ndim == 2 else ClassificationSums
        self._visits = torch.zeros(len(source), dtype=torch.int64)
        self._parts: list[Any] = []

    def add(
        self, batch: Batch, logits_BC: torch.Tensor, on_unreadable: Callable[[str], None]
    ) -> None:
        """Count the answers to some images; one that cannot be read is reported, and wrong."""
        for image in batch.bad:
            on_unreadable(
                f"Unreadable evaluation image {image.place}: {image.cause}; counted as wrong"
            )
        logits_BC = logits_BC.cpu()
        self._parts.append(self._kind.of(logits_BC, batch.labels.cpu(), batch.readable))
        if self._keeper is not None:
            self._keeper.add(batch, logits_BC)
        self._visits[batch.positions] += 1

    def total(self, runtime: Runtime) -> Sums:
        """Add up what all ranks have counted (collective)."""
        visits = runtime.all_reduce(self._visits.to(runtime.device)).cpu()
        if not (visits == 1).all():
            raise RuntimeError(
                f"evaluation visited {int((visits > 0).sum())} of {len(visits)} images, "
                f"some up to {int(visits.max())} times"
            )
        empty: Any = self._kind()
        own = functools.reduce(operator.add, self._parts, empty)
        total: Sums = functools.reduce(operator.add, runtime.all_gather(own))
        return total


def evaluate_model(
    model: nn.Module,
    source: Source,
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    batch_size: int,
    num_workers: int | None = None,
    on_unreadable: Callable[[str], None] = lambda line: None,
    go_on: Callable[[], bool] = lambda: True,
    keeper: Keeper | None = None,
) -> Sums | None:
    """Evaluate a model on every image of a source, each on one rank (collective).

    An image that cannot be read is reported and counts as wrong.

    Args:
      model: on the runtime's device already; its mode is restored afterwards.
      on_unreadable: receives a line for each image that could not be read.
      go_on: asked for each batch, equally often on every rank; False ends it, on all of them.
      keeper: keeps the answers to this rank's images.
    Returns: what was counted; None if it was ended before.
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
        rank=runtime.rank,
        num_ranks=runtime.num_ranks,
    )

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        (images,) = runtime.send(pixels)
        with runtime.autocast():
            logits: torch.Tensor = model(normalize(images, preprocess))
        return logits

    counted = EachOnce(source, keeper)
    was_training = model.training
    model.eval()
    goes_on = True
    watching = contextlib.nullcontext() if keeper is None else keeper.watching(model)
    with watching, torch.inference_mode(), contextlib.closing(iter(loader)) as batches:
        for _ in range(loader.most_batches):
            batch = next(batches, None)
            if batch is not None:
                counted.add(batch, logits_of(batch.images), on_unreadable)
            else:
                # A sharded model computes with all ranks: those with a batch less keep it company.
                shape = (1, preprocess.height, preprocess.width, preprocess.channels)
                logits_of(torch.zeros(shape, dtype=torch.uint8))
            goes_on = go_on()
            if not goes_on:
                break
    model.train(was_training)
    return counted.total(runtime) if goes_on else None


def evaluate_each(
    config: Config, on_unreadable: Callable[[str], None] = lambda line: None, keep: Keep = NOTHING
) -> Iterator[Evaluation]:
    """Evaluate on torch as `engines.evaluate_each` does, on options that were checked."""
    options = config.run
    with joined_runtime(
        options.device_target, options.device_id, options.precision, tf32=options.tf32
    ) as runtime:
        yield from evaluate_on(
            runtime, lambda model, _: model.to(runtime.device), config, on_unreadable, keep
        )


def evaluate_on(
    runtime: Runtime,
    placed: Callable[[VisionTransformer, Preprocess], nn.Module],
    config: Config,
    on_unreadable: Callable[[str], None],
    keep: Keep = NOTHING,
) -> Iterator[Evaluation]:
    """As :func:`evaluate_each`, on a device that is open.

    Args:
      placed: brings a model, and what its images become, to the device.
      keep: what to keep of the answers to each image.
    """
    assert config.model.checkpoint_path is not None
    source: Source | None = None
    heads, asked_size = config.model.num_heads, config.data.image_size
    damaged: CheckpointError | None = None
    for path in list_weights(config.model.checkpoint_path):
        try:
            # Of a run they say how it started; its own checkpoints are whole, and one network.
            foreign = not is_own_weights(path)
            opened = open_weights(
                path,
                num_heads=heads,
                image_size=asked_size,
                ignore=config.model.ignore_weights if foreign else (),
                prefix=config.model.weights_prefix if foreign else None,
            )
        except CheckpointError as error:
            damaged = error
            if runtime.is_first:
                on_unreadable(f"Passed over: {error}")
            continue
        preprocess = config.data.preprocess_after(opened.preprocess)
        loaded = load_opened(opened, image_size=(preprocess.height, preprocess.width))
        if source is None:
            source = open_val(config, loaded.labels)
        notes = (*source.notes, *_check_fit(preprocess, loaded, source))
        keeper = Keeper(keep)
        started = time.perf_counter()
        sums = evaluate_model(
            placed(loaded.model, preprocess),
            source,
            preprocess,
            runtime,
            batch_size=config.data.eval_batch_size or config.data.batch_size,
            num_workers=config.data.num_workers,
            on_unreadable=on_unreadable,
            keeper=keeper,
        )
        assert sums is not None
        seconds, names = time.perf_counter() - started, source.class_names
        answers = keeper.gather(runtime)
        yield Evaluation(path, sums, seconds, names, notes, source, answers, preprocess)
    if source is None and damaged is not None:
        raise damaged


def _check_fit(preprocess: Preprocess, loaded: LoadedModel, source: Source) -> tuple[str, ...]:
    spec = loaded.spec
    if spec.in_channels != preprocess.channels:
        raise ConfigError(
            f"{loaded.path} takes images of {spec.in_channels} channels; give --image_channels "
            f"{spec.in_channels}."
        )
    loaded.check_head()
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
