"""Where the images of a run come from, and under which class names.

What is remarkable but no error is returned as notes, for the caller to log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitbase.config.config import Config
from vitbase.config.options import EMBEDDED
from vitbase.errors import DataError, first_few
from vitbase.sources.folders import LAYOUT
from vitbase.sources.holdout import hold_out
from vitbase.sources.imagenet.classes import SYNSET, imagenet_synsets
from vitbase.sources.imagenet.order import class_order_problem, find_synset
from vitbase.sources.layouts import Beside, Given, HeldOut, find_val, open_source
from vitbase.sources.source import Labels, Source, class_counts

__all__ = ["Source", "TrainVal", "open_source", "open_train_val", "open_val"]


@dataclass(frozen=True)
class TrainVal:
    """The images of a run. Both sources have the same class names, in the same order."""

    train: Source
    val: Source
    held_out: tuple[str, ...]  # paths below data_path of the images taken out of training, if any
    notes: tuple[str, ...]


def open_train_val(config: Config) -> TrainVal:
    """Open the training and evaluation images of a run.

    Without ``val_data_path``, the evaluation images are those that ``data_path`` has beside the
    training images (test files, a folder or split ``val``), or else a stratified part held out of
    the training images.

    Raises: DataError naming the option, what is wrong there, and what to do.
    """
    options = config.data
    if options.data_path is None:
        raise DataError(
            f"There are no training images: give --data_path FOLDER ({LAYOUT.format(root='FOLDER')}"
            f"; shards, IDX, CIFAR, Parquet), FILE.csv or hf:owner/name, or --data_path {EMBEDDED}."
        )
    train = open_source(options.data_path, "train", "data_path", options.layout)
    check_class_count(train, config)
    notes: list[str] = [*train.notes]
    held_out: tuple[str, ...] = ()
    match find_val(options.data_path, options.val_data_path, options.layout):
        case Given(layout):
            val = layout.open("val")
            if _same_images(train, val):
                notes.append(
                    f"val_data_path {options.val_data_path} has the training images themselves: "
                    "accuracies will be those of training images."
                )
        case Beside(layout):
            val = layout.open("val")
        case HeldOut():
            train, val, held_out, remarks = _hold_out(train, config)
            notes += remarks
    notes += [note for note in val.notes if note not in notes]
    val, matched = with_classes(val, train.class_names)
    notes += matched
    val = _as_many_labels(val, train)
    notes += _surprises(config, train, val)
    return TrainVal(train, val, held_out, tuple(notes))


def open_val(config: Config, class_names: Sequence[str] | None = None) -> Source:
    """Open the evaluation images alone; with ``val_data_path``, training images are not needed.

    Args:
      config: of the run that made the weights, or of this evaluation.
      class_names: of the model's outputs, in order; None takes the data's own.
    Returns: a source with those class names; its notes say what is remarkable.
    Raises: DataError as :func:`open_train_val`.
    """
    val = open_val_unmatched(config)
    if class_names is None:
        check_class_count(val, config)
        return val
    val, matched = with_classes(val, tuple(class_names))
    return replace(val, notes=(*val.notes, *matched))


def open_val_unmatched(config: Config) -> Source:
    """As :func:`open_val`, with the data's own classes, however many."""
    options = config.data
    before: tuple[str, ...] = ()
    match find_val(options.data_path, options.val_data_path, options.layout):
        case Given(layout) | Beside(layout):
            val = layout.open("val")
        case HeldOut(layout):
            train = layout.open("train")
            _, val, _, remarks = _hold_out(train, config)
            before = (*train.notes, *remarks)
    return replace(val, notes=(*before, *val.notes))


def _hold_out(
    source: Source, config: Config
) -> tuple[Source, Source, tuple[str, ...], tuple[str, ...]]:
    part = hold_out(source, config.data.holdout_fraction, config.run.seed)
    if not len(part.val):
        raise DataError(
            f"--data_path {config.data.data_path}: no class has an image to spare for evaluation. "
            "Give --val_data_path FOLDER, or more images."
        )
    return source.take(part.train), source.take(part.val), part.held_out, part.notes


def _same_images(a: Source, b: Source) -> bool:
    """Tell whether two sources have the same first and last image, and equally many."""
    return len(a) == len(b) and all(a.describe(i) == b.describe(i) for i in (0, len(a) - 1))


def check_class_count(source: Source, config: Config) -> None:
    """Raise a DataError if there are more classes than the run has outputs for, or only one."""
    class_names = source.class_names
    count, outputs = len(class_names), config.data.num_classes
    if outputs is not None and count > outputs:
        raise DataError(
            f"The data has {count} classes ({first_few(class_names, 5)}), more than num_classes "
            f"{outputs}: give --num_classes {count}, or a folder with fewer classes."
        )
    if count < 2 and source.labels.ndim == 1:
        raise DataError(
            f"The data has a single class, '{class_names[0]}': there is nothing to tell apart. "
            f"Expected {LAYOUT.format(root='FOLDER')}."
        )


def _surprises(config: Config, train: Source, val: Source) -> list[str]:
    notes = []
    options = config.data
    outputs = options.num_classes
    problem = class_order_problem(train.class_names)
    if problem is not None:
        notes.append(
            f"The classes are not numbered as in ImageNet's models: {problem}. A model trained "
            "here has outputs of its own order."
        )
    if outputs is not None and outputs > len(train.class_names):
        notes.append(
            f"The data has {len(train.class_names)} classes, num_classes is {outputs}: "
            f"{outputs - len(train.class_names)} outputs of the model stay without images."
        )
    for option, expected, source in (
        ("num_train_images", options.num_train_images, train),
        ("num_val_images", options.num_val_images, val),
    ):
        if expected is not None and expected != len(source):
            notes.append(f"{option} is {expected}, but there are {len(source)} images.")
    return notes


def with_classes(source: Source, class_names: tuple[str, ...]) -> tuple[Source, list[str]]:
    """Renumber a source's labels so that they index other class names.

    Args:
      source: the images.
      class_names: those of the model, or of the training images.
    Returns: the source, and what is remarkable.
    Raises: DataError if some images are of none of these classes.
    """
    own = source.class_names
    if own == class_names:
        return source, []
    present = class_counts(source.labels, len(own)) > 0
    table, notes = match_classes(source, present, class_names)
    unknown = [own[i] for i in np.flatnonzero(present & (table < 0))]
    if unknown:
        raise DataError(
            f"The evaluation images have classes that the model does not know: "
            f"{first_few(unknown, 5)}. It knows {first_few(class_names, 5)}."
        )
    return renumbered(source, table, class_names), notes


def renumbered(source: Source, table: NDArray[np.int64], class_names: tuple[str, ...]) -> Source:
    """Return a source whose labels index other class names.

    Args:
      table: the number there of each of the source's classes; -1 only where it has no image.
    """
    labels: Labels
    if source.labels.ndim == 1:
        labels = table[source.labels].astype(np.int64)
    else:
        known = (table >= 0) & (class_counts(source.labels, len(table)) > 0)
        labels = np.zeros((len(source), len(class_names)), np.float32)
        labels[:, table[known]] = source.labels[:, known]
    return replace(source, labels=labels, class_names=class_names)


def match_classes(
    source: Source, present: NDArray[np.bool_], class_names: tuple[str, ...]
) -> tuple[NDArray[np.int64], list[str]]:
    """Find a source's classes among other class names.

    ImageNet's synsets are found among names in words by what these mean, in whatever order they
    stand; a model whose names mean nothing known, but are as many, has the synsets sorted.

    Args:
      source: the images.
      present: of each of its classes, whether it has images.
      class_names: of a model's outputs.
    Returns: the number of each of the source's classes there, or -1; and what is remarkable.
    """
    own = source.class_names
    number = {name: place for place, name in enumerate(class_names)}
    table = np.array([number.get(name, -1) for name in own], np.int64)
    if (table[present] >= 0).all():
        known = {own[i] for i in np.flatnonzero(present)}
        absent = [name for name in sorted(class_names) if name not in known]
        if not absent:
            return table, []
        return table, [
            f"{len(absent)} of {len(class_names)} classes have no evaluation images: "
            f"{first_few(absent, 5)}."
        ]
    if not source.named:  # counted, not named
        return np.arange(len(own)) if len(own) <= len(class_names) else table, []
    # Other synsets are other classes, however many there are.
    if not all(map(SYNSET.fullmatch, own)) or any(map(SYNSET.fullmatch, class_names)):
        return table, []
    meant = [find_synset(name) for name in class_names]
    if sum(synset is not None for synset in meant) > _MEANINGFUL * len(meant):
        # A few names may be spelled otherwise; if the others are in ImageNet's order, so are they.
        if not class_order_problem(class_names) and len(class_names) == len(imagenet_synsets()):
            meant = [*imagenet_synsets()]
        number = {synset: place for place, synset in enumerate(meant) if synset}
        table = np.array([number.get(synset, -1) for synset in own], np.int64)
        how = "by what they mean"
    elif len(own) == len(class_names):
        table, how = np.arange(len(own)), "in sorted order"
    else:
        return table, []
    first = int(np.argmax(table >= 0))
    return table, [
        f"The {len(own)} synset folders are matched to the model's classes {how} "
        f"({own[first]} is '{class_names[table[first]]}')."
    ]


_MEANINGFUL = 0.9
"""The share of class names that have to be ImageNet's words to be taken for these."""


def refuse_fewer_labels(train: Source, val: Source) -> None:
    """Raise a DataError if only the evaluation images may have several labels each."""
    if val.labels.ndim > train.labels.ndim:
        raise DataError(
            "The evaluation images have several labels each, the training images one: give both "
            "the same way."
        )


def _as_many_labels(val: Source, train: Source) -> Source:
    """Return evaluation images with labels of the kind that the training images have."""
    refuse_fewer_labels(train, val)
    if val.labels.ndim == train.labels.ndim:
        return val
    hot = np.zeros((len(val), len(val.class_names)), np.float32)
    hot[np.arange(len(val)), val.labels] = 1
    return replace(val, labels=hot)
