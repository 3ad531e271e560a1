"""What `report/evaluation.json` holds, checked: figures, classes, confusions, calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 100_000
MOST_CONFUSIONS = 2_000_000
_MOST_FIGURES = 100
_MOST_BINS = 1000
_LONGEST_NAME = 1000


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a run, and the interval it lies in; None where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Bin:
    """Images whose highest probability lies between two bounds."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far probabilities can be believed, as they are and after temperature scaling."""

    numbers: Mapping[str, float]
    bins: tuple[Bin, ...] = ()
    bins_after: tuple[Bin, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scored:
    """An evaluation of one weights file; what was not measured is empty.

    Attributes:
      facts: what was evaluated on what, by the names of the file.
      per_class: name -> [classes]; nan where a class has none.
      confusion: [n, 3]: true class, predicted class, images.
    """

    facts: Mapping[str, str | float]
    classes: tuple[str, ...]
    figures: Mapping[str, Figure]
    per_class: Mapping[str, NDArray[np.float64]]
    confusion: NDArray[np.int64]
    calibration: Calibration | None

    @property
    def images_per_class(self) -> NDArray[np.float64] | None:
        """Images of each class, counted or told; None where neither is there."""
        if "images" in self.per_class:
            return self.per_class["images"]
        if not len(self.confusion):
            return None
        counts = np.zeros(len(self.classes))
        np.add.at(counts, self.confusion[:, 0], self.confusion[:, 2])
        return counts


def as_scored(found: Any) -> Scored:
    """Check parsed JSON, of anybody. Raises: ValueError saying what is wrong with it."""
    top = _as_object(found, "it")
    if top.get("version", 1) != 1:
        raise ValueError(f"it is of version {str(top['version'])[:20]}, and this vitbase reads 1")
    classes = tuple(
        _as_text(name, "a class") for name in _as_list(top.get("classes"), "classes", MOST_CLASSES)
    )
    facts: dict[str, str | float] = {}
    for name in ("weights", "data", "protocol"):
        if top.get(name) is not None:
            facts[name] = _as_text(top[name], name)
    for name in ("images", "unreadable", "seconds", "images_per_second"):
        if top.get(name) is not None:
            facts[name] = _as_number(top[name], name)
    figures = _as_object(top.get("figures", {}), "figures")
    if len(figures) > _MOST_FIGURES:
        raise ValueError(f"it has more than {_MOST_FIGURES} figures")
    return Scored(
        facts,
        classes,
        {name: _as_figure(value, name) for name, value in figures.items() if value is not None},
        _as_columns(top.get("per_class"), len(classes)),
        _as_confusion(top.get("confusion"), len(classes)),
        _as_calibration(top.get("calibration")),
    )


def _as_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _as_list(value: Any, name: str, most: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    if len(value) > most:
        raise ValueError(f"{name} has more than {most:,} entries")
    return value


def _as_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value[:_LONGEST_NAME]


def as_finite(value: Any) -> float | None:
    """Return a number of parsed JSON; None for anything else, and for what is too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _as_number(value: Any, name: str) -> float:
    number = as_finite(value)
    if number is None:
        raise ValueError(f"{name} is no number")
    return number


def _as_figure(value: Any, name: str) -> Figure:
    fields = value if isinstance(value, dict) else {"value": value}
    what = f"figure {name[:40]}"
    if fields.get("value") is None:  # the mean over no class
        return Figure(math.nan)
    bounds = [None if fields.get(k) is None else _as_number(fields[k], what) for k in _BOUNDS]
    return Figure(_as_number(fields["value"], what), *bounds)


_BOUNDS = ("low", "high")


def _as_columns(value: Any, classes: int) -> dict[str, NDArray[np.float64]]:
    columns = {}
    given = {} if value is None else _as_object(value, "per_class")
    for name in ("images", "recall", "precision", "f1", "average_precision"):
        if given.get(name) is None:
            continue
        cells = _as_list(given[name], f"per_class {name}", MOST_CLASSES)
        if len(cells) != classes:
            raise ValueError(f"per_class {name} has {len(cells)} entries for {classes} classes")
        numbers = [math.nan if cell is None else _as_number(cell, name) for cell in cells]
        columns[name] = np.asarray(numbers, np.float64)
    return columns


def _as_confusion(value: Any, classes: int) -> NDArray[np.int64]:
    cells = _as_list(value, "confusion", MOST_CONFUSIONS)
    for cell in cells:
        if not (isinstance(cell, list) and len(cell) == 3 and all(type(n) is int for n in cell)):
            raise ValueError("confusion holds something else than three whole numbers")
        if not (0 <= cell[0] < classes and 0 <= cell[1] < classes and 0 <= cell[2] < 1 << 48):
            raise ValueError(f"confusion holds {str(cell)[:60]}, and there are {classes} classes")
    return np.asarray(cells, np.int64).reshape(-1, 3)


def _as_calibration(value: Any) -> Calibration | None:
    if value is None:
        return None
    given = _as_object(value, "calibration")
    names = ("ece", "temperature", "ece_after")
    numbers = {n: _as_number(given[n], n) for n in names if given.get(n) is not None}
    return Calibration(numbers, _as_bins(given.get("bins")), _as_bins(given.get("bins_after")))


def _as_bins(value: Any) -> tuple[Bin, ...]:
    bins = []
    for entry in _as_list(value, "calibration bins", _MOST_BINS):
        fields = _as_object(entry, "a bin")
        count = int(_as_number(fields.get("count"), "a bin's count"))
        if count > 0:  # without images it has neither confidence nor accuracy
            named = ("low", "high", "confidence", "accuracy")
            low, high, sure, right = (_as_number(fields.get(n), f"a bin's {n}") for n in named)
            bins.append(Bin(low, high, count, sure, right))
    return tuple(bins)


def wilson(share: float, images: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95% interval of a share of images. Source: Wilson (1927), eq. of the score."""
    centre = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def most_confused(confusion: NDArray[np.int64], most: int) -> Sequence[tuple[int, int, int]]:
    """Return the pairs (true, predicted, images) that were mixed up most often."""
    wrong = confusion[(confusion[:, 0] != confusion[:, 1]) & (confusion[:, 2] > 0)]
    order = np.lexsort((wrong[:, 1], wrong[:, 0], -wrong[:, 2]))[:most]
    return [(int(true), int(seen), int(count)) for true, seen, count in wrong[order]]
