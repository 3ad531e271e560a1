"""Data sets of Hugging Face: on its hub, saved to a folder, or as Parquet or Arrow files.

The library ``datasets`` maps the files into memory; an image is its encoded bytes, decoded here
as any other. Labels are read once, as a column.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import LONGEST_IMAGE, list_folder, read_regular
from vitbase.errors import DataError, ImageError
from vitbase.sources.source import (
    UNKNOWN_SIZE,
    Images,
    Labels,
    Source,
    no_labels,
    refuse_repeated,
    unlabelled,
)
from vitbase.sources.splits import SPLIT_NAMES, SPLITS_TOLD, Split, find_split, split_word

PREFIX = "hf:"
IMAGE_NAMES = ("image", "img", "jpg", "png")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "classes", "target")
_SAVED = {"dataset_info.json", "dataset_dict.json"}
_FILE = re.compile(r"(?P<split>.*?)([-_.]\d+.*)?\.(?P<kind>parquet|arrow)")
_UNLABELLED = -1
_WITHOUT_SCRIPTS = 4  # the first version of datasets that runs no program of a data set


@dataclass(frozen=True)
class Rows(Images):
    """The images of a data set of Hugging Face."""

    place: str
    data: Any  # datasets.Dataset, of the image column alone, not decoded
    column: str

    def read(self, row: int) -> bytes:
        try:
            image = self.data[row][self.column]
            if image is not None and image["bytes"] is not None:
                return bytes(image["bytes"])
            if image is not None:
                return read_regular(image["path"], LONGEST_IMAGE)
        except Exception as error:  # of the disk, pyarrow, or the library itself
            raise ImageError(f"cannot be read: {error}") from None
        raise ImageError("there is no image in this row")

    def name(self, row: int) -> str:
        return str(row)

    def size(self, row: int) -> int:
        return int(self._sizes[row])

    def describe(self, row: int) -> str:
        return f"{self.place}[{row}]"

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """The bytes of every image; UNKNOWN_SIZE for files of their own."""
        compute = importlib.import_module("pyarrow.compute")  # comes with datasets
        images = self.data.with_format("arrow")[:].column(self.column)
        sizes = compute.binary_length(compute.struct_field(images, "bytes"))
        found: NDArray[np.int64] = compute.fill_null(sizes, UNKNOWN_SIZE).to_numpy()
        return found


def holds_dataset(folder: Path) -> bool:
    """Tell whether a folder is a saved data set, or holds Parquet or Arrow files."""
    folders, files, _ = list_folder(folder)
    if _SAVED & set(files) or any(_FILE.fullmatch(name) for name in files):
        return True
    return "data" in folders and any(map(_FILE.fullmatch, list_folder(folder / "data").files))


def is_whole(folder: Path) -> bool:
    """Tell whether it is a saved data set, or a file names its split, as strays do not."""
    _, files, _ = list_folder(folder)
    found = (match for match in map(_FILE.fullmatch, files) if match)
    return bool(_SAVED & set(files)) or any(split_word(match["split"]) for match in found)


def has_split(place: str, split: Split, option: str) -> bool:
    """Tell whether a data set has a split by name.

    Args: and Raises: as of :func:`open_dataset`.
    """
    return find_split(split, _load(place, option)) is not None


def open_dataset(place: str, split: Split, option: str, *, labelled: bool = True) -> Source:
    """Open a split of a data set.

    Args:
      place: "hf:owner/name", "hf:owner/name:config", or a folder, either saved by
        ``save_to_disk`` or with files such as ``train-00000-of-00002.parquet``, or with these in
        its folder ``data``.
      split: "train" or "val", by any of its names; rows of no split are taken for either.
      option: the option that named it, for messages.
      labelled: whether labels are needed; else they are not looked at.
    Raises: DataError if the library is missing, or there is no such data set, split, image column
      or label column.
    """
    splits = _load(place, option)
    name = "" if "" in splits else find_split(split, splits)
    if name is None:
        raise DataError(
            f"--{option} {place}: there is no split {' or '.join(SPLIT_NAMES[split])}; it has "
            f"{', '.join(splits)}."
        )
    data = splits[name]
    where = f"{place} ({name})" if name else place
    try:
        return _source(data, where, option, labelled=labelled)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, of columns that are not what they are said to be
        text = " ".join(str(error).split())[:300]
        raise DataError(f"--{option} {where} cannot be read: {text}") from None


def _source(data: Any, where: str, option: str, *, labelled: bool) -> Source:
    library = _library(option, where)
    image = _find_image(data.features, where, option, library)
    labels, class_names = unlabelled(len(data))
    if labelled:
        label = _find_label(data.features, where, option, library)
        labels, class_names = _read_labels(data, label, where, option)
    undecoded = data.select_columns([image]).cast_column(image, library.Image(decode=False))
    images = Rows(where, undecoded.with_format(None), image)
    return Source(images, np.arange(len(data)), labels, class_names)


def _library(option: str, place: str) -> Any:
    try:
        library = importlib.import_module("datasets")
        if int(str(library.__version__).partition(".")[0]) < _WITHOUT_SCRIPTS:
            raise DataError(
                f"--{option} {place}: datasets {library.__version__} would run a program that a "
                f"data set brings along. pip install 'datasets>={_WITHOUT_SCRIPTS}'."
            )
        return library
    except ImportError as error:
        raise DataError(
            f"--{option} {place} is a data set of Hugging Face, which needs the library datasets: "
            f"pip install 'vitbase[datasets]' ({error})."
        ) from None


def _load(place: str, option: str) -> dict[str, Any]:
    """Return split name -> rows; the name is empty if they are of no split."""
    library = _library(option, place)
    try:
        with _bars_in_a_terminal(library):
            return _load_with(library, place, option)
    except DataError:
        raise
    except Exception as error:  # of the network, the hub, pyarrow, or the library itself
        text = " ".join(str(error).split())[:300]
        raise DataError(f"--{option} {place} cannot be opened: {text}") from None


def _load_with(library: Any, place: str, option: str) -> dict[str, Any]:
    if place.startswith(PREFIX):
        name, _, config = place.removeprefix(PREFIX).partition(":")
        return dict(library.load_dataset(name, config or None))
    folder = Path(place)
    if _SAVED & set(list_folder(folder).files):
        found = library.load_from_disk(str(folder))
        return dict(found) if isinstance(found, dict) else {"": found}
    kind, files = _files_by_split(folder, option)
    if files.keys() == {""}:
        return {"": library.load_dataset(kind, data_files=files[""], split="train")}
    return dict(library.load_dataset(kind, data_files=files))


@contextmanager
def _bars_in_a_terminal(library: Any) -> Iterator[None]:
    """Keep the library's progress bars out of log files."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    if watched or library.are_progress_bars_disabled():
        yield
        return
    library.disable_progress_bars()
    try:
        yield
    finally:
        library.enable_progress_bars()


def _files_by_split(folder: Path, option: str) -> tuple[str, dict[str, list[str]]]:
    """Return the kind of a folder's files, and the files by the split that their names begin with.

    Raises: DataError if some say a split and others do not, or there are two kinds.
    """
    if not any(map(_FILE.fullmatch, list_folder(folder).files)):
        folder = folder / "data"
    files: dict[str, list[str]] = {}
    kinds = set()
    for name in list_folder(folder).files:
        match = _FILE.fullmatch(name)
        if match:
            split = match["split"].lower()
            kinds.add(match["kind"])
            files.setdefault(split if split_word(split) else "", []).append(str(folder / name))
    if "" in files and len(files) > 1:
        stray = Path(files[""][0]).name
        raise DataError(
            f"--{option} {folder}: the name {stray} does not begin with a split "
            f"({SPLITS_TOLD}), others do."
        )
    if len(kinds) > 1:
        raise DataError(
            f"--{option} {folder} holds Parquet and Arrow files; keep one kind in a folder."
        )
    return kinds.pop(), files


def _find_image(features: Any, where: str, option: str, library: Any) -> str:
    images = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    images = images or [
        name
        for name, kind in features.items()
        if isinstance(kind, dict) and {"bytes", "path"} <= kind.keys()
    ]
    return _choose("images", images, IMAGE_NAMES, features, f"--{option} {where}")


def _find_label(features: Any, where: str, option: str, library: Any) -> str:
    classes = [
        name for name, kind in features.items() if isinstance(_inner(kind), library.ClassLabel)
    ]
    # Numbers and words may be anything; they are labels where the column says so.
    plain = [name for name in LABEL_NAMES if getattr(_inner(features.get(name)), "dtype", None)]
    return _choose("labels", classes or plain, LABEL_NAMES, features, f"--{option} {where}")


def _inner(kind: Any) -> Any:
    """Return what a list holds, or the thing itself."""
    if isinstance(kind, list):  # how older versions write it
        return kind[0]
    return getattr(kind, "feature", kind)


def _choose(
    what: str, found: Sequence[str], preferred: Sequence[str], columns: Iterable[str], where: str
) -> str:
    """Return the only column found, or the most preferred. Raises: DataError if neither is."""
    if len(found) == 1:
        return found[0]
    chosen = next((name for name in preferred if name in found), None)
    if chosen is None:
        none = "no column of them" if what == "images" else f"no {what}"
        told = f"several columns of {what} ({', '.join(found)})" if found else none
        raise DataError(
            f"{where}: {told}; its columns are {', '.join(columns)}. "
            f"Call that of the {what} '{preferred[0]}'."
        )
    return chosen


def _read_labels(data: Any, column: str, where: str, option: str) -> tuple[Labels, tuple[str, ...]]:
    """Read a column of labels: int64 [N], or float32 [N, C] if an image has a list of them."""
    kind = data.features[column]
    values = data.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    names = getattr(_inner(kind), "names", None)
    several = _inner(kind) is not kind
    flat = [label for labels in values for label in labels or ()] if several else values
    unlabelled = sum(label is None or label == _UNLABELLED for label in flat)
    if unlabelled:
        raise DataError(
            f"--{option} {where}: {unlabelled} of {len(values)} images have no label in column "
            f"'{column}', as in a test split whose labels are kept secret. Give another one."
        )
    if names is None:
        present = sorted(set(flat))
        number = {label: place for place, label in enumerate(present)}
    else:
        present = names
        number = {place: place for place in range(len(names))}
    strange = next((label for label in flat if label not in number), None)
    if strange is not None:
        raise DataError(
            f"--{option} {where}: the label {strange} in column '{column}' is out of range: it has "
            f"{len(present)} class names."
        )
    names = [str(label) for label in present]
    refuse_repeated(names, f"--{option} {where}")
    if not several:
        return np.array([number[label] for label in flat], np.int64), tuple(names)
    hot = no_labels(len(values), len(names), f"--{option} {where}")
    for row, labels in enumerate(values):
        hot[row, [number[label] for label in labels or ()]] = 1
    return hot, tuple(names)
