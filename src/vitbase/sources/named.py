"""The images that a user names: files, folders, patterns, lists; data sets as training opens them.

Nobody asks for their labels, so that shards, tables and Parquet files need none.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.config.options import EMBEDDED, Reading
from vitbase.disk import LONGEST_IMAGE, as_path, list_folder, read_regular, tell_passed_over
from vitbase.errors import ConfigError, DataError, ImageError, first_few
from vitbase.files import unlisted
from vitbase.sources import archives, huggingface, tables
from vitbase.sources.folders import Walk, holds_images, is_image_name
from vitbase.sources.layouts import recognise
from vitbase.sources.shards import source as shards
from vitbase.sources.source import UNKNOWN_SIZE, Images, Source, unlabelled
from vitbase.sources.splits import SPLIT_NAMES, Split, split_word

STANDARD_INPUT = "-"
"""In the place of an image, or of a list of them."""

LONGEST_LIST = 1 << 28
"""Bytes of a list of names: some millions."""

Tell = Callable[[str], None]
_OPTION = "data_path"  # by which training names a data set


@dataclass(frozen=True)
class InMemory(Images):
    """Image files in memory, and what they are called."""

    contents: Sequence[bytes]
    names: Sequence[str]

    def read(self, row: int) -> bytes:
        return self.contents[row]

    def name(self, row: int) -> str:
        return self.names[row]

    def describe(self, row: int) -> str:
        return self.names[row]


@dataclass(frozen=True)
class _Named(Images):
    """Image files by their paths, as somebody gave them."""

    paths: Sequence[str]

    def read(self, row: int) -> bytes:
        try:
            return read_regular(self.paths[row], LONGEST_IMAGE)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None

    def name(self, row: int) -> str:
        return self.paths[row]

    def size(self, row: int) -> int:
        try:
            return os.stat(self.paths[row]).st_size
        except OSError:
            return UNKNOWN_SIZE

    def describe(self, row: int) -> str:
        return self.paths[row]


@dataclass(frozen=True)
class _Joined(Images):
    """The images of several sources, one after the other."""

    parts: tuple[Source, ...]
    ends: NDArray[np.int64]  # [parts]: images up to the end of each

    def _find(self, row: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part], row - int(self.ends[part - 1] if part else 0)

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        source, index = self._find(row)
        return source.read(index)

    def name(self, row: int) -> str:
        source, index = self._find(row)
        return source.name(index)

    def size(self, row: int) -> int:
        source, index = self._find(row)
        return source.images.size(int(source.rows[index]))

    def describe(self, row: int) -> str:
        source, index = self._find(row)
        return source.describe(index)


def in_memory(contents: Sequence[bytes], names: Sequence[str] | None = None) -> Source:
    """Return image files in memory as a source of images without labels."""
    if names is None:
        names = [f"image {number}" for number in range(1, len(contents) + 1)]
    return _source(InMemory(contents, names), len(contents))


def _source(images: Images, count: int) -> Source:
    return Source(images, np.arange(count), *unlabelled(count))


def expand(
    paths: Sequence[str | Path], *, recursive: bool = False, tell: Tell = lambda line: None
) -> list[Path]:
    """Replace each folder by the images inside it, listed as in training, sorted by name.

    Args:
      paths: files, folders, or patterns of them such as "photos/*.jpg" (`**` is any folders).
      recursive: whether to go into the folders inside.
      tell: gets a line about what is passed over.
    Raises: DataError for a path that does not exist, a folder without images, or a pattern that
      nothing matches.
    """
    return [Path(name) for place in paths for name in _files_of(str(place), recursive, tell)]


def _files_of(place: str, recursive: bool, tell: Tell) -> Iterator[str]:
    path = Path(place)
    if path.is_dir():
        inside = [*_list_images(path, recursive, tell)]
        if not inside:
            deeper = not recursive and list_folder(path).folders
            hint = f" Those in '{deeper[0]}' and the like: --recursive." if deeper else ""
            raise DataError(f"There are no images in the folder {path}.{hint}")
        yield from inside
    elif os.path.lexists(path):
        yield str(path)
    elif glob.has_magic(place):
        for match in _matches(place, tell):
            yield from _files_of(match, recursive, tell)
    else:
        raise DataError(f"The image {path} does not exist.")


def _matches(pattern: str, tell: Tell) -> list[str]:
    """Return the images that a pattern matches; if it matches folders alone, these."""
    try:
        found = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
    except (ValueError, re.error, RecursionError):  # such as a NUL in it
        found = []
    files = [name for name in found if not os.path.isdir(name)]
    if not files:
        if not found:
            raise DataError(f"Nothing matches {pattern}.")
        return found
    images = [name for name in files if is_image_name(name)]
    others = [name for name in files if not is_image_name(name)]
    if not images:
        raise DataError(f"No image matches {pattern}: {first_few(others)} are not called like one.")
    if others:
        tell(f"{pattern}: {_passed_over(others, 'not called like an image')}")
    return images


def _passed_over(names: Sequence[str], why: str) -> str:
    return f"{len(names)} passed over, {why}: {first_few(names, count=False)}."


def _list_images(folder: Path, recursive: bool, tell: Tell) -> list[str]:
    walk = Walk(folder)
    found = sorted(walk.images("", recursive=recursive), key=os.fsencode)
    for names, what in (
        (walk.left_out, "not called like an image"),
        (walk.not_entered, "being folders; --recursive goes into them"),
    ):
        if names:
            tell(f"{folder}: {_passed_over(names, what)}")
    for note in tell_passed_over(folder, walk.passed_over):
        tell(note)
    return [str(folder / name) for name in found]


def parse_list(content: bytes, where: str) -> list[str]:
    """Return the paths in a list, one a line, or with NUL between them, as `find -print0` has it.

    Args:
      where: it came from, for messages.
    Raises: DataError if it is too long, names nothing, or something that is not there.
    """
    if len(content) > LONGEST_LIST:
        raise DataError(f"The list {where} has more than {LONGEST_LIST:,} bytes.")
    text = content.decode("utf-8-sig", "surrogateescape")
    names = [*filter(None, text.split("\0"))] if "\0" in text else unlisted(text)
    if not names:
        raise DataError(f"The list {where} names no image.")
    absent = [name for name in names if not os.path.lexists(name)]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(names)} paths in the list {where} do not exist: "
            f"{first_few(absent, count=False)}. Relative ones are relative to the current folder."
        )
    return names


def open_named(
    places: Sequence[str | Path],
    *,
    recursive: bool = False,
    layout: Reading = "auto",
    split: Split | None = None,
    read_stdin: Callable[[], bytes] = lambda: b"",
    tell: Tell = lambda line: None,
) -> Source:
    """Open all images that are named, in the order in which they are named.

    Args:
      places: as of :func:`expand`; data sets in files of many images, behind a URL, or of Hugging
        Face, and tables of paths; "-" for an image from the standard input.
      recursive: as of :func:`expand`.
      layout: how a folder is read as a data set; with it, or with a split, every folder is one.
      split: of data sets: "train" or "val"; None: all that there are.
      read_stdin: reads what is behind "-".
      tell: gets a line about what is passed over, and what is remarkable.
    Returns: images without labels.
    Raises: DataError as :func:`expand`, or of a data set; ConfigError if layout or split are given
      and no data set is named.
    """
    names = [str(place) for place in places]
    if names.count(STANDARD_INPUT) > 1:
        raise ConfigError(f"The standard input is one image: give '{STANDARD_INPUT}' once.")
    asked = layout != "auto" or split is not None
    parts: list[Source] = []
    files: list[str] = []
    any_data_set = False

    def add(part: Source) -> None:
        if files:
            parts.append(_source(_Named(tuple(files)), len(files)))
            files.clear()
        if len(part):
            parts.append(part)

    for name in names:
        if name == STANDARD_INPUT:
            add(in_memory([read_stdin()], ["standard input"]))
            continue
        data_set = _as_data_set(name, layout, asked=asked)
        if data_set is None:
            files += _files_of(name, recursive, tell)
            continue
        any_data_set = True
        for each in [split] if split else data_set.splits:
            found = data_set.open(each)
            for note in found.notes:
                tell(note)
            add(found)
    add(in_memory([]))
    if asked and not any_data_set:
        raise ConfigError("--layout and --split are of data sets, and no data set is named.")
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([len(part) for part in parts])
    return _source(_Joined(tuple(parts), ends), int(ends[-1]) if parts else 0)


class _DataSet(NamedTuple):
    """How a data set is opened, by split."""

    open: Callable[[Split], Source]
    has_split: Callable[[Split], bool]

    @property
    def splits(self) -> list[Split]:
        """Return those that it has; of one that has none, what stands for all of it."""
        return [*filter(self.has_split, SPLIT_NAMES)] or ["train"]


def _as_data_set(place: str, layout: Reading, *, asked: bool) -> _DataSet | None:
    """Return how a place is opened as a data set; None if it is an image, or a folder of images."""
    path = as_path(place)
    is_folder = os.path.isdir(path)
    if is_folder and not asked and holds_images(path):  # what else lies there may be a stray
        return None
    if layout == "auto" and (kind := _find_kind(place, path, is_folder=is_folder)):
        return kind
    if (place == EMBEDDED and not os.path.lexists(path)) or (is_folder and asked):
        found = recognise(place, _OPTION, layout)
        has = {"train": found.has_train, "val": found.has_val}
        return _DataSet(found.open, lambda split: has[split]())
    return None


def _find_kind(place: str, path: Path, *, is_folder: bool) -> _DataSet | None:
    """Recognise the data sets that may be without labels, and those that are pixels."""
    if is_folder:
        folders, files, _ = list_folder(path)
        splits = [list_folder(path / name).files for name in folders if split_word(name)]
        if archives.find_archive(files):
            return _DataSet(
                lambda split: archives.read_archive(path, split, _OPTION),
                lambda split: archives.has_split(path, split),
            )
        if huggingface.holds_dataset(path):
            return _without_labels(huggingface.open_dataset, huggingface.has_split, place)
        if any(map(shards.holds_shards, (files, *splits))):
            return _without_labels(shards.open_shards, shards.has_split, place)
    elif place.startswith(huggingface.PREFIX):
        return _without_labels(huggingface.open_dataset, huggingface.has_split, place)
    elif "://" in place:
        return _without_labels(shards.open_shards, shards.has_split, place)
    elif path.suffix.lower() in tables.TABLE_SUFFIXES and os.path.lexists(path):
        return _without_labels(tables.read_table, tables.has_split, path)
    elif path.suffix.lower() in {".tar", ".parquet", ".arrow"} and os.path.isfile(path):
        raise DataError(f"{place} is a file of many images: give its folder.")
    return None


def _without_labels(
    opened: Callable[..., Source], has_split: Callable[..., bool], place: str | Path
) -> _DataSet:
    return _DataSet(
        lambda split: opened(place, split, _OPTION, labelled=False),
        lambda split: has_split(place, split, _OPTION),
    )
