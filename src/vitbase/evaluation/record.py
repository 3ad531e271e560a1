"""All that an evaluation has found, as `evaluation.json` holds it and a line says it."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from vitbase.errors import DataError
from vitbase.evaluation.calibration import Calibration, Reliability
from vitbase.evaluation.figures import (
    Answered,
    Figure,
    ManyAnswered,
    PerClass,
    plain,
    plain_figures,
)
from vitbase.evaluation.metrics import MultiLabelSums, describe_images, describe_least
from vitbase.evaluation.predictions import Predictions
from vitbase.evaluation.run import Evaluation, Kept
from vitbase.evaluation.shown import write_shown
from vitbase.files import json_line, read_json, write_whole

RECORD_FILE = "evaluation.json"
_MOST_UNREADABLE = 1000
"""Images that are listed as not readable; they are counted in any case."""

_SPOKEN = {
    "top1": "top-1",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1 macro",
    "f1_micro": "F1 micro",
    "map": "mAP",
    "ece": "calibration error",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An evaluation, and what is made of it.

    Attributes:
      data: where the images are, as it was given.
    """

    evaluation: Evaluation
    data: str

    @property
    def kept(self) -> Kept:
        """What it is made of. An evaluation that kept nothing has no record."""
        assert self.evaluation.kept is not None
        return self.evaluation.kept

    @functools.cached_property
    def _answered(self) -> Answered | ManyAnswered:
        if not isinstance(self.kept.sums, MultiLabelSums):
            return self.kept.answers.answered(self.kept.source)
        return ManyAnswered(
            np.concatenate(self.kept.sums.scores),
            np.concatenate(self.kept.sums.answers),
            self.kept.answers.columns["loss"],
        )

    @functools.cached_property
    def _found(self) -> tuple[dict[str, Figure], np.ndarray | None]:
        if isinstance(self._answered, ManyAnswered):
            return self._answered.figures()
        return self._answered.figures(), None

    @property
    def figures(self) -> dict[str, Figure]:
        """The headline figures by name, as fractions, with their intervals."""
        return self._found[0]

    @functools.cached_property
    def per_class(self) -> PerClass:
        """Counts of every class."""
        return self._answered.per_class()

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """The fitted temperature; None where what it is fitted with was not kept."""
        several = isinstance(self.kept.sums, MultiLabelSums)
        return None if several else self.kept.answers.calibration(self.kept.source)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all outputs of the model: by its number, where the data has no name for it."""
        return self.kept.answers.class_names(self.kept.source)

    def describe(self) -> str:
        """Say the headline figures in a line."""
        sums, figures = self.kept.sums, self.figures
        said = [
            f"loss {_plainly(figure)}" if name == "loss" else f"{words} {figure.describe()}"
            for name, figure in figures.items()
            if (words := _SPOKEN.get(name, "")) or name == "loss"
        ]
        line = f"{describe_images(sums.images, sums.unreadable)}: {'  '.join(said)}"
        precisions = self._found[1]
        values = self.per_class.recall if precisions is None else precisions
        if np.isnan(values).all():
            return line
        of_what = "recall" if precisions is None else "average precision"
        return f"{line}  {of_what} {describe_least(values, self.class_names)}"

    def to_dict(self, *, confusion: bool = True) -> dict[str, Any]:
        """Return it as `evaluation.json` holds it.

        Args:
          confusion: whether to have the pairs (label, prediction) in it, with their counts.
        """
        found, counts = self.evaluation, self.per_class
        sums, seconds = self.kept.sums, found.seconds
        per_class = {
            "images": counts.images.astype(int).tolist(),
            "recall": plain(counts.recall),
            "precision": plain(counts.precision),
            "f1": plain(counts.f1),
        }
        precisions = self._found[1]
        if precisions is not None:
            per_class["average_precision"] = plain(precisions)
        content: dict[str, Any] = {
            "version": 1,
            "weights": str(found.weights),
            "data": self.data,
            "images": sums.images,
            "unreadable": sums.unreadable,
            "unreadable_images": self._unreadable(),
            "classes": list(self.class_names),
            "figures": plain_figures(self.figures),
            "per_class": per_class,
            "confusion": self._confusion() if confusion else None,
            "calibration": self._calibration(),
            "seconds": seconds,
            "images_per_second": sums.images / seconds if seconds else None,
            "protocol": found.how.get("protocol"),
        }
        if not confusion:
            del content["confusion"]
        return content

    def meta(self) -> dict[str, Any]:
        """Return the facts that a file of predictions holds."""
        found = self.evaluation
        return {
            "weights": str(found.weights),
            "data": self.data,
            "preprocess": self.kept.preprocess.model_dump(mode="json"),
        }

    @functools.cached_property
    def predictions(self) -> Predictions:
        """A row for each image, to be kept in a file."""
        return self.kept.answers.predictions(self.kept.source, self.meta())

    def keep(self, folder: Path) -> list[str]:
        """Leave every figure in a folder, and images to look at, for a report.

        Returns: what is remarkable.
        Raises: DataError if it cannot be written.
        """
        self.write(folder)
        return write_shown(folder, self.predictions, self.kept.source)

    def write(self, folder: Path) -> Path:
        """Write `evaluation.json` into a folder, which is made. Returns: the file.

        Raises: DataError if it cannot be written.
        """
        place = folder / RECORD_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(place, json_line(self.to_dict()) + "\n")
        except (OSError, ValueError) as error:
            raise DataError(f"Cannot write {place}: {error}") from None
        return place

    def _unreadable(self) -> list[dict[str, str]]:
        causes = sorted(self.kept.answers.causes.items())[:_MOST_UNREADABLE]
        return [{"id": self.kept.source.name(index), "cause": cause} for index, cause in causes]

    def _confusion(self) -> list[list[int]]:
        if isinstance(self._answered, ManyAnswered):
            return []
        pairs, counts = self._answered.confusion()
        return [[*pair, n] for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)]

    def _calibration(self) -> dict[str, Any] | None:
        if self.calibration is not None:
            return self.calibration.to_dict()
        if isinstance(self._answered, ManyAnswered):
            return None
        read = self._answered.predictions >= 0
        before = Reliability.of(self._answered.confidence[read], self._answered.right[read])
        ece = None if math.isnan(before.ece) else before.ece
        absent = {"temperature": None, "ece_after": None, "bins_after": None}
        return {"ece": ece, "bins": before.to_rows(), **absent}


def has_record_of(folder: Path, weights: Path) -> bool:
    """Whether a folder has a record of this weights file, and the images that go with it."""
    try:
        found = read_json(folder / RECORD_FILE)
    except (OSError, ValueError):
        return False
    is_of = isinstance(found, dict) and found.get("weights") == str(weights)
    return is_of and (folder / "shown" / "shown.json").is_file()


def _plainly(figure: Figure) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
