"""Two models on the same images: how much better one is, how sure that is, and where.

A difference is the second model's accuracy minus the first's: above 0, the second is better.
Shape legend: N images, T classes that have images.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError, first_few
from vitbase.evaluation.figures import wilson
from vitbase.evaluation.predictions import Predictions
from vitbase.evaluation.significance import (
    Interval,
    McNemar,
    benjamini_hochberg,
    bootstrap_difference,
    mcnemar,
)
from vitbase.sources.source import name_class

COLUMNS = ("id", "label", "prediction_a", "prediction_b", "p_label_a", "p_label_b", "right")
"""Of the table of images that changed sides; `right` is "a" or "b"."""

SURE = 0.05
"""A corrected p value up to which a class is named."""


@dataclasses.dataclass(frozen=True)
class ClassDifference:
    """How two models differ on the images of a class."""

    name: str
    images: int
    accuracy_a: float
    accuracy_b: float
    p: float  # of McNemar's test on these images alone
    corrected_p: float  # by Benjamini and Hochberg, over the classes that have images

    @property
    def difference(self) -> float:
        return self.accuracy_b - self.accuracy_a

    def line(self) -> str:
        return (
            f"{self.name}: {self.accuracy_a:.2%} to {self.accuracy_b:.2%} of {self.images:,} "
            f"({self.difference:+.2%}, corrected p = {self.corrected_p:.2g})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What two models did with the same images.

    Attributes:
      ids: [N] of the images with a known label, in the order of the first file.
      labels: [N] int64.
      guesses_a: [N] int64, what the first model takes for most probable; -1 if unreadable.
      guesses_b: likewise, of the second.
      p_label_a: [N] float32, the probability that the first model gives to the label.
      p_label_b: likewise, of the second.
      unreadable: images that either model could not read.
      left_out: images without a known label.
      seed: of the bootstrap.
    """

    classes: tuple[str, ...]
    ids: list[str]
    labels: NDArray[np.int64]
    guesses_a: NDArray[np.int64]
    guesses_b: NDArray[np.int64]
    p_label_a: NDArray[np.float32]
    p_label_b: NDArray[np.float32]
    unreadable: tuple[int, int]
    left_out: int
    seed: int

    def class_name(self, index: int) -> str:
        """Return a class's name; its number where it has none; nothing for -1."""
        if index < 0:
            return ""
        return self.classes[index] if index < len(self.classes) else str(index)

    @functools.cached_property
    def right_a(self) -> NDArray[np.bool_]:
        """[N], whether the first model has an image right."""
        return np.equal(self.guesses_a, self.labels)

    @functools.cached_property
    def right_b(self) -> NDArray[np.bool_]:
        """[N], whether the second model has an image right."""
        return np.equal(self.guesses_b, self.labels)

    @functools.cached_property
    def cells(self) -> tuple[int, int, int, int]:
        """Images that both, only the first, only the second, and neither has right."""
        a, b = self.right_a, self.right_b
        counts = (a & b, a & ~b, ~a & b, ~a & ~b)
        both, only_a, only_b, neither = (int(np.count_nonzero(which)) for which in counts)
        return both, only_a, only_b, neither

    @property
    def accuracies(self) -> tuple[float, float]:
        both, only_a, only_b, _ = self.cells
        return (both + only_a) / len(self.ids), (both + only_b) / len(self.ids)

    @property
    def intervals(self) -> tuple[Interval, Interval]:
        """Wilson's 95% intervals of both accuracies."""
        both, only_a, only_b, _ = self.cells
        first, second = (wilson(both + only, len(self.ids)) for only in (only_a, only_b))
        return Interval(first.low, first.high), Interval(second.low, second.high)

    @property
    def difference(self) -> float:
        _, only_a, only_b, _ = self.cells
        return (only_b - only_a) / len(self.ids)

    @property
    def difference_interval(self) -> Interval:
        """The 95% interval of the difference, by a paired bootstrap."""
        return bootstrap_difference(*self.cells, seed=self.seed)

    @property
    def test(self) -> McNemar:
        _, only_a, only_b, _ = self.cells
        return mcnemar(only_a, only_b)

    def changed(self, side: str) -> NDArray[np.int64]:
        """Return the images that only one model has right, as indices.

        Args:
          side: "a": those that the second one lost; "b": those that it won.
        """
        only = self.right_a & ~self.right_b if side == "a" else self.right_b & ~self.right_a
        return np.flatnonzero(only)

    def classes_changed(self) -> list[ClassDifference]:
        """Return how the models differ on every class with images, the surest difference first.

        Each class has McNemar's test on its own images. No two classes share an image, so these
        tests are independent, as the correction of Benjamini and Hochberg asks for; Holm's would
        find next to nothing in a thousand classes of fifty images.
        """
        present_T, class_N = np.unique(self.labels, return_inverse=True)
        a_N, b_N = self.right_a, self.right_b
        columns = (a_N, b_N, a_N & ~b_N, b_N & ~a_N)
        counted_T4 = np.stack([_count(class_N[which], len(present_T)) for which in columns], 1)
        images_T = _count(class_N, len(present_T))
        p_T = np.array([mcnemar(only_a, only_b).p for _, _, only_a, only_b in counted_T4.tolist()])
        found = [
            ClassDifference(self.class_name(label), images, a / images, b / images, p, corrected)
            for label, images, (a, b, _, _), p, corrected in zip(
                present_T.tolist(),
                images_T.tolist(),
                counted_T4.tolist(),
                p_T.tolist(),
                benjamini_hochberg(p_T).tolist(),
                strict=True,
            )
        ]
        return sorted(found, key=lambda each: (each.corrected_p, each.p, -abs(each.difference)))

    def rows(self, indices: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """Yield what is told of images that changed sides: a value for each of `COLUMNS`."""
        for index in indices.tolist():
            label, a, b = (
                self.class_name(int(given[index]))
                for given in (self.labels, self.guesses_a, self.guesses_b)
            )
            shares = _share(self.p_label_a[index]), _share(self.p_label_b[index])
            right = "a" if self.right_a[index] else "b"
            yield dict(zip(COLUMNS, (self.ids[index], label, a, b, *shares, right), strict=True))

    def to_csv(self) -> str:
        """Return all images that changed sides as a table."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        for side in ("a", "b"):
            for row in self.rows(self.changed(side)):
                table.writerow(row)
        return text.getvalue()

    def to_dict(self, limit: int) -> dict[str, Any]:
        """The same as plain values, for JSON; of the images, up to a limit of each side."""
        both, only_a, only_b, neither = self.cells
        test = self.test
        shares = {
            side: {"accuracy": accuracy, "interval": [*interval], "unreadable": unreadable}
            for side, accuracy, interval, unreadable in zip(
                "ab", self.accuracies, self.intervals, self.unreadable, strict=True
            )
        }
        return {
            "images": len(self.ids),
            "left_out_without_label": self.left_out,
            **shares,
            "difference": self.difference,
            "difference_interval": [*self.difference_interval],
            "both_right": both,
            "only_a_right": only_a,
            "only_b_right": only_b,
            "neither_right": neither,
            "mcnemar_p": test.p,
            "mcnemar_exact": test.exact,
            "classes_correction": "Benjamini-Hochberg",
            "classes": [
                dataclasses.asdict(each) | {"difference": each.difference}
                for each in self.classes_changed()
            ],
            "only_a_right_images": [*self.rows(self.changed("a")[:limit])],
            "only_b_right_images": [*self.rows(self.changed("b")[:limit])],
        }

    def lines(self, limit: int) -> Iterator[str]:
        """Yield what a person wants to know, with up to so many images of each side."""
        both, only_a, only_b, neither = self.cells
        classes = self.classes_changed()
        yield f"{len(self.ids):,} images of {len(classes):,} classes"
        if self.left_out:
            yield f"  {self.left_out:,} more are left out: their label is not known"
        for side, accuracy, interval, unreadable in zip(
            "AB", self.accuracies, self.intervals, self.unreadable, strict=True
        ):
            wrong = f", {unreadable:,} unreadable counted as wrong" if unreadable else ""
            yield f"  {side}: {accuracy:.2%}, 95% interval {_span(interval)}{wrong}"
        test = self.test
        yield (
            f"  B - A: {self.difference:+.2%}, 95% interval {_span(self.difference_interval, '+')} "
            "(paired bootstrap)"
        )
        how = "exact binomial" if test.exact else "chi-square with continuity correction"
        yield (
            f"  right: both {both:,}, only A {only_a:,}, only B {only_b:,}, neither {neither:,}; "
            f"McNemar's test ({how}): p = {test.p:.3g}"
        )
        sure = [each for each in classes if each.corrected_p <= SURE]
        yield (
            f"  classes that differ, McNemar's p corrected by Benjamini-Hochberg up to {SURE}: "
            f"{len(sure):,} of {len(classes):,}"
        )
        yield from (f"    {each.line()}" for each in sure[:limit])
        if len(sure) > limit:
            yield f"    … and {len(sure) - limit:,} more"
        for side, words in (("a", "A only (B lost them)"), ("b", "B only (B won them)")):
            indices = self.changed(side)
            yield f"  right by {words}: {len(indices):,}"
            for row in self.rows(indices[:limit]):
                yield (
                    f"    {row['id']}: '{row['label']}'; "
                    f"A says {_guess(row['prediction_a'])}, B {_guess(row['prediction_b'])}"
                )
            if len(indices) > limit:
                yield f"    … and {len(indices) - limit:,} more"


def _count(class_N: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.asarray(np.bincount(class_N, minlength=classes), np.int64)


def _share(p: np.float32) -> float | None:
    """Return a probability as plain a number as it was stored; None if there is none."""
    return None if np.isnan(p) else float(f"{p:.6g}")


def _span(interval: Interval, sign: str = "") -> str:
    return f"{interval.low:{sign}.2%} to {interval.high:{sign}.2%}"


def _guess(name: str) -> str:
    return f"'{name}'" if name else "nothing (unreadable)"


def compare(a: Predictions, b: Predictions, *, seed: int = 0) -> Comparison:
    """Compare what two models predict for the same images.

    Images are found by their ids; their order may differ. One without a known label is left out,
    an unreadable one counts as wrong.

    Args:
      a: of the first model.
      b: of the second.
      seed: of the bootstrap.
    Raises: DataError if they are of other images, labels or classes, or nothing can be compared.
    """
    if not len(a.ids) or not len(b.ids):
        raise DataError(f"The {'first' if not len(a.ids) else 'second'} file has no images.")
    if a.label_sets is not None or b.label_sets is not None:
        raise DataError(
            "Their images may have several labels each; models are compared where each has one."
        )
    if a.classes and b.classes:  # else a file does not tell them
        _refuse_other_classes(a.classes, b.classes)
    classes = a.classes or b.classes
    order = _matched(a.ids, b.ids)
    labels_b = b.labels[order]
    differing = np.flatnonzero(a.labels != labels_b)
    if len(differing):
        first = int(differing[0])
        names = (_label(classes, int(each[first])) for each in (a.labels, labels_b))
        raise DataError(
            f"{len(differing):,} of {len(a.ids):,} images have another label in the second file: "
            f"{a.ids[first]} is {' there, '.join(names)} here. Predict both from the same labels."
        )
    known = np.flatnonzero(a.labels >= 0)
    if not len(known):
        raise DataError("No image has a known label, so neither model is right or wrong.")
    guesses_a = np.where(a.readable, a.predictions, -1)
    guesses_b = np.where(b.readable, b.predictions, -1)[order]
    return Comparison(
        classes=classes,
        ids=[a.ids[index] for index in known.tolist()],
        labels=a.labels[known],
        guesses_a=guesses_a[known],
        guesses_b=guesses_b[known],
        p_label_a=a.p_label[known],
        p_label_b=b.p_label[order][known],
        unreadable=(
            int(np.count_nonzero(~a.readable[known])),
            int(np.count_nonzero(~b.readable[order][known])),
        ),
        left_out=len(a.ids) - len(known),
        seed=seed,
    )


def _label(classes: tuple[str, ...], label: int) -> str:
    return name_class(classes, label) if label >= 0 else "unknown"


def _refuse_other_classes(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    if a == b:
        return
    only_a, only_b = sorted({*a} - {*b}), sorted({*b} - {*a})
    if only_a or only_b:
        told = [
            f"{len(only)} only in the {which} ({first_few(only, count=False)})"
            for which, only in (("first", only_a), ("second", only_b))
            if only
        ]
        raise DataError(
            f"The files have other classes: {'; '.join(told)}. Models are compared that tell the "
            "same classes apart."
        )
    place = next(n for n, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
    raise DataError(
        f"The files number their classes otherwise: {place} is '{a[place]}' in the first, "
        f"'{b[place]}' in the second."
    )


def _matched(a: Sequence[str], b: Sequence[str]) -> NDArray[np.int64]:
    """Return where each id of the first file stands in the second.

    Raises: DataError if the ids differ, or one stands twice in a file.
    """
    if list(a) == list(b):  # then one that stands twice is in both places the same
        return np.arange(len(a))
    place = {id_: index for index, id_ in enumerate(b)}
    ids = {*a}
    for which, given, distinct in (("first", a, len(ids)), ("second", b, len(place))):
        if distinct < len(given):
            twice = _first_repeated(given)
            raise DataError(f"The {which} file has an image twice: {twice}.")
    only = [id_ for id_ in a if id_ not in place], [id_ for id_ in b if id_ not in ids]
    if any(only):
        told = [
            f"{len(each):,} of {len(of):,} are only in the {which} ({first_few(each, count=False)})"
            for each, of, which in zip(only, (a, b), ("first", "second"), strict=True)
            if each
        ]
        raise DataError(
            f"The files are of other images: {'; '.join(told)}. Predict the same images with both "
            "models."
        )
    return np.array([place[id_] for id_ in a], np.int64)


def _first_repeated(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    add: Callable[[str], None] = seen.add
    return next(id_ for id_ in ids if id_ in seen or add(id_))  # type: ignore[func-returns-value]
