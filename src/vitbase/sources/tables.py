"""Images listed in a CSV or TSV file: a path, a label or several, and perhaps the split.

Columns are found by their names, those of one kind in the order of preference written here.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import list_folder, open_regular
from vitbase.errors import DataError, first_few
from vitbase.sources.folders import IMAGE_SUFFIXES, build_source, is_image_name
from vitbase.sources.source import Labels, Source, no_labels, unlabelled
from vitbase.sources.splits import SPLIT_NAMES, SPLIT_WORDS, SPLITS_TOLD, Split, find_split

TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
PATH_COLUMNS = (
    *("path", "filepath", "file_path", "image_path", "filename", "file_name", "file"),
    *("image", "image_id"),
)
LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "subset")
SEPARATORS = (";", "|")


class _Columns(NamedTuple):
    """Where the columns are; -1 or none if there is no such column."""

    width: int
    told: str  # the header, for messages
    path: int
    label: int
    split: int
    classes: dict[str, int]  # of the classes that have a column each


@dataclass(frozen=True)
class _Table:
    """What is needed of the rows of a file."""

    path: Path
    lines: list[int]  # where each row stands in the file
    names: list[str]  # of the images, as given but for superfluous dots and slashes
    labels: list[str]  # cells, if there is such a column
    splits: list[str]  # cells in lower case, if there is such a column
    bits: list[bytes]  # of each row, if classes have a column each
    class_names: tuple[str, ...]  # of these bits
    notes: tuple[str, ...]


def has_split(path: Path, split: Split, option: str) -> bool:
    """Tell whether a table says by a column which images are of a split.

    Args:
      path: the file.
      split: "train" or "val".
      option: the option that named the file, for messages.
    Raises: DataError as :func:`read_table`.
    """
    with _opened(path, option) as rows:
        _, first = next(rows, (0, []))
        if not first:
            raise _empty(path, option)
        columns, _, _ = _find_columns(path, option, first, labelled=False)
        if columns.split < 0:
            return False
        words = (row[columns.split].strip() for _, row in rows if len(row) == columns.width)
        return find_split(split, words) is not None


def read_table(path: Path, split: Split, option: str, *, labelled: bool = True) -> Source:
    """Read the images that a table lists, all of them or those of a split.

    Args:
      path: a file .csv or .tsv; relative paths in it are relative to its folder.
      split: "train" or "val"; without a column that says it, every image is of every split.
      option: the option that named the file, for messages.
      labelled: whether labels are needed; else they are not looked at.
    Returns: the images in the table's order, their classes sorted (numbers by value). Labels are
      float32 [N, C] if any image of the table has several, or a column per class.
    Raises: DataError naming the file, the line and what is wrong.
    """
    with _opened(path, option) as rows:
        table = _read_rows(path, option, rows, labelled=labelled)
    labels, class_names = unlabelled(len(table.names))
    notes: tuple[str, ...] = ()
    if labelled:
        labels, class_names, notes = _read_labels(table)
        _refuse_repeated(table)
    names = table.names
    if table.splits:
        word = _split_word(table, split)
        if word is None:
            raise DataError(
                f"--{option} {path}: no row is of split {' or '.join(SPLIT_NAMES[split])}."
            )
        kept = [place for place, cell in enumerate(table.splits) if cell == word]
        labels, names = labels[kept], [names[place] for place in kept]
    names = _find_files(table, names)
    return build_source(path.parent, names, labels, class_names, (*table.notes, *notes))


@contextmanager
def _opened(path: Path, option: str) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Open a table for its rows that are not blank, with the lines they end in."""
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=open_regular) as file:
            reader = csv.reader(file, delimiter=TABLE_SUFFIXES[path.suffix.lower()])
            yield ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read --{option} {path}: {error}") from None


def _empty(path: Path, option: str) -> DataError:
    return DataError(f"--{option} {path} is empty: expected a header, and a row for each image.")


def _read_rows(
    path: Path, option: str, rows: Iterator[tuple[int, list[str]]], *, labelled: bool
) -> _Table:
    line, first = next(rows, (0, []))
    if not first:
        raise _empty(path, option)
    columns, has_header, notes = _find_columns(path, option, first, labelled=labelled)
    if not has_header:
        rows = chain([(line, first)], rows)
    table = _Table(path, [], [], [], [], [], tuple(columns.classes), notes)
    for line, row in rows:
        if len(row) != columns.width:
            raise DataError(
                f"{path}:{line} has {len(row)} columns, the first line {columns.width}: "
                f"'{','.join(row)[:60]}'."
            )
        table.lines.append(line)
        table.names.append(os.path.normpath(row[columns.path].strip()))
        if columns.label >= 0:
            table.labels.append(sys.intern(row[columns.label].strip()))
        elif columns.classes:
            table.bits.append(_read_bits(path, option, line, row, columns))
        if columns.split >= 0:
            table.splits.append(sys.intern(row[columns.split].strip().lower()))
    if not table.lines:
        raise DataError(f"--{option} {path} has a header, but no rows.")
    return table


def _find_columns(
    path: Path, option: str, first_row: Sequence[str], *, labelled: bool
) -> tuple[_Columns, bool, tuple[str, ...]]:
    """Return where the columns are, whether the first row is a header, and notes."""
    first = [cell.strip() for cell in first_row]
    header = [cell.lower() for cell in first]
    images, others = _find(header, PATH_COLUMNS)
    if images < 0 and len(header) == 2 and sum(map(is_image_name, header)) == 1:
        images = [is_image_name(cell) for cell in header].index(True)
        return _Columns(2, "", images, 1 - images, -1, {}), False, ()
    told = f"Its header is '{','.join(first)[:80]}'"
    if images < 0:
        raise DataError(
            f"--{option} {path}: no column of images. {told}; call the column one of "
            f"{', '.join(PATH_COLUMNS)}."
        )
    label, other_labels = _find(header, LABEL_COLUMNS)
    split, _ = _find(header, SPLIT_COLUMNS)
    notes = tuple(
        f"{path}: column '{header[taken]}' is used, '{header[other]}' is not."
        for taken, found in ((images, others), (label, other_labels))
        for other in found
    )
    classes: dict[str, int] = {}
    if label < 0 and labelled:
        taken = (images, split, *others)
        places = {name: place for place, name in enumerate(first) if place not in taken}
        if not places:
            raise _no_labels(path, option, told)
        if len(set(first)) < len(first):
            raise DataError(f"--{option} {path}: two columns have the same name. {told}.")
        classes = {name: places[name] for name in _sorted(places)}
    return _Columns(len(first), told, images, label, split, classes), True, notes


def _no_labels(path: Path, option: str, told: str) -> DataError:
    return DataError(
        f"--{option} {path}: no column of labels. {told}; call the column one of "
        f"{', '.join(LABEL_COLUMNS)}, or give every class a column of 0 and 1."
    )


_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def _read_bits(path: Path, option: str, line: int, row: list[str], columns: _Columns) -> bytes:
    try:
        return bytes([_BITS[row[place].strip().lower()] for place in columns.classes.values()])
    except KeyError as error:
        told = f"{columns.told}, and line {line} has {str(error)[:60]}, neither 0 nor 1"
        raise _no_labels(path, option, told) from None


def _find(header: Sequence[str], known: Iterable[str]) -> tuple[int, list[int]]:
    """Return the column with the first of the known names, and those with others of them."""
    found = [header.index(name) for name in known if name in header]
    return (found[0], found[1:]) if found else (-1, [])


def _split_word(table: _Table, split: Split) -> str | None:
    """Return the word that marks a split in this table. Raises: DataError on an unknown one."""
    present = set(table.splits)
    unknown = present - SPLIT_WORDS
    if unknown:
        place = next(place for place, word in enumerate(table.splits) if word in unknown)
        raise DataError(
            f"{table.path}:{table.lines[place]}: '{table.splits[place][:40]}' is no split; known "
            f"are {SPLITS_TOLD}."
        )
    return find_split(split, present)


def _read_labels(table: _Table) -> tuple[Labels, tuple[str, ...], tuple[str, ...]]:
    """Return the labels of all rows, the class names, and notes."""
    if table.bits:
        hot = np.frombuffer(b"".join(table.bits), np.uint8).reshape(len(table.bits), -1)
        without = int((hot.sum(1) == 0).sum())
        notes = (f"{table.path}: {without} images are of no class.",) if without else ()
        return hot.astype(np.float32), table.class_names, notes
    cells = table.labels
    several = any(separator in cell for cell in set(cells) for separator in SEPARATORS)
    number_of: dict[str, int] = {}  # in the order of appearance
    places: list[int] = []
    numbers: list[int] = []
    for place, cell in enumerate(cells):
        for label in cell.replace("|", ";").split(";") if several else (cell,):
            if not label.strip():
                raise DataError(f"{table.path}:{table.lines[place]}: the label is empty.")
            places.append(place)
            numbers.append(number_of.setdefault(label.strip(), len(number_of)))
    names = _sorted(number_of)
    rank = np.zeros(len(names), np.int64)
    rank[[number_of[name] for name in names]] = np.arange(len(names))
    columns_of: NDArray[np.int64] = rank[numbers]
    if not several:
        return columns_of, names, ()
    labels = no_labels(len(cells), len(names), table.path)
    labels[places, columns_of] = 1
    return labels, names, ()


_LONGEST_NUMBER = 100
"""Digits; Python refuses to read numbers of thousands."""


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: numbers by value, so that class 10 does not come before class 2."""
    names = list(names)
    if all(name.isdecimal() and len(name) < _LONGEST_NUMBER for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _refuse_repeated(table: _Table) -> None:
    if len(set(table.names)) == len(table.names):
        return
    first: dict[str, int] = {}
    for line, name in zip(table.lines, table.names, strict=True):
        if first.setdefault(name, line) != line:
            raise DataError(
                f"{table.path}:{line}: '{name}' stands in line {first[name]} already. An image has "
                f"one row; write several labels with '{SEPARATORS[0]}' between them."
            )


def _find_files(table: _Table, names: Sequence[str]) -> list[str]:
    """Return the names as they are on disk: an image_id may lack the suffix.

    Folders are listed once each, rather than asked for every file.
    Raises: DataError if files are not there.
    """
    root = table.path.parent
    listed: dict[str, set[str]] = {}
    found, absent = [], []
    for name in names:
        folder, file = os.path.split(name)
        if folder not in listed:
            listed[folder] = set()
            with suppress(DataError):
                listed[folder].update(list_folder(root / folder).files)
        matches = [file] if file in listed[folder] else []
        if not matches and not is_image_name(file):
            matches = [file + suffix for suffix in _SUFFIXES if file + suffix in listed[folder]]
        if not matches and os.path.isfile(root / name):  # hidden, or case does not matter here
            matches = [file]
        if not matches:
            absent.append(name)
        found.append(os.path.join(folder, matches[0] if matches else file).replace(os.sep, "/"))
    if absent:
        raise DataError(
            f"{table.path}: {len(absent)} of {len(names)} images are not there: "
            f"{first_few(absent, count=False)}. "
            f"Paths are relative to {root}."
        )
    return found


_SUFFIXES = sorted({*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES)})
