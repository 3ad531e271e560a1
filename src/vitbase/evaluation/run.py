"""Evaluation that visits every image exactly once, and says so."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess, describe_differences
from vitbase.data.augment import EvalTransform
from vitbase.data.loader import Batch, EvalLoader
from vitbase.errors import CheckpointError, ConfigError, DataError
from vitbase.evaluation.answers import NOTHING, Answers, Keep, Keeper
from vitbase.evaluation.classes import ModelClasses, fit_classes
from vitbase.evaluation.classifier import on_device
from vitbase.evaluation.corruptions import Corruption, Corruptions
from vitbase.evaluation.look import Look
from vitbase.evaluation.metrics import ClassificationSums, MultiLabelSums
from vitbase.evaluation.protocols import Preparation, prepare
from vitbase.evaluation.real import ValidLabelSums
from vitbase.evaluation.speed import Speed
from vitbase.evaluation.suite import Task, find_tasks, summaries
from vitbase.evaluation.views import VIEWS, average_logits
from vitbase.model.packing import packed
from vitbase.model.vit import VisionTransformer
from vitbase.runs.checkpoints import is_own_weights
from vitbase.runtime import Runtime, joined_runtime
from vitbase.sources.open import Source, check_class_count, open_val_unmatched
from vitbase.weights.find import list_weights
from vitbase.weights.load import LoadedModel, load_opened, open_weights

Sums = ClassificationSums | MultiLabelSums
"""What is counted: with one label an image, or with any number of them."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The images of an evaluation, and the answer to each.

    Attributes:
      preprocess: what was done to them.
      sums: what was counted.
    """

    source: Source
    answers: Answers
    preprocess: Preprocess
    sums: ClassificationSums | MultiLabelSums


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One weights file and how good it is.

    Attributes:
      class_names: of the classes that were counted.
      notes: what is remarkable.
      data_set: of a suite; "" where there is one alone.
      speed: of this rank; None of means of several evaluations.
      how: what the images became, and which views and classes were counted.
      kept: of the answers; None of means of several evaluations, and of several valid labels.
    """

    weights: Path
    sums: Sums | ValidLabelSums | Corruption | Corruptions
    seconds: float
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    data_set: str = ""
    speed: Speed | None = None
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept: Kept | None = None

    def to_row(self) -> dict[str, Any]:
        """Return all figures by their names, then how they came about."""
        data_set = {"data_set": self.data_set} if self.data_set else {}
        speed = self.speed.to_row() if self.speed else {}
        row: dict[str, Any] = {**data_set, **self.sums.to_row(), **speed, **self.how}
        return row


class EachOnce:
    """Counts a model's answers to the images of a source, and that each image had one.

    Args:
      keeper: keeps them, too, if they are needed one by one.
      kind: what is counted; None as the labels have it.
    """

    def __init__(self, source: Source, keeper: Keeper | None = None, kind: Any = None) -> None:
        self._keeper = keeper
        self._kind = kind or (MultiLabelSums if source.labels.ndim == 2 else ClassificationSums)
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
    look: Look | None = None,
) -> Any:
    """Evaluate a model on every image of a source, each on one rank (collective).

    An image that cannot be read is reported and counts as wrong.

    Args:
      model: on the runtime's device already; its mode is restored afterwards.
      on_unreadable: receives a line for each image that could not be read.
      go_on: asked for each batch, equally often on every rank; False ends it, on all of them.
      keeper: keeps the answers to this rank's images.
      look: other views of the images, and other counts, than the plain ones.
    Returns: what was counted, :data:`Sums` or the look's; None if it was ended before.
    Raises: DataError if the source is empty.
    """
    if len(source) == 0:
        raise DataError("There are no evaluation images.")
    look = look or Look(EvalTransform(preprocess))
    loader = EvalLoader(
        source,
        look.transform,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=runtime.pin_memory,
        rank=runtime.rank,
        num_ranks=runtime.num_ranks,
    )

    on_images = on_device(model, preprocess, runtime)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return look.restrict(on_images(images))

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        """Return what is counted, on the host: then the device is done."""
        started = time.perf_counter()
        (images,) = runtime.send(pixels)
        several = source.labels.ndim == 2 and look.kind is None
        logits = average_logits(logits_of, images, look.views, several=several).cpu()
        look.speed.batches.append((len(logits), time.perf_counter() - started))
        return logits

    started = time.perf_counter()
    counted = EachOnce(source, keeper, look.kind)
    was_training = model.training
    model.eval()
    goes_on = True
    watching = contextlib.nullcontext() if keeper is None else keeper.watching(model)
    # The packed layers are of float32.
    packing = packed(model) if runtime.precision == "fp32" else contextlib.nullcontext()
    computing = torch.inference_mode()
    with watching, computing, packing, contextlib.closing(iter(loader)) as batches:
        for _ in range(loader.most_batches):
            batch = next(batches, None)
            if batch is not None:
                counted.add(batch, answer(batch.images), on_unreadable)
            else:
                # A sharded model computes with all ranks: those with a batch less keep it company.
                shape = (1, look.transform.height, preprocess.width, preprocess.channels)
                answer(torch.zeros(shape, dtype=torch.uint8))
            goes_on = go_on()
            if not goes_on:
                break
    model.train(was_training)
    total = counted.total(runtime) if goes_on else None
    look.speed.images, look.speed.seconds = len(source), time.perf_counter() - started
    return total


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
    options, unmatched, any_whole = config.evaluation, None, False
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
        preparation = prepare(config, opened.preprocess, path)
        size = preparation.preprocess.height, preparation.preprocess.width
        loaded = load_opened(opened, image_size=size)
        _check_fit(preparation.preprocess, loaded)
        any_whole = True
        classes = ModelClasses(loaded.labels, loaded.spec.num_classes, loaded.path)
        network = functools.cache(partial(placed, loaded.model))
        evaluating = partial(_evaluate, runtime, network, config, on_unreadable, keep, loaded)
        if options.suite is not None:
            yield from _evaluate_suite(evaluating, config, classes, opened.preprocess)
            continue
        if unmatched is None:
            unmatched = open_val_unmatched(config)
            if loaded.labels is None:
                check_class_count(unmatched, config)
        source = fit_classes(unmatched, classes, options.map)
        yield evaluating(Task.alone(source), preparation)
    if not any_whole and damaged is not None:
        raise damaged


def _evaluate(
    runtime: Runtime,
    network: Callable[[Preprocess], nn.Module],
    config: Config,
    on_unreadable: Callable[[str], None],
    keep: Keep,
    loaded: LoadedModel,
    task: Task,
    preparation: Preparation,
) -> Evaluation:
    """Evaluate one model on one data set."""
    preprocess = preparation.preprocess
    look = Look(
        preparation.transform,
        VIEWS[config.evaluation.test_time_augmentation],
        task.restrict,
        ValidLabelSums if task.valid else None,
    )
    keeper = None if task.valid else Keeper(keep)
    sums = evaluate_model(
        network(preprocess),
        task.source,
        preprocess,
        runtime,
        batch_size=config.data.eval_batch_size or config.data.batch_size,
        num_workers=config.data.num_workers,
        on_unreadable=on_unreadable,
        keeper=keeper,
        look=look,
    )
    notes = (*task.source.notes, *preparation.notes, *_differences(preprocess, loaded))
    names = task.source.class_names
    how = {
        "protocol": config.evaluation.protocol,
        "preprocess": preprocess.model_dump(),
        "test_time_augmentation": config.evaluation.test_time_augmentation,
        "num_classes": len(names),
    }
    return Evaluation(
        loaded.path,
        sums,
        look.speed.seconds,
        names,
        notes,
        task.name,
        look.speed,
        how,
        Kept(task.source, keeper.gather(runtime), preprocess, sums) if keeper else None,
    )


def _evaluate_suite(
    evaluating: Callable[[Task, Preparation], Evaluation],
    config: Config,
    classes: ModelClasses,
    weights: Preprocess,
) -> Iterator[Evaluation]:
    """Evaluate one model on each data set that there is, and on what they tell together."""
    useless = config.given & {"map", "val_data_path"}
    if useless:
        raise ConfigError(
            f"--suite {config.evaluation.suite} finds its data sets below --data_path, and their "
            f"classes by their synsets: take away --{' and --'.join(sorted(useless))}."
        )
    said: set[str] = set()
    add, told = summaries()
    seconds = 0.0
    for task in find_tasks(config.data.data_path if _gives_data(config) else None, classes):
        preparation = prepare(config, weights, classes.path, task.data_set.sets)
        result = evaluating(task, preparation)
        add(task, result.sums)
        seconds += result.seconds if task.corruption else 0.0
        # What holds for all of them is said once.
        notes = tuple(note for note in result.notes if note not in said)
        said |= {*notes}
        yield dataclasses.replace(result, notes=notes)
    for name, sums in told():
        yield Evaluation(Path(str(classes.path)), sums, seconds, (), (), name)


def _gives_data(config: Config) -> bool:
    return "data_path" in config.given or config.origin is None


def _check_fit(preprocess: Preprocess, loaded: LoadedModel) -> None:
    if loaded.spec.in_channels != preprocess.channels:
        raise ConfigError(
            f"{loaded.path} takes images of {loaded.spec.in_channels} channels; give "
            f"--image_channels {loaded.spec.in_channels}."
        )
    loaded.check_head()


def _differences(preprocess: Preprocess, loaded: LoadedModel) -> tuple[str, ...]:
    differences = describe_differences(loaded.preprocess, preprocess)
    if differences:
        return (
            f"Warning: images are prepared otherwise than {loaded.path} was trained on: "
            + "; ".join(f"{name} {ours} instead of {theirs}" for name, theirs, ours in differences),
        )
    return ()
