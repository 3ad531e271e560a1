"""What probes found, side by side: a table to read, CSV, JSON, and which weights are surely best.

Shape legend: M evaluation images.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.console import printable, spoken_seconds
from vitbase.evaluation.figures import Figure, wilson
from vitbase.evaluation.significance import benjamini_hochberg, mcnemar
from vitbase.inspection.probing.shots import FewShot

SURE = 0.05
"""The p value up to which two weights are told apart."""
_SQUARES = "least squares"
"""The accuracy that the table has no room for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Probed:
    """What was found of one weights file.

    Attributes:
      weights: as they were given.
      path: the file that they stand for.
      width: of a feature.
      image_size: (height, width)
      neighbours: that voted.
      strength: of the linear classifier's regularisation, per image.
      knn_right: [M], whether the neighbours' vote is the label.
      linear_right: [M], likewise, of logistic regression; an image that could not be read is wrong.
      squares_right: [M], likewise, of least squares.
      few_shot: by shots, ascending.
      unreadable: training images, which were left out; and evaluation images.
      features_were_kept: whether they were there from before.
      features_seconds: what these took.
      classifiers_seconds: what all classifiers took.
    """

    weights: str
    path: Path
    width: int
    image_size: tuple[int, int]
    neighbours: int
    strength: float
    knn_right: NDArray[np.bool_]
    linear_right: NDArray[np.bool_]
    squares_right: NDArray[np.bool_]
    few_shot: tuple[FewShot, ...]
    unreadable: tuple[int, int]
    features_were_kept: bool
    features_seconds: float
    classifiers_seconds: float

    @property
    def knn(self) -> Figure:
        """Top-1 of the neighbours' vote, as a fraction, with Wilson's interval."""
        return wilson(int(self.knn_right.sum()), len(self.knn_right))

    @property
    def linear(self) -> Figure:
        """Top-1 of a linear classifier by logistic regression, likewise."""
        return wilson(int(self.linear_right.sum()), len(self.linear_right))

    @property
    def squares(self) -> Figure:
        """Top-1 of a linear classifier by least squares, likewise."""
        return wilson(int(self.squares_right.sum()), len(self.squares_right))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; accuracies are fractions."""
        return {
            "weights": self.weights,
            "path": str(self.path),
            "width": self.width,
            "image_size": [*self.image_size],
            "knn": {"neighbours": self.neighbours, **self.knn._asdict()},
            "linear": {"strength": self.strength, **self.linear._asdict()},
            "least_squares": self.squares._asdict(),
            "few_shot": [each.to_dict() for each in self.few_shot],
            "unreadable_training": self.unreadable[0],
            "unreadable_evaluation": self.unreadable[1],
            "features_were_kept": self.features_were_kept,
            "features_seconds": self.features_seconds,
            "classifiers_seconds": self.classifiers_seconds,
        }

    def figures(self) -> dict[str, Figure]:
        """Return every accuracy by its name."""
        few = {f"{each.shots}-shot": each.figure for each in self.few_shot}
        return {"kNN": self.knn, "linear": self.linear, **few, _SQUARES: self.squares}


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """Which weights are best for a linear classifier, and how sure that is.

    Attributes:
      best: place of the row with the highest linear accuracy.
      p: of each other row, McNemar's test against it, corrected for their number.
    """

    best: int
    p: dict[int, float]

    @property
    def ties(self) -> list[int]:
        """The rows that these images do not tell from the best one."""
        return [row for row, p in self.p.items() if p > SURE]


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """What probes found of several weights, on the same images.

    Attributes:
      rows: in the order in which the weights were given.
      training_images: how many there are.
      evaluation_images: likewise.
      data_path: where they are.
    """

    rows: tuple[Probed, ...]
    training_images: int
    evaluation_images: int
    data_path: str

    def verdict(self) -> Verdict:
        """Tell which weights are best for a linear classifier."""
        best = int(np.argmax([row.linear.value for row in self.rows]))
        top_M = self.rows[best].linear_right
        others = [number for number in range(len(self.rows)) if number != best]
        raw = []
        for number in others:
            right_M = self.rows[number].linear_right
            raw.append(mcnemar(int((top_M & ~right_M).sum()), int((right_M & ~top_M).sum())).p)
        return Verdict(best, dict(zip(others, benjamini_hochberg(np.array(raw)), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it; accuracies are fractions."""
        verdict = self.verdict()
        return {
            "data_path": self.data_path,
            "training_images": self.training_images,
            "evaluation_images": self.evaluation_images,
            "probes": [row.to_dict() for row in self.rows],
            "best_linear": self.rows[verdict.best].weights,
            "p_against_best": {self.rows[row].weights: float(p) for row, p in verdict.p.items()},
        }

    def to_csv(self) -> str:
        """Return a row for each weights file; accuracies are fractions."""
        text = io.StringIO()
        names = self._names()
        ends = [f"{name}{end}" for name in names for end in ("", " low", " high")]
        times = ["features_seconds", "classifiers_seconds"]
        table = csv.writer(text)
        table.writerow(["weights", "width", "training_images", "evaluation_images", *ends, *times])
        for row in self.rows:
            figures = row.figures()
            numbers = [value for name in names for value in figures.get(name, ("", "", ""))]
            counts = (row.width, self.training_images, self.evaluation_images)
            seconds = (f"{row.features_seconds:.3f}", f"{row.classifiers_seconds:.3f}")
            table.writerow([row.weights, *counts, *numbers, *seconds])
        return text.getvalue()

    def lines(self) -> Iterator[str]:
        """Yield the table, and what it tells."""
        names = [name for name in self._names() if name != _SQUARES]
        table = [["weights", "width", *names, "features", "classifiers"]]
        for row in self.rows:
            figures = row.figures()
            shares = [_cell(figures[name]) if name in figures else "" for name in names]
            took = "kept" if row.features_were_kept else _seconds(row.features_seconds)
            took_classifiers = _seconds(row.classifiers_seconds)
            table.append([printable(row.weights), str(row.width), *shares, took, took_classifiers])
        sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            padded = [cell.ljust(size) for cell, size in zip(cells, sizes, strict=True)]
            yield "  ".join(padded).rstrip()
        yield (
            f"top-1 and 95% interval, on {self.evaluation_images:,} evaluation images; "
            f"{self.training_images:,} training images"
        )
        if len(self.rows) > 1:
            yield self._tell_verdict()

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.figures()))

    def _tell_verdict(self) -> str:
        verdict = self.verdict()
        best = printable(self.rows[verdict.best].weights)
        if not verdict.ties:
            return f"best for a linear classifier: {best} (p at most {max(verdict.p.values()):.2g})"
        ties = ", ".join(
            f"{printable(self.rows[row].weights)} (p = {verdict.p[row]:.2g})"
            for row in verdict.ties
        )
        return f"highest for a linear classifier: {best}; these images do not tell it from {ties}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__


def _cell(figure: Figure) -> str:
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else spoken_seconds(seconds)
