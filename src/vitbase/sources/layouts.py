"""How data sets lie: what a path names is recognised once, by its content, not by an option.

Each kind of folder is a row of ``LAYOUTS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from vitbase.config.options import EMBEDDED
from vitbase.errors import DataError
from vitbase.sources import huggingface, tables
from vitbase.sources.archives import find_archive, read_archive
from vitbase.sources.imagenet.classes import holds_flat_images, read_flat_images
from vitbase.sources.listing import open_folder
from vitbase.sources.shards import source as shards
from vitbase.sources.source import Source
from vitbase.sources.splits import SPLIT_NAMES, SPLIT_WORDS, Split, find_split
from vitbase.stores import list_folder

NESTED = (
    *("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"),
    *("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"),
    *("MNIST/raw", "FashionMNIST/raw", "KMNIST/raw"),
)
"""Where well-known archives put what they unpack."""


@dataclass(frozen=True)
class Layout:
    """What a path names."""

    words: str  # what it is called
    open: Callable[[Split], Source]
    """Opens a split. Raises: DataError naming the option, the path, and what was expected there."""
    has_val: Callable[[], bool] = lambda: False
    """Tells whether there are evaluation images, apart from the others."""


class Given(NamedTuple):
    """The evaluation images are those of ``val_data_path``."""

    layout: Layout
    place: str


class Beside(NamedTuple):
    """The evaluation images are beside the training images: test files, or a split ``val``."""

    layout: Layout


class HeldOut(NamedTuple):
    """There are none: a part of the training images is to be held out."""

    layout: Layout  # of the training images


def find_val(data_path: str | None, val_data_path: str | None) -> Given | Beside | HeldOut:
    """Tell where the evaluation images of a run are.

    Args: the options of these names.
    Raises: DataError if neither is given, or as :func:`recognise`.
    """
    if val_data_path is not None:
        return Given(recognise(val_data_path, "val_data_path"), val_data_path)
    if data_path is None:
        raise DataError("There are no evaluation images: give --val_data_path FOLDER.")
    layout = recognise(data_path, "data_path")
    return Beside(layout) if layout.has_val() else HeldOut(layout)


def open_source(data_path: str, split: Split, option: str) -> Source:
    """Open one split of whatever a path names.

    Args:
      data_path: as of :func:`recognise`.
      split: "train" or "val".
      option: the option that named the path, for messages.
    Raises: DataError naming the option, the path, and what was expected there.
    """
    return recognise(data_path, option).open(split)


def recognise(data_path: str, option: str) -> Layout:
    """Recognise the layout of whatever a path names.

    Args:
      data_path: "embedded"; "hf:owner/name"; the URL of shards; a CSV or TSV file; or a folder of
        any layout in ``LAYOUTS``.
      option: the option that named the path, for messages.
    Raises: DataError if there is nothing of that name.
    """
    if data_path == EMBEDDED:
        return Layout(
            "IDX files inside the package",
            lambda split: _open_embedded(split, option),
            lambda: True,
        )
    if data_path.startswith(huggingface.PREFIX):
        return _dataset(data_path, option, "data set of Hugging Face")
    if "://" in data_path:
        return _tars(data_path, option, "tar shards behind a URL")
    path = Path(data_path).expanduser()
    if path.suffix.lower() in tables.TABLE_SUFFIXES and not os.path.isdir(path):
        return Layout(
            "table of paths and labels",
            lambda split: tables.read_table(path, split, option),
            lambda: tables.has_split(path, "val", option),
        )
    return _recognise(_existing_folder(data_path, option), option)


def _open_embedded(split: Split, option: str) -> Source:
    with resources.as_file(resources.files("vitbase") / "sources" / "samples") as folder:
        return read_archive(folder, split, option)


def _dataset(place: str, option: str, words: str) -> Layout:
    return Layout(
        words,
        lambda split: huggingface.open_dataset(place, split, option),
        lambda: huggingface.has_split(place, "val", option),
    )


def _tars(place: str, option: str, words: str) -> Layout:
    return Layout(
        words,
        lambda split: shards.open_shards(place, split, option),
        lambda: shards.has_split(place, "val", option),
    )


def _existing_folder(data_path: str, option: str) -> Path:
    folder = Path(data_path).expanduser()
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise DataError(
            f"--{option} {data_path} is a file; expected a folder, or a table "
            f"({', '.join(tables.TABLE_SUFFIXES)})."
        )
    nearest = next((parent for parent in folder.parents if os.path.isdir(parent)), None)
    where = f" (there is {nearest})" if nearest not in (None, Path("/"), Path(".")) else ""
    raise DataError(
        f"--{option} {data_path}: there is no such folder{where}. "
        f"Give the folder that holds the images: --{option} FOLDER."
    )


class _Folder(NamedTuple):
    path: Path
    folders: list[str]
    files: list[str]


def _recognise(path: Path, option: str) -> Layout:
    here = _Folder(path, *list_folder(path))
    return next(filter(None, (recognised(here, option) for recognised in LAYOUTS)))


def _as_archive(here: _Folder, option: str) -> Layout | None:
    kind = find_archive(here.files)
    if kind is None:
        return None
    return Layout(
        kind.replace("idx", "IDX files").replace("cifar", "CIFAR-"),
        lambda split: read_archive(here.path, split, option),
        lambda: True,
    )


def _as_dataset(here: _Folder, option: str) -> Layout | None:
    if not huggingface.holds_dataset(here.path):
        return None
    return _dataset(str(here.path), option, "Parquet or Arrow files")


def _as_shards(here: _Folder, option: str) -> Layout | None:
    """Take the tar files in a folder, or in all of its splits' folders, for its images."""
    inside = _split_folders(here, option)
    listings = [list_folder(path)[1] for path in inside.values()] or [here.files]
    if not all(map(shards.holds_shards, listings)):
        return None
    return _tars(str(here.path), option, "tar shards")


def _as_splits(here: _Folder, option: str) -> Layout | None:
    """Take a folder for the splits in it, each of any layout."""
    folders = _split_folders(here, option)
    if not folders:
        return None
    inside = {split: _recognise(path, option) for split, path in folders.items()}

    def open_split(split: Split) -> Source:
        if split not in inside:
            names = " or ".join(SPLIT_NAMES[split])
            raise DataError(f"--{option} {here.path}: there is no folder {names}.")
        return inside[split].open(split)

    told = {folders[split].name: layout.words for split, layout in inside.items()}
    if len({*told.values()}) == 1:
        words = f"{next(iter(told.values()))} in {' and '.join(told)}"
    else:
        words = ", ".join(f"{name}: {layout}" for name, layout in told.items())
    return Layout(words, open_split, lambda: "val" in inside)


def _split_folders(here: _Folder, option: str) -> dict[Split, Path]:
    """Return where the splits are, if a folder holds nothing but ``train``, ``val`` and the like.

    Beside folders with ImageNet's own names, and beside a development kit, there may be others.
    """
    names = {name.lower() for name in here.folders}
    train = find_split("train", here.folders)
    if not any(name.startswith("ilsvrc2012_") and name in SPLIT_WORDS for name in names):
        if train is None or any(n not in SPLIT_WORDS and "devkit" not in n for n in names):
            return {}
        # A class may be called "train": a split holds class folders or an archive, a class images.
        deeper = _Folder(here.path / train, *list_folder(here.path / train))
        if not deeper.folders and not any(row(deeper, option) for row in _OF_FILES):
            return {}
    found = {split: find_split(split, here.folders) for split in SPLIT_NAMES}
    return {split: here.path / name for split, name in found.items() if name is not None}


def _as_unpacked(here: _Folder, option: str) -> Layout | None:
    """Look deeper, where well-known archives put what they unpack."""
    name = next((name for name in NESTED if (here.path / name).is_dir()), None)
    if name is None:
        return None
    inside = _recognise(here.path / name, option)
    return Layout(f"{name}: {inside.words}", inside.open, inside.has_val)


def _as_flat_images(here: _Folder, option: str) -> Layout | None:
    if not holds_flat_images(here.folders, here.files):
        return None
    return Layout(
        "ImageNet's images side by side, labels in a file",
        lambda split: read_flat_images(here.path, option),
    )


def _as_classes(here: _Folder, option: str) -> Layout:
    """Take what is left for class folders; opening says where they are not there."""
    return Layout("class folders", lambda split: open_folder(here.path, option))


_OF_FILES = (_as_archive, _as_dataset, _as_shards)
LAYOUTS = (*_OF_FILES, _as_splits, _as_unpacked, _as_flat_images, _as_classes)
"""The layouts of folders; the first that fits is taken."""
