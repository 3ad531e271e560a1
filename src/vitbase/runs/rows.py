"""The rows of `metrics.jsonl`, read from a file that anything may have happened to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitbase.disk import find_strange, open_regular
from vitbase.errors import CheckpointError
from vitbase.files import parse_json, written_whole

_LONGEST_ROW = 1 << 16
"""Bytes of a line; what we write has some hundreds."""


def cut_rows_back(metrics_file: Path, updates: int) -> list[str]:
    """Drop the rows after an update, and what is no row.

    Returns: a line for the log, if rows of before were lost, or what is no row was dropped.
    Raises: CheckpointError if there is something else than a file; OSError.
    """
    if _is_missing(metrics_file):
        metrics_file.unlink(missing_ok=True)  # a link that leads nowhere: nothing is made there
        return [f"{metrics_file} is missing: the rows of before are lost."] if updates else []
    kept, after, lost, first = 0, 0, 0, 0
    with (
        written_whole(metrics_file) as beside,
        beside.open("wb") as out,
        open(metrics_file, "rb", opener=open_regular) as file,
    ):
        for number, line in enumerate(_lines(file), 1):
            row = _as_row(line)
            if row is None:
                lost, first = lost + 1, first or number
            elif row["step"] <= updates:
                out.write(line + b"\n")
                kept += 1
            else:
                after += 1
    lines = []
    if lost:
        of = "1 line" if lost == 1 else f"{lost} lines"
        lines.append(f"{metrics_file}: {of} dropped that hold no row, the first is line {first}.")
    if after and not updates:
        lines.append(f"{metrics_file}: {after} rows dropped, of a start that left no checkpoint.")
    if updates and not kept:
        lines.append(f"{metrics_file} holds no row up to update {updates}: those are lost.")
    return lines


def find_evaluation(metrics_file: Path, updates: int) -> dict[str, float] | None:
    """Return the last evaluation row of an update; None if there is none.

    What is null there was no number: the mean over no class.

    Raises: CheckpointError if there is something else than a file, or it cannot be read.
    """
    found: dict[str, float] | None = None
    try:
        if _is_missing(metrics_file):
            return None
        with open(metrics_file, "rb", opener=open_regular) as file:
            for line in _lines(file):
                row = _as_row(line) if b'"eval_loss"' in line else None
                if row is not None and row["step"] == updates and _are_numbers(row):
                    found = {k: math.nan if v is None else v for k, v in row.items()}
    except OSError as error:
        raise CheckpointError(f"Cannot read {metrics_file}: {error.strerror}.") from None
    return found


def _is_missing(metrics_file: Path) -> bool:
    """Whether there is no file. Raises: CheckpointError if there is something else; OSError."""
    strange = find_strange(metrics_file)
    if strange in {"is missing", "is a link that leads nowhere"}:
        return True
    if strange is not None:
        raise CheckpointError(f"{metrics_file} {strange}, not a file of rows: move it away.")
    return False


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line without its end; one that is too long as its beginning, which is no row."""
    while line := file.readline(_LONGEST_ROW + 1):
        part = line
        while part and not part.endswith(b"\n") and len(part) > _LONGEST_ROW:
            part = file.readline(_LONGEST_ROW + 1)
        yield line.removesuffix(b"\n")


def _as_row(line: bytes) -> dict[str, Any] | None:
    """Return a line as a row, which has a number of updates; None if it is none."""
    try:
        row = parse_json(line, longest=_LONGEST_ROW)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return None
    return row


def _are_numbers(row: dict[str, Any]) -> bool:
    return all(
        value is None or type(value) in (int, float)
        for name, value in row.items()
        if name.startswith("eval_")
    )


def read_rows(metrics_file: Path, most: int = 64 << 20) -> tuple[list[dict[str, Any]], list[str]]:
    """Read all rows, up to so many bytes of them.

    Returns: the rows; a line for each thing that was passed over. Without a file there are none.
    Raises: CheckpointError if there is something else than a file, or it cannot be read.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    lost, first, size = 0, 0, 0
    try:
        if _is_missing(metrics_file):
            return rows, notes
        with open(metrics_file, "rb", opener=open_regular) as file:
            for number, line in enumerate(_lines(file), 1):
                size += len(line) + 1
                if size > most:
                    notes.append(f"{metrics_file}: what comes after {most:,} bytes is not read.")
                    break
                row = _as_row(line)
                if row is None:
                    lost, first = lost + 1, first or number
                else:
                    rows.append(row)
    except OSError as error:
        raise CheckpointError(f"Cannot read {metrics_file}: {error.strerror}.") from None
    if lost:
        of = "1 line" if lost == 1 else f"{lost} lines"
        notes.append(f"{metrics_file}: {of} passed over that hold no row, the first is {first}.")
    return rows, notes
