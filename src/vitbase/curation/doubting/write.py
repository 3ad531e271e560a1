"""What was doubted, as a person reads it: lines, and a folder of tables and contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vitbase.curation.doubting.doubt import Doubts, Item
from vitbase.curation.doubting.images import Found, thumbnail
from vitbase.curation.doubting.sheets import COLUMNS, SIDE, Cell, draw_sheet
from vitbase.curation.doubting.tables import (
    Splits,
    duplicate_rows,
    label_rows,
    leave_out_rows,
    outlier_rows,
    report_rows,
    write_table,
)
from vitbase.errors import DataError
from vitbase.files import json_line, refuse_full, write_whole, written_whole

SHEET_ROWS = 10
"""Of a contact sheet: 60 images, or 10 groups of near-duplicates."""

_PAIRS = 5


def write_doubts(doubts: Doubts, out: Path, found: Mapping[str, Found]) -> list[str]:
    """Write tables and, of images that were found, contact sheets.

    Args:
      doubts: what was found.
      out: a folder that is empty, or not there; it appears whole.
      found: of each file, where its images are; none: no contact sheets.
    Returns: the names of the files.
    Raises: DataError if the folder cannot be written.
    """
    refuse_full(out)
    splits = {file: place.split for file, place in found.items()}
    files: dict[str, bytes | str] = {}
    if doubts.labels is not None:
        files["labels.csv"] = write_table("labels", label_rows(doubts, splits))
    if doubts.groups is not None:
        files["duplicates.csv"] = write_table("duplicates", duplicate_rows(doubts, splits))
    if doubts.outliers is not None:
        files["outliers.csv"] = write_table("outliers", outlier_rows(doubts, splits))
    files["leave_out.csv"] = write_table("leave_out", leave_out_rows(doubts, splits))
    files["doubts.json"] = json_line([*report_rows(doubts)]) + "\n"
    if found:
        files |= dict(_sheets(doubts, found))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(out) as beside:
            beside.mkdir()
            for name, content in files.items():
                write_whole(beside / name, content)
    except OSError as error:
        raise DataError(f"Cannot write --out {out}: {error.strerror or error}") from None
    return [*files]


def _sheets(doubts: Doubts, found: Mapping[str, Found]) -> Iterator[tuple[str, bytes]]:
    """Yield the names of contact sheets, and these as PNG."""

    def cell(item: Item, *lines: str, marked: bool = False) -> Cell:
        place = found[item.file]
        pixels = thumbnail(place.source, int(place.indices[item.index]), SIDE)
        unread = () if pixels is not None else ("cannot be read",)
        return Cell(pixels, (doubts.of(item).ids[item.index], *lines, *unread), marked)

    most = SHEET_ROWS * COLUMNS
    if doubts.labels is not None and len(doubts.labels.suspects):
        places = [Item("predictions", index) for index in doubts.labels.suspects[:most].tolist()]
        cells = [
            cell(item, f"labelled {row['label']} {row['p_label']:.1%}", _likely(row))
            for item, row in zip(places, label_rows(doubts, {}), strict=False)
        ]
        title = f"Labels that are likely wrong: {_of(len(cells), len(doubts.labels.suspects))}"
        yield "labels.png", draw_sheet(title, _in_rows(cells))
    if doubts.groups:
        rows = []
        for number, group in enumerate(doubts.groups[:SHEET_ROWS], 1):
            gone, more = doubts.to_leave_out(group), len(group) - COLUMNS
            rows.append(
                [
                    cell(item, *_member(doubts, number, item, more), marked=item in gone)
                    for item, _ in _both_files(group)
                ]
            )
        title = (
            f"Near-duplicates, a group a row: {_of(len(rows), len(doubts.groups))}; "
            "red: to leave out"
        )
        yield "duplicates.png", draw_sheet(title, rows)
    if doubts.outliers is not None and len(doubts.outliers.far):
        places = [doubts.items[place] for place in doubts.outliers.far[:most].tolist()]
        cells = [
            cell(item, f"{row['label']}; seen as {row['prediction']}", _far(row))
            for item, row in zip(places, outlier_rows(doubts, {}), strict=False)
        ]
        title = f"Far from all others: {_of(len(cells), len(doubts.outliers.far))}"
        yield "outliers.png", draw_sheet(title, _in_rows(cells))


def _likely(row: Mapping[str, Any]) -> str:
    return f"likely {row['likely']} {row['p_likely']:.1%}"


def _far(row: Mapping[str, Any]) -> str:
    return f"{row['times_median']:.1f} times the median" if row["times_median"] else "far"


def _member(doubts: Doubts, number: int, item: Item, more: int) -> tuple[str, str]:
    where = "training" if item.file == "train" else "held out"
    label = doubts.of(item).class_name(doubts.label(item)) or "label unknown"
    return label, f"group {number}, {where}" + (f", {more} more" if more > 0 else "")


def _both_files(group: Sequence[tuple[Item, float]]) -> list[tuple[Item, float]]:
    """Return as many images of a group as a row has room for, of both files if it has both."""
    if len(group) <= COLUMNS:
        return [*group]
    first = [pair for pair in group if pair[0].file == group[0][0].file]
    others = [pair for pair in group if pair[0].file != group[0][0].file]
    shown = min(len(others), max(COLUMNS // 2, COLUMNS - len(first)))
    return first[: COLUMNS - shown] + others[:shown]


def _in_rows(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    return [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]


def _of(shown: int, count: int) -> str:
    return f"{shown:,} of {count:,}" if shown < count else f"{count:,}"


def doubt_lines(doubts: Doubts, limit: int) -> Iterator[str]:
    """Yield what a person wants to know, up to a limit of each kind."""
    given, found = doubts.predictions, doubts.labels
    if found is not None:
        count = len(found.suspects)
        yield (
            f"labels: {count:,} of {found.looked_at:,} images are likely labelled wrong "
            f"({count / found.looked_at:.1%})"
            + (
                f"; {found.undecided:,} more may be, as far as the five most probable classes tell"
                if found.undecided
                else ""
            )
        )
        pairs = found.pairs(given.labels)
        for label, likely, images in pairs[:_PAIRS]:
            names = given.class_name(label), given.class_name(likely)
            yield f"  labelled '{names[0]}', likely '{names[1]}': {images:,}"
        yield from _some(
            (
                f"  {row['id']}: labelled '{row['label']}' ({row['p_label']:.1%}), likely "
                f"'{row['likely']}' ({row['p_likely']:.1%})"
                for row in label_rows(doubts, {})
            ),
            count,
            limit,
        )
    if doubts.groups is not None:
        groups = doubts.groups
        across, disagree = (sum(map(test, groups)) for test in (doubts.spans, doubts.disagrees))
        yield (
            f"near-duplicates: {len(groups):,} groups of {sum(map(len, groups)):,} images"
            + ("" if doubts.similarity is None else f" (cosine from {doubts.similarity:g})")
            + (f"; {across:,} groups across training and held-out images" if doubts.train else "")
            + (f"; {disagree:,} of several labels" if disagree else "")
        )
        yield from _some((f"  {_told(doubts, group)}" for group in groups), len(groups), limit)
    if doubts.outliers is not None:
        far = len(doubts.outliers.far)
        yield f"far from all others: {far:,} of {len(doubts.items):,} images"
        yield from _some(
            (
                f"  {row['id']}: '{row['label']}', {_far(row)} distance of its neighbours"
                for row in outlier_rows(doubts, {})
            ),
            far,
            limit,
        )
    yield from doubts.notes


def _some(lines: Iterable[str], count: int, limit: int) -> Iterator[str]:
    yield from islice(lines, limit)
    if count > limit:
        yield f"  … and {count - limit:,} more"


def _told(doubts: Doubts, group: Sequence[tuple[Item, float]]) -> str:
    named = []
    for item, _ in _both_files(group):
        label = doubts.of(item).class_name(doubts.label(item))
        where = " in training" if item.file == "train" else ""
        named.append(f"{doubts.of(item).ids[item.index]}{where} ('{label}')")
    more = len(group) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def doubts_to_dict(doubts: Doubts, limit: int, splits: Splits) -> dict[str, Any]:
    """The same as plain values, for JSON; rows of tables, up to a limit of each kind."""
    result: dict[str, Any] = {"notes": [*doubts.notes]}
    given, found = doubts.predictions, doubts.labels
    if found is not None:
        result["labels"] = {
            "looked_at": found.looked_at,
            "likely_wrong": len(found.suspects),
            "undecided": found.undecided,
            "pairs": [
                {"label": given.class_name(label), "likely": given.class_name(likely), "images": n}
                for label, likely, n in found.pairs(given.labels)
            ],
            "images": [*islice(label_rows(doubts, splits), limit)],
        }
    if doubts.groups is not None:
        result["duplicates"] = {
            "groups": len(doubts.groups),
            "images": sum(map(len, doubts.groups)),
            "across": sum(map(doubts.spans, doubts.groups)),
            "of_several_labels": sum(map(doubts.disagrees, doubts.groups)),
            "similarity": doubts.similarity,
            "rows": [row for row in duplicate_rows(doubts, splits) if row["group"] <= limit],
        }
    if doubts.outliers is not None:
        result["outliers"] = {
            "looked_at": len(doubts.items),
            "far": len(doubts.outliers.far),
            "median_distance": doubts.outliers.median,
            "far_above": doubts.outliers.limit,
            "images": [*islice(outlier_rows(doubts, splits), limit)],
        }
    result["leave_out"] = sum(1 for _ in leave_out_rows(doubts, splits))
    return result
