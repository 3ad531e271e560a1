"""What a model said of each image, in a file: Parquet or CSV, written whole, read with bounds.

No torch here: whoever compares or reports reads such a file without it. Parquet holds the facts
about all of it in its schema's metadata, under `vitbase`; CSV in a file beside, `<name>.csv.json`.
Shape legend: N images, K the 5 most probable classes, D width of a feature.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import as_path, open_regular
from vitbase.errors import ConfigError, DataError, shown
from vitbase.evaluation import parquet
from vitbase.files import json_line, plain_name, read_json, write_whole, written_whole

K = 5
COLUMNS = (
    *("id", "label", "label_name", "prediction", "prediction_name"),
    *(f"top{k}" for k in range(1, K + 1)),
    *(f"p{k}" for k in range(1, K + 1)),
    *("p_label", "loss", "readable"),
)
"""Of every file, in this order; Parquet may have `features` besides."""

MOST_IMAGES = parquet.MOST_ROWS
LONGEST_CSV = 1 << 33
"""Bytes of a CSV file that is read: of more images than there may be."""
LONGEST_NAME = parquet.LONGEST_NAME
_LONGEST_LINE = 1 << 17


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of each image of a source, in the source's order.

    Of an image that could not be read there is no prediction: -1, and nan.

    Attributes:
      ids: names of the images within their data set.
      labels: int64 [N]; -1 where an image has not exactly one (see `label_sets`).
      predictions: int64 [N], the most probable class.
      top_K: int64 [N, 5], the most probable classes, best first; -1 where there are fewer.
      p_K: float32 [N, 5], their probabilities; nan where there are fewer.
      p_label: float32 [N], the probability of the label; nan without one.
      loss: float32 [N]
      readable: bool [N]
      classes: names by index; empty if the file does not tell.
      meta: further facts, `weights`, `data`, `images` and `preprocess` among them.
      features: float32 [N, D], what the head read.
      label_sets: of images with any number of labels each: the classes of each.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    top_K: NDArray[np.int64]  # noqa: N815 (its shape)
    p_K: NDArray[np.float32]  # noqa: N815
    p_label: NDArray[np.float32]
    loss: NDArray[np.float32]
    readable: NDArray[np.bool_]
    classes: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None
    label_sets: list[tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def class_name(self, index: int) -> str:
        """Return a class's name; its number where it has none; nothing for -1."""
        if index < 0:
            return ""
        return self.classes[index] if index < len(self.classes) else str(index)

    def _labels_of(self, row: int) -> tuple[int, ...]:
        if self.label_sets is not None:
            return self.label_sets[row]
        label = int(self.labels[row])
        return (label,) if label >= 0 else ()


def check_place(path: Path, *, features: bool) -> None:
    """Check that predictions can be written as a path's name says, before any is computed.

    Raises: ConfigError saying what to do.
    """
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise ConfigError(f"--save_predictions {path}: call the file .parquet or .csv.")
    if suffix == ".csv" and features:
        raise ConfigError(
            f"--save_predictions {path}: CSV has no room for --save_features; call it .parquet."
        )
    if path.is_dir():
        raise ConfigError(f"--save_predictions {path} is a folder.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--save_predictions {path}: there is no folder {path.parent}.")
    if suffix == ".parquet":
        parquet.load_pyarrow(path)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions, whole or not at all, as the suffix says.

    Raises: ConfigError as :func:`check_place`; DataError if the place cannot be written.
    """
    check_place(path, features=predictions.features is not None)
    columns, meta = _columns(predictions), _meta_of(predictions)
    try:
        if path.suffix.lower() == ".csv":
            _write_csv(path, columns, meta)
        else:
            parquet.write_parquet(path, columns, meta, predictions.features)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}") from None


def read_predictions(path: str | Path) -> Predictions:
    """Read predictions that this package, or anybody, has written.

    Raises: DataError naming the file and what is wrong; ConfigError if Parquet cannot be read here.
    """
    path = as_path(path)
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise DataError(f"Predictions are .parquet or .csv; {path} is called otherwise.")
    try:
        if suffix == ".csv":
            return _checked(_from_columns(*_read_csv(path)))
        # Names of classes are among the facts.
        wanted = [name for name in COLUMNS if not name.endswith("_name")]
        return _checked(_from_columns(*parquet.read_parquet(path, wanted)))
    except OSError as error:
        raise DataError(f"Cannot read predictions {path}: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"Cannot read predictions {path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _meta_of(predictions: Predictions) -> dict[str, Any]:
    facts = {**predictions.meta, "classes": [*predictions.classes], "images": len(predictions)}
    return {**facts, "several_labels": predictions.label_sets is not None}


# Columns, from predictions and back.


def _columns(predictions: Predictions) -> dict[str, Sequence[Any]]:
    """Return every column of :data:`COLUMNS` as plain values, None where there is none."""
    p, rows = predictions, range(len(predictions))
    several = p.label_sets is not None
    names = [[plain_name(p.class_name(label)) for label in p._labels_of(row)] for row in rows]
    return {
        "id": [plain_name(name) for name in p.ids],
        "label": [" ".join(map(str, p._labels_of(row))) for row in rows]
        if several
        else _indices(p.labels),
        "label_name": [" ".join(found) for found in names],
        "prediction": _indices(p.predictions),
        "prediction_name": [plain_name(p.class_name(index)) for index in p.predictions.tolist()],
        **{f"top{k + 1}": _indices(p.top_K[:, k]) for k in range(K)},
        **{f"p{k + 1}": _numbers(p.p_K[:, k]) for k in range(K)},
        "p_label": _numbers(p.p_label),
        "loss": _numbers(p.loss),
        "readable": p.readable.tolist(),
    }


def _indices(values_N: NDArray[np.int64]) -> list[int | None]:
    return [value if value >= 0 else None for value in values_N.tolist()]


def _numbers(values_N: NDArray[np.float32]) -> list[np.float32 | None]:
    return [None if np.isnan(value) else value for value in values_N.astype(np.float32)]


def _from_columns(
    columns: Mapping[str, Sequence[Any]], facts: Any, features: NDArray[np.float32] | None = None
) -> Predictions:
    """Build predictions of columns that were read. Raises: ValueError saying what does not fit."""
    if not isinstance(facts, dict):
        raise ValueError("the facts about it are no object of JSON")
    meta = dict(facts)
    classes = meta.pop("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    several = meta.pop("several_labels", False) is True
    count = len(columns["id"])
    if meta.get("images", count) != count:
        raise ValueError(f"it has {count} images, and should have {shown(meta['images'], 20)}")
    labels = [_label_set(cell) for cell in columns["label"]] if several else None

    def column(kind: Callable[..., Any], name: str) -> Any:
        return kind(columns[name], name)

    return Predictions(
        ids=list(columns["id"]),
        labels=np.full(count, -1) if several else column(_as_indices, "label"),
        predictions=column(_as_indices, "prediction"),
        top_K=np.stack([column(_as_indices, f"top{k}") for k in range(1, K + 1)], axis=1),
        p_K=np.stack([column(_as_numbers, f"p{k}") for k in range(1, K + 1)], axis=1),
        p_label=column(_as_numbers, "p_label"),
        loss=column(_as_numbers, "loss"),
        readable=np.array(columns["readable"], dtype=np.bool_),
        classes=tuple(classes),
        meta=meta,
        features=features,
        label_sets=labels,
    )


def _label_set(cell: str) -> tuple[int, ...]:
    return tuple(int(word) for word in (cell or "")[:LONGEST_NAME].split())


def _as_indices(cells: Sequence[Any], name: str) -> NDArray[np.int64]:
    try:
        return np.array([-1 if cell is None else int(cell) for cell in cells], dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"column '{name}' holds what is no class's number") from None


def _as_numbers(cells: Sequence[Any], name: str) -> NDArray[np.float32]:
    try:
        numbers = np.array([np.nan if cell is None else float(cell) for cell in cells])
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"column '{name}' holds what is no number") from None
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _checked(predictions: Predictions) -> Predictions:
    """Check that numbers are of classes and probabilities. Raises: ValueError."""
    p = predictions
    most = len(p.classes) or np.iinfo(np.int64).max
    sets = [np.array([index for found in p.label_sets or () for index in found], dtype=np.int64)]
    for name, values in (("label", p.labels), ("prediction", p.predictions), ("top", p.top_K)):
        if ((values < -1) | (values >= most)).any():
            raise ValueError(f"column '{name}' names a class that there is not")
    if any(((values < 0) | (values >= most)).any() for values in sets):
        raise ValueError("column 'label' names a class that there is not")
    for name, numbers in (("p", p.p_K), ("p_label", p.p_label)):
        if ((numbers < 0) | (numbers > 1 + 1e-5)).any():
            raise ValueError(f"column '{name}' holds what is no probability")
    return p


# CSV.


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_csv(path: Path, columns: Mapping[str, Sequence[Any]], meta: dict[str, Any]) -> None:
    with written_whole(path) as place, open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(*(columns[name] for name in COLUMNS), strict=True))
    write_whole(_beside(path), json_line(meta, indent=1) + "\n")


def _read_csv(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with open(path, encoding="utf-8", newline="", opener=open_regular) as file:
        if os.fstat(file.fileno()).st_size > LONGEST_CSV:
            raise ValueError(f"it has more than {LONGEST_CSV:,} bytes")
        lines = iter(partial(file.readline, _LONGEST_LINE), "")
        rows = csv.reader(lines)
        header = next(rows, [])
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(f"it has no column '{missing[0]}'")
        places = [header.index(name) for name in COLUMNS]
        cells: list[list[str | None]] = [[] for _ in COLUMNS]
        for number, row in enumerate(_bounded(rows)):
            if len(row) != len(header):
                raise ValueError(f"row {number + 1} has {len(row)} columns, not {len(header)}")
            for column, place in zip(cells, places, strict=True):
                column.append(row[place] or None)
    columns: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    columns["id"] = [name or "" for name in columns["id"]]
    if not set(columns["readable"]) <= {"True", "False"}:
        raise ValueError("column 'readable' holds something else than True and False")
    columns["readable"] = [cell == "True" for cell in columns["readable"]]
    beside = _beside(path)
    return columns, read_json(beside) if beside.exists() else {}


def _bounded(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    for number, row in enumerate(rows):
        if number >= MOST_IMAGES:
            raise ValueError(f"it has more than {MOST_IMAGES:,} images")
        if any(len(cell) > LONGEST_NAME for cell in row):
            raise ValueError(f"row {number + 1} has a cell of more than {LONGEST_NAME:,} letters")
        yield row
