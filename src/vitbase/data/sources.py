"""Where images come from: one protocol, and the opening of what ``data_path`` names.

The layout of a data set is recognised by its content, not named by an option. What is remarkable
but no error is returned as notes, for the caller to log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitbase.config import Config
from vitbase.data.archives import ArraySource, Split, find_archive, read_archive
from vitbase.data.folders import LAYOUT, FolderSource, list_folder, read_folder
from vitbase.data.holdout import hold_out
from vitbase.errors import DataError
from vitbase.options import EMBEDDED

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
}
AnySource = ArraySource | FolderSource
SYNSET = re.compile(r"n\d{8}")


class Source(Protocol):
    """Labelled images by index. Reading is safe from several threads."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return an image file's bytes, or pixels uint8 [H, W, C]. Raises: ImageError."""

    def describe(self, index: int) -> str:
        """Name an image so that a person finds it: its path, or a file and a number."""


@dataclass(frozen=True)
class TrainVal:
    """The images of a run. Both sources have the same class names, in the same order."""

    train: Source
    val: Source
    held_out: tuple[str, ...]  # paths below data_path of the images taken out of training, if any
    notes: tuple[str, ...]


def open_train_val(config: Config) -> TrainVal:
    """Open the training and evaluation images of a run.

    Without ``val_data_path``, the evaluation images are the test files beside the training files
    (IDX, CIFAR, embedded), the folder ``val`` beside ``train`` inside ``data_path``, or a
    stratified part held out of the training images.

    Raises: DataError naming the option, what is wrong there, and what to do.
    """
    options = config.data
    if options.data_path is None:
        raise DataError(
            f"There are no training images: give --data_path FOLDER ({LAYOUT.format(root='FOLDER')}"
            f"; IDX or CIFAR files), or --data_path {EMBEDDED}."
        )
    train = open_source(options.data_path, "train", "data_path")
    _check_class_count(train.class_names, config)
    notes: list[str] = [*train.notes]
    held_out: tuple[str, ...] = ()
    if options.val_data_path is not None:
        val = open_source(options.val_data_path, "val", "val_data_path")
        if _place(train) == _place(val):
            notes.append(
                f"val_data_path is the training folder {options.val_data_path} itself: "
                "accuracies will be those of training images."
            )
    elif _has_val(options.data_path):
        val = open_source(options.data_path, "val", "data_path")
    else:
        train, val, held_out, found = _hold_out(train, config)
        notes += found
    notes += [note for note in val.notes if note not in notes]
    val, matched = _with_classes(val, train.class_names)
    notes += matched
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
    options = config.data
    before: tuple[str, ...] = ()
    if options.val_data_path is not None:
        val = open_source(options.val_data_path, "val", "val_data_path")
    elif options.data_path is None:
        raise DataError("There are no evaluation images: give --val_data_path FOLDER.")
    elif _has_val(options.data_path):
        val = open_source(options.data_path, "val", "data_path")
    else:
        train = open_source(options.data_path, "train", "data_path")
        _, val, _, found = _hold_out(train, config)
        before = (*train.notes, *found)
    notes = [*before, *val.notes]
    if class_names is None:
        _check_class_count(val.class_names, config)
    else:
        val, matched = _with_classes(val, tuple(class_names))
        notes += matched
    return replace(val, notes=tuple(notes))


def open_source(data_path: str, split: Split, option: str) -> AnySource:
    """Open one split of whatever a path holds.

    Args:
      data_path: "embedded", a folder of IDX or CIFAR files, a folder of class folders, or a
        folder with ``train`` and ``val`` (``validation``, ``valid``, ``test``) inside.
      split: "train" or "val".
      option: the option that named the path, for messages.
    Raises: DataError naming the option, the path, and what was expected there.
    """
    if data_path == EMBEDDED:
        with resources.as_file(resources.files("vitbase") / "data" / "samples") as folder:
            return read_archive(folder, split, option)
    folder = _existing_folder(data_path, option)
    if _holds_archive(folder):
        return read_archive(folder, split, option)
    inside = _split_folders(folder)
    if inside:
        name = next((n for n in SPLIT_FOLDERS[split] if n in inside), None)
        if name is None:
            raise DataError(
                f"--{option} {folder}: there is no folder {' or '.join(SPLIT_FOLDERS[split])}."
            )
        folder = inside[name]
        if _holds_archive(folder):
            return read_archive(folder, split, option)
    return read_folder(folder, option)


def _hold_out(
    source: AnySource, config: Config
) -> tuple[FolderSource, FolderSource, tuple[str, ...], tuple[str, ...]]:
    if not isinstance(source, FolderSource):
        raise DataError(
            f"--data_path {config.data.data_path}: there are no test files beside the training "
            "files. Give --val_data_path FOLDER."
        )
    part = hold_out(source, config.data.holdout_fraction, config.run.seed)
    if not len(part.val):
        raise DataError(
            f"--data_path {source.root}: no class has an image to spare for evaluation. "
            "Give --val_data_path FOLDER, or more images."
        )
    return source.take(part.train), source.take(part.val), part.held_out, part.notes


def _existing_folder(data_path: str, option: str) -> Path:
    folder = Path(data_path).expanduser()
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise DataError(f"--{option} {data_path} is a file; expected a folder.")
    nearest = next((parent for parent in folder.parents if os.path.isdir(parent)), None)
    where = f" (there is {nearest})" if nearest not in (None, Path("/"), Path(".")) else ""
    raise DataError(
        f"--{option} {data_path}: there is no such folder{where}. "
        f"Give the folder that holds the images: --{option} FOLDER."
    )


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return name -> path if a folder holds nothing but ``train``, ``val`` and the like."""
    names, _ = list_folder(folder)
    inside = {name.lower(): folder / name for name in names}
    known = {name for names in SPLIT_FOLDERS.values() for name in names}
    if "train" not in inside or not inside.keys() <= known:
        return {}
    # A class may be called "train": a split holds class folders or an archive, a class images.
    deeper, _ = list_folder(inside["train"])
    return inside if deeper or _holds_archive(inside["train"]) else {}


def _holds_archive(folder: Path) -> bool:
    _, names = list_folder(folder)
    return find_archive(names) is not None


def _has_val(data_path: str) -> bool:
    if data_path == EMBEDDED:
        return True
    folder = _existing_folder(data_path, "data_path")
    return _holds_archive(folder) or len(_split_folders(folder)) > 1


def _place(source: AnySource) -> object:
    """Return what tells two sources of the same images apart from different ones."""
    if isinstance(source, FolderSource):
        return source.root.resolve()
    return id(source)


def _check_class_count(class_names: Sequence[str], config: Config) -> None:
    count, outputs = len(class_names), config.data.num_classes
    if outputs is not None and count > outputs:
        raise DataError(
            f"The data has {count} classes ({_listing(class_names)}), more than num_classes "
            f"{outputs}: give --num_classes {count}, or a folder with fewer classes."
        )
    if count < 2:
        raise DataError(
            f"The data has a single class, '{class_names[0]}': there is nothing to tell apart. "
            f"Expected {LAYOUT.format(root='FOLDER')}."
        )


def _surprises(config: Config, train: Source, val: Source) -> list[str]:
    notes = []
    options = config.data
    outputs = options.num_classes
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


def _with_classes(source: AnySource, class_names: tuple[str, ...]) -> tuple[AnySource, list[str]]:
    """Renumber a source's labels so that they index other class names."""
    own = source.class_names
    if own == class_names:
        return source, []
    number = {name: place for place, name in enumerate(class_names)}
    unknown = [name for name in own if name not in number]
    notes = []
    if unknown and _matches_by_order(source, class_names):
        table = np.arange(len(own))
        if isinstance(source, FolderSource):
            notes.append(
                f"The {len(own)} synset folders are matched to the model's classes in sorted order "
                f"({own[0]} is '{class_names[0]}')."
            )
    elif unknown:
        raise DataError(
            f"The evaluation images have classes that the model does not know: "
            f"{_listing(unknown)}. It knows {_listing(class_names)}."
        )
    else:
        table = np.array([number[name] for name in own])
        absent = sorted(set(class_names) - set(own))
        if absent:
            notes.append(
                f"{len(absent)} of {len(class_names)} classes have no evaluation images: "
                f"{_listing(absent)}."
            )
    labels = table[source.labels].astype(np.int64)
    return replace(source, labels=labels, class_names=class_names), notes


def _matches_by_order(source: AnySource, class_names: Sequence[str]) -> bool:
    """Tell whether the order of the classes may stand for names that do not match."""
    if isinstance(source, ArraySource):
        return not source.named and len(source.class_names) <= len(class_names)
    # ImageNet's class folders are synsets, and every system numbers them in sorted order.
    synsets = all(SYNSET.fullmatch(name) for name in source.class_names)
    return synsets and len(source.class_names) == len(class_names)


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
