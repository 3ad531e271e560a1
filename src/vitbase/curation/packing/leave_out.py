"""Images that a table names, left out of what is packed."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitbase.disk import as_path, open_regular
from vitbase.errors import DataError, first_few
from vitbase.files import plain_name
from vitbase.sources.source import Source
from vitbase.sources.splits import SPLIT_NAMES, Split

_LONGEST = 1 << 30
"""Bytes of a table that is read."""


def without_named(sources: dict[Split, Source], table: str, *, whole: bool) -> dict[Split, Source]:
    """Return sources without the images that a table names.

    Args:
      sources: those that are packed.
      table: FILE.csv with a column `id`, an image's name within the data set, and perhaps a column
        `split`: train, val, or nothing where the name tells it. Other columns are for people.
      whole: whether these are all splits of the data set; else the table may name others' images.
    Raises: DataError if it cannot be read, names an image that is not there or is in both splits,
      or no image would be left of a split.
    """
    known = {
        split: {plain_name(source.name(index)) for index in range(len(source))}
        for split, source in sources.items()
    }
    chosen: dict[Split, set[str]] = {split: set() for split in sources}
    unknown: list[str] = []
    for name, asked in _rows(as_path(table)):
        found = [split for split in sources if asked in (None, split) and name in known[split]]
        if len(found) > 1:
            raise DataError(
                f"--leave_out {table}: '{name}' is the name of a training and of an evaluation "
                "image: give a column 'split' that says train or val."
            )
        if found:
            chosen[found[0]].add(name)
        elif whole or asked in sources:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"--leave_out {table}: {len(unknown):,} of its images are not in the data: "
            f"{first_few(unknown, count=False)}. Is it of another data set?"
        )
    return {
        split: _without(source, chosen[split], table, split) for split, source in sources.items()
    }


def _without(source: Source, names: set[str], table: str, split: Split) -> Source:
    if not names:
        return source
    left = [plain_name(source.name(index)) not in names for index in range(len(source))]
    kept = np.flatnonzero(left)
    if not len(kept):
        raise DataError(f"--leave_out {table}: no image of '{split}' would be left.")
    gone = len(source) - len(kept)
    note = f"{gone:,} of {len(source):,} images are left out, as {table} says."
    return dataclasses.replace(source.take(kept), notes=(*source.notes, note))


def _rows(path: Path) -> Iterator[tuple[str, Split | None]]:
    """Yield each image's name and split. Raises: DataError."""
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=open_regular) as file:
            if os.fstat(file.fileno()).st_size > _LONGEST:
                raise DataError(f"--leave_out {path}: it has more than {_LONGEST:,} bytes.")
            rows = csv.DictReader(file)
            if "id" not in (rows.fieldnames or ()):
                raise DataError(f"--leave_out {path}: it has no column 'id'.")
            for row in rows:
                split = row.get("split") or None
                if split is not None and split not in SPLIT_NAMES:
                    raise DataError(
                        f"--leave_out {path}, line {rows.line_num}: split is '{split}', expected "
                        "train, val or nothing."
                    )
                if row["id"]:
                    yield row["id"], "train" if split == "train" else "val" if split else None
    except OSError as error:
        raise DataError(f"--leave_out {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--leave_out {path}: it is no CSV in UTF-8 ({error})") from None
