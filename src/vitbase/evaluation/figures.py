"""Figures that can be published: each with the interval in which another sample would lie, at 95%.

Plain arrays in, no torch. Shares of images have Wilson's interval. Figures of images with one
label have a bootstrap's, over images; those of images with several labels have the first-order one
(the infinitesimal jackknife), as a bootstrap of them would sort every class a thousand times.
Images are given in the source's order, so the figures are the same for any number of ranks.
Shape legend: N images, C classes, P pairs of a label and a prediction.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.evaluation.calibration import NUM_BINS, bins_of

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

Z_95 = 1.959963984540054
_REPLICATES = 1000
_MOST_DRAWN = 10**8  # images drawn by all replicates together, where there are very many
_FEWEST_REPLICATES = 100
_CHUNK = 1 << 22  # cells of a table that is held twice


class Figure(NamedTuple):
    """A figure and the ends of its 95% interval; all nan where it is not defined."""

    value: float
    low: float
    high: float

    def describe(self) -> str:
        """Return it as a percentage."""
        return f"{self.value:.2%} [{self.low:.2%}, {self.high:.2%}]"


def wilson(hits: int, images: int) -> Figure:
    """Return a share with Wilson's score interval.

    Source: Brown, Cai, DasGupta, Interval Estimation (Stat. Sci. 2001) section 3.1.1.
    """
    if images == 0:
        return Figure(math.nan, math.nan, math.nan)
    share, spread = hits / images, Z_95**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / images)
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclasses.dataclass(frozen=True, eq=False)
class PerClass:
    """Counts of each class [C], and what they make: nan where there is nothing to divide by."""

    hits: Floats
    images: Floats
    predicted: Floats

    @property
    def recall(self) -> Floats:
        return _divide(self.hits, self.images)

    @property
    def precision(self) -> Floats:
        return _divide(self.hits, self.predicted)

    @property
    def f1(self) -> Floats:
        return _divide(2 * self.hits, self.images + self.predicted)

    def means(self) -> dict[str, float]:
        """Return what has each class count the same.

        Balanced accuracy is over the classes that have images; the others are over those that have
        some or were predicted, and a class that was never predicted has precision 0.
        """
        seen = (self.images + self.predicted) > 0
        return {
            "balanced_accuracy": _mean(self.recall[self.images > 0]),
            "precision_macro": _mean(np.nan_to_num(self.precision[seen])),
            "f1_macro": _mean(self.f1[seen]),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """What was answered to images of one label each, an array an attribute, all [N].

    Attributes:
      labels: of the images.
      predictions: the most probable class; -1 for an image that could not be read.
      in_top5: whether the label is among the five most probable classes.
      confidence: probability of the prediction; nan where there is none.
      loss: nan where there is none.
      classes: C
    """

    labels: Indices
    predictions: Indices
    in_top5: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    loss: NDArray[np.float32]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the prediction is the label."""
        return np.equal(self.labels, self.predictions)

    @functools.cached_property
    def read(self) -> NDArray[np.bool_]:
        """Whether the image could be read."""
        return self.predictions >= 0

    @functools.cached_property
    def _gaps(self) -> tuple[Indices, NDArray[np.float32]]:
        """Of the images that were read: the bin of the confidence, and what it is too low by."""
        confidence = self.confidence[self.read]
        return bins_of(confidence), self.right[self.read] - confidence

    def per_class(self, times: Floats | None = None) -> PerClass:
        """Count by class, each image once or as many times as is said."""
        times = np.ones(len(self)) if times is None else times
        read = self.read

        def count(classes_N: Indices, times_N: Floats) -> Floats:
            return np.bincount(classes_N, times_N, minlength=self.classes).astype(np.float64)

        return PerClass(
            count(self.labels[self.right], times[self.right]),
            count(self.labels, times),
            count(self.predictions[read], times[read]),
        )

    def confusion(self) -> tuple[Indices, Indices]:
        """Return the pairs (label, prediction) that there are, [P, 2] in order, and their counts.

        An image that could not be read is in none.
        """
        read = self.read
        keys = self.labels[read] * self.classes + self.predictions[read]
        keys_P, counts_P = np.unique(keys, return_counts=True)
        return np.stack(np.divmod(keys_P, self.classes), axis=1), counts_P.astype(np.int64)

    def figures(self) -> dict[str, Figure]:
        """Return the headline figures by name, as fractions, those that say something."""
        images = len(self)
        found = {"top1": wilson(int(self.right.sum()), images)}
        if self.classes > 5:
            found["top5"] = wilson(int(self.in_top5.sum()), images)
        return found | self._bootstrapped()

    def _bootstrapped(self) -> dict[str, Figure]:
        values = self._means(np.ones(len(self)))
        rng = np.random.default_rng(0)
        count = max(_FEWEST_REPLICATES, min(_REPLICATES, _MOST_DRAWN // max(1, len(self))))
        drawn: dict[str, list[float]] = {name: [] for name in values}
        for _ in range(count):
            picked = rng.integers(0, len(self), len(self))
            times = np.bincount(picked, minlength=len(self)).astype(np.float64)
            for name, value in self._means(times).items():
                drawn[name].append(value)
        return {
            name: _centred(value, np.array(drawn[name]), share=name != "loss")
            for name, value in values.items()
        }

    def _means(self, times: Floats) -> dict[str, float]:
        """Return every figure that is no share of images, each image counted so many times."""
        read = self.read
        images = times[read].sum()
        loss = float((self.loss[read] * times[read]).sum() / images) if images else math.nan
        means = {"loss": loss, **self.per_class(times).means()}
        bins, too_low = self._gaps
        gaps = np.bincount(bins, times[read] * too_low, minlength=NUM_BINS)
        means["ece"] = float(np.abs(gaps).sum() / images) if images else math.nan
        return means


def _centred(value: float, drawn: Floats, *, share: bool) -> Figure:
    """Return a bootstrap's interval, moved by the bias that resampling has.

    Resampled, calibration looks worse and classes look rarer than they are.
    """
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(drawn):
        return Figure(value, math.nan, math.nan)
    ends = value + np.quantile(drawn - drawn.mean(), [0.025, 0.975])
    low, high = np.clip(ends, 0, 1 if share else None)
    return Figure(value, min(value, float(low)), max(value, float(high)))


@dataclasses.dataclass(frozen=True, eq=False)
class ManyAnswered:
    """What was answered to images of any number of labels each.

    Attributes:
      scores_NC: logits; -inf for an image that could not be read.
      answers_NC: labels.
      loss: [N], mean over the classes; nan where there is none.
    """

    scores_NC: NDArray[np.float32]  # noqa: N815 (its shape)
    answers_NC: NDArray[np.bool_]  # noqa: N815
    loss: NDArray[np.float32]

    def per_class(self) -> PerClass:
        """Count by class at probability 0.5."""
        said_NC = self.scores_NC > 0
        hits = (said_NC & self.answers_NC).sum(axis=0)
        counts = (hits, self.answers_NC.sum(axis=0), said_NC.sum(axis=0))
        return PerClass(*(each.astype(np.float64) for each in counts))

    def average_precision(self) -> tuple[Floats, Floats]:
        """Return the average precision of each class [C], and its influences' sum [N]."""
        images, classes = self.scores_NC.shape
        values, total = np.full(classes, math.nan), np.zeros(images)
        for number in range(classes):
            value, influence = _average_precision(
                self.scores_NC[:, number], self.answers_NC[:, number]
            )
            values[number] = value
            total += influence
        return values, total

    def figures(self) -> tuple[dict[str, Figure], Floats]:
        """Return the headline figures by name; and the average precision of each class [C]."""
        precisions, influence = self.average_precision()
        defined = max(1, int((~np.isnan(precisions)).sum()))
        counts = self.per_class()
        size = counts.images + counts.predicted
        seen, everything = max(1, int((size > 0).sum())), max(1.0, float(size.sum()))
        f1, one = counts.f1, np.where(size > 0, size, 1.0)
        all_f1 = 2 * float(counts.hits.sum()) / everything if size.any() else math.nan
        micro, macro = np.zeros(len(self.loss)), np.zeros(len(self.loss))
        step = max(1, _CHUNK // max(1, len(size)))
        for first in range(0, len(self.loss), step):
            rows = slice(first, first + step)
            said_BC, there_BC = self.scores_NC[rows] > 0, self.answers_NC[rows]
            hits_BC, sizes_BC = 2.0 * (said_BC & there_BC), 1.0 * said_BC + there_BC
            micro[rows] = (hits_BC - all_f1 * sizes_BC).sum(axis=1) / everything
            macro[rows] = ((hits_BC - np.nan_to_num(f1) * sizes_BC) / one).sum(axis=1) / seen
        read = self.loss[~np.isnan(self.loss)].astype(np.float64)
        loss = float(read.mean()) if len(read) else math.nan
        return {
            "map": _first_order(_mean(precisions[~np.isnan(precisions)]), influence / defined),
            "f1_micro": _first_order(all_f1, micro),
            "f1_macro": _first_order(_mean(f1[~np.isnan(f1)]), macro),
            "loss": _first_order(loss, (read - loss) / max(1, len(read)), share=False),
        }, precisions


def _first_order(value: float, influence: Floats, *, share: bool = True) -> Figure:
    """Return the interval of a figure that each image moves by its influence.

    Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982) section 6.
    """
    if math.isnan(value):
        return Figure(value, math.nan, math.nan)
    half = Z_95 * math.sqrt(float((influence**2).sum()))
    high = min(1.0, value + half) if share else value + half
    return Figure(value, max(0.0, value - half), high)


def _average_precision(
    scores_N: NDArray[np.float32], answers_N: NDArray[np.bool_]
) -> tuple[float, Floats]:
    """Return the average precision of a class, and its derivative by each image's weight [N]."""
    positives = int(answers_N.sum())
    if positives == 0:
        return math.nan, np.zeros(len(scores_N))
    order = np.argsort(-scores_N, kind="stable")
    ordered, there = scores_N[order], answers_N[order].astype(np.float64)
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(order) - 1)
    starts = np.append(0, ends[:-1] + 1)
    place = np.repeat(np.arange(len(ends)), ends - starts + 1)  # of the threshold of each image
    above, hits = ends + 1.0, there.cumsum()[ends]
    precision, added = hits / above, np.diff(hits, prepend=0.0)
    value = float((precision * added).sum() / positives)
    # One more image here adds to hits and images at this threshold and all below it.
    below_hit = (added / above)[::-1].cumsum()[::-1]
    below_any = (added * precision / above)[::-1].cumsum()[::-1]
    moved = there * (precision[place] + below_hit[place] - value) - below_any[place]
    influence = np.zeros(len(order))
    influence[order] = moved / positives
    return value, influence


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    quotients = numerators / np.where(denominators > 0, denominators, 1)
    return np.where(denominators > 0, quotients, math.nan)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def plain(values: Iterable[float]) -> list[float | None]:
    """Return numbers as JSON takes them: None for nan."""
    return [None if math.isnan(value) else float(value) for value in values]


def plain_figures(figures: Mapping[str, Figure]) -> dict[str, dict[str, float | None]]:
    """Return figures as JSON takes them."""
    names = Figure._fields
    return {name: dict(zip(names, plain(figure), strict=True)) for name, figure in figures.items()}
