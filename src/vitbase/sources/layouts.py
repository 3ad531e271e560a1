"""How data sets lie: what a path names is recognised once, by its content, not by an option.

A folder of folders may be splits or classes. Where both are possible, nobody guesses: an error
names the reading that is likelier, and the value of the option ``layout`` that confirms it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vitbase.config.options import EMBEDDED, Reading
from vitbase.disk import as_path, list_folder, tell_passed_over
from vitbase.errors import DataError, first_few
from vitbase.sources import huggingface, tables
from vitbase.sources.archives import find_archive, is_whole_archive, read_archive
from vitbase.sources.folders import holds_images
from vitbase.sources.imagenet.classes import (
    holds_flat_images,
    holds_labelled_images,
    may_hold_labels,
    read_flat_images,
)
from vitbase.sources.listing import open_folder
from vitbase.sources.shards import source as shards
from vitbase.sources.shards.layout import is_whole_set
from vitbase.sources.source import Source
from vitbase.sources.splits import SPLIT_NAMES, SPLITS_TOLD, Split, find_split, split_word

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
    is_whole: bool = True  # whether these files are surely a data set, and no strays beside one
    has_train: Callable[[], bool] = lambda: True
    """Tells whether there are images to train on; where nothing says a split, they are that."""


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


def find_val(
    data_path: str | None, val_data_path: str | None, reading: Reading = "auto"
) -> Given | Beside | HeldOut:
    """Tell where the evaluation images of a run are.

    Args: the options data_path, val_data_path and layout.
    Raises: DataError if neither is given, or as :func:`recognise`.
    """
    if val_data_path is not None:
        return Given(recognise(val_data_path, "val_data_path", reading), val_data_path)
    if data_path is None:
        raise DataError("There are no evaluation images: give --val_data_path FOLDER.")
    layout = recognise(data_path, "data_path", reading)
    return Beside(layout) if layout.has_val() else HeldOut(layout)


def open_source(data_path: str, split: Split, option: str, reading: Reading = "auto") -> Source:
    """Open one split of whatever a path names.

    Args:
      data_path: as of :func:`recognise`.
      split: "train" or "val".
      option: the option that named the path, for messages.
      reading: as of :func:`recognise`.
    Raises: DataError naming the option, the path, and what was expected there.
    """
    return recognise(data_path, option, reading).open(split)


def recognise(data_path: str, option: str, reading: Reading = "auto") -> Layout:
    """Recognise the layout of whatever a path names.

    Args:
      data_path: "embedded"; "hf:owner/name"; the URL of shards; a CSV or TSV file; or a folder of
        any layout.
      option: the option that named the path, for messages.
      reading: the option layout: how a folder is read that could be read in several ways.
    Raises: DataError if there is nothing of that name, or several readings are possible.
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
    path = as_path(data_path)
    if path.suffix.lower() in tables.TABLE_SUFFIXES and not os.path.isdir(path):
        return Layout(
            "table of paths and labels",
            lambda split: tables.read_table(path, split, option),
            lambda: tables.has_split(path, "val", option),
        )
    return _recognise(_existing_folder(data_path, option), option, reading)


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
    folder = as_path(data_path)
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
    passed_over: list[str]

    def holds(self, name: str) -> bool:
        """Whether there is an image below one of the folders."""
        return holds_images(self.path / name)


def _look(path: Path) -> _Folder:
    return _Folder(path, *list_folder(path))


def _recognise(path: Path, option: str, reading: Reading, *, is_split: bool = False) -> Layout:
    here = _look(path)
    if reading != "files" and not here.folders:
        reading = "auto"  # nothing in it is in doubt
    files = _of_files(here, option)
    if reading == "files" and files is None:
        raise DataError(f"--{option} {path}: --layout files, but there is no file of images.")
    if files is not None and (
        reading == "files" or (reading == "auto" and not _is_more_than_files(here))
    ):
        left_out = _tell_left_out(path, [*filter(here.holds, here.folders)])
        return _noted(files, (*left_out, *tell_passed_over(path, here.passed_over)))
    if reading == "classes":
        return _as_classes(here, option, confirmed=True)
    found = _of_folders(here, option, reading, is_split)
    if files is not None and files.is_whole and reading == "auto":
        folders = "splits" if any(map(split_word, here.folders)) else "classes"
        raise DataError(
            f"--{option} {path} may be read in two ways: as {found.words} "
            f"({first_few(here.folders)}), or as {files.words}. Give --layout {folders} or "
            "--layout files, or take one of them away."
        )
    return found


def _noted(layout: Layout, notes: tuple[str, ...]) -> Layout:
    """Return a layout that has something to say of itself, before what its images have."""

    def open_noted(split: Split) -> Source:
        source = layout.open(split)
        return replace(source, notes=(*notes, *source.notes))

    return replace(layout, open=open_noted) if notes else layout


def _tell_left_out(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    return (f"{path}: left out: {first_few(names, 6)}.",) if names else ()


def _is_more_than_files(here: _Folder) -> bool:
    """Whether folders hold images, or labelled ones are there, so that files may be strays."""
    if _unpacked(here) or holds_labelled_images(here.path, here.folders, here.files):
        return True
    holding = [*islice(filter(here.holds, here.folders), 2)]
    if len(holding) == 1:  # of splits, or of another place; a lone folder of images is a stray
        return bool(list_folder(here.path / holding[0]).folders)
    splits = [here.path / name for name in here.folders if split_word(name)]
    return bool(holding) or any(shards.holds_shards(list_folder(path).files) for path in splits)


# Files of many images each


def _of_files(here: _Folder, option: str) -> Layout | None:
    rows = (_as_archive, _as_dataset, _as_shards)
    return next(filter(None, (row(here, option) for row in rows)), None)


def _as_archive(here: _Folder, option: str) -> Layout | None:
    kind = find_archive(here.files)
    if kind is None:
        return None
    return Layout(
        kind.replace("idx", "IDX files").replace("cifar", "CIFAR-"),
        lambda split: read_archive(here.path, split, option),
        lambda: True,
        is_whole_archive(here.files),
    )


def _as_dataset(here: _Folder, option: str) -> Layout | None:
    if not huggingface.holds_dataset(here.path):
        return None
    found = _dataset(str(here.path), option, "Parquet or Arrow files")
    return replace(found, is_whole=huggingface.is_whole(here.path))


def _as_shards(here: _Folder, option: str) -> Layout | None:
    if not shards.holds_shards(here.files):
        return None
    found = _tars(str(here.path), option, "tar shards")
    return replace(found, is_whole=is_whole_set(here.files, here.folders))


# Folders of images


def _of_folders(here: _Folder, option: str, reading: Reading, is_split: bool) -> Layout:
    found = _as_splits(here, option, reading, is_split) or _as_unpacked(here, option)
    found = found or _as_flat_images(here, option)
    if found is None:
        return _as_classes(here, option, is_split=is_split)
    return _noted(found, tell_passed_over(here.path, here.passed_over))


def _as_splits(here: _Folder, option: str, reading: Reading, is_split: bool) -> Layout | None:
    """Take a folder for the splits in it, each of any layout."""
    named = {split: find_split(split, here.folders) for split in SPLIT_NAMES}
    folders = {split: here.path / name for split, name in named.items() if name is not None}
    if is_split and len(here.folders) > 1:  # its classes may be called anything
        return None
    if reading == "splits":
        if not folders:
            raise DataError(
                f"--{option} {here.path}: --layout splits, but no folder there is called like one "
                f"({SPLITS_TOLD})."
            )
    elif not folders or not _are_splits(here, folders, option):
        return None
    used = {path.name for path in folders.values()}
    others = [name for name in here.folders if name not in used]
    listings = [list_folder(path).files for path in folders.values()]
    if all(map(shards.holds_shards, listings)) and not shards.holds_shards(here.files):
        return _noted(
            _tars(str(here.path), option, "tar shards"), _tell_left_out(here.path, others)
        )
    inside = {
        split: _recognise(path, option, "auto", is_split=True) for split, path in folders.items()
    }

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
    others += here.files
    if FLAT in told.values():
        others = [name for name in others if not may_hold_labels(name)]
    found = Layout(words, open_split, lambda: "val" in inside, has_train=lambda: "train" in inside)
    return _noted(found, _tell_left_out(here.path, others))


def _are_splits(here: _Folder, folders: dict[Split, Path], option: str) -> bool:
    """Whether folders that are called like splits surely are. Raises: DataError in doubt."""
    if any(name.lower().startswith("ilsvrc2012_") and split_word(name) for name in here.folders):
        return True
    first, *second = folders.values()
    deeper = _look(first)
    hold_classes = bool(deeper.folders or _of_files(deeper, option))
    if len(here.folders) == 1:
        return hold_classes
    called = [name for name in here.folders if split_word(name)]
    if hold_classes:
        words = [split_word(path.name) for path in folders.values()]
        several = [name for name in called if words.count(split_word(name))]
        rivals = len(several) > len(folders) and [name for name in several if here.holds(name)]
        same = bool(second) and not _names_inside(first).isdisjoint(_names_inside(second[0]))
        if not rivals and (same or len(called) == len(here.folders)):
            return True
    if not all(map(here.holds, here.folders)):
        return hold_classes
    splits = ", ".join(f"{split}: {path.name}" for split, path in folders.items())
    classes = first_few(here.folders, 5)
    what = f"--{option} {here.path}: {first_few(called)} may be a split, or a class called like one"
    if hold_classes:
        raise DataError(
            f"{what}. It would be read as splits ({splits}): --layout splits confirms that; "
            f"--layout classes takes the folders as classes ({classes})."
        )
    raise DataError(
        f"{what}. It would be read as the classes {classes}: --layout classes confirms that. As "
        f"a split, '{first.name}' would have to hold a folder for every class."
    )


def _names_inside(folder: Path, deepest: int = 4) -> set[str]:
    """Return the names of the folders in a split, or in the only folder in it."""
    names = list_folder(folder).folders
    if len(names) == 1 and deepest:
        return {*names, *_names_inside(folder / names[0], deepest - 1)}
    return {*names}


def _unpacked(here: _Folder) -> str | None:
    return next((name for name in NESTED if (here.path / name).is_dir()), None)


def _as_unpacked(here: _Folder, option: str) -> Layout | None:
    """Look deeper, where well-known archives put what they unpack."""
    name = _unpacked(here)
    if name is None:
        return None
    inside = _recognise(here.path / name, option, "auto")
    return replace(inside, words=f"{name}: {inside.words}")


def _as_flat_images(here: _Folder, option: str) -> Layout | None:
    if not holds_flat_images(here.folders, here.files):
        return None
    return Layout(FLAT, lambda split: read_flat_images(here.path, option))


def _as_classes(
    here: _Folder, option: str, *, confirmed: bool = False, is_split: bool = False
) -> Layout:
    """Take what is left for class folders; opening says where they are not there."""

    def open_classes(split: Split) -> Source:
        sure = is_split and (split == "val" or len(here.folders) > 1)
        return open_folder(here.path, option, confirmed=confirmed or sure)

    return Layout("class folders", open_classes)


FLAT = "ImageNet's images side by side, labels in a file"
