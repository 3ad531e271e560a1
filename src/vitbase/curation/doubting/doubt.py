"""From predictions of a data set's images to what is doubtful in it.

Labels are doubted by probabilities, near-duplicates and far images by the features that the model's
head read. Nothing here reads an image.

Shape legend: F images of both files with usable features, those of the predictions first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitbase.curation.doubting.labels import LabelDoubts, find_label_errors
from vitbase.curation.doubting.neighbours import (
    Outliers,
    find_neighbours,
    find_outliers,
    group_duplicates,
)
from vitbase.errors import DataError, shown
from vitbase.evaluation.predictions import Predictions

Kind = Literal["labels", "duplicates", "outliers"]
KINDS: tuple[Kind, ...] = ("labels", "duplicates", "outliers")


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of one of the files.

    Attributes:
      file: "predictions" or "train".
      index: in that file.
    """

    file: Literal["predictions", "train"]
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Doubts:
    """What was found. What was not looked for is None.

    Attributes:
      predictions: held-out images.
      train: images that the model trained on, if they were given.
      labels: images of `predictions` whose label is doubted.
      groups: near-duplicates, the items of each with the distance of its nearest neighbour, those
        of `predictions` first. First come groups of several labels, then those of both files, then
        the others, the largest and closest of each first.
      similarity: cosine from which on two images are near-duplicates, if it was given.
      outliers: of the images with features, by their place in `items`.
      items: [F], the images with features.
      notes: what could not be looked for, and why.
    """

    predictions: Predictions
    train: Predictions | None
    labels: LabelDoubts | None
    groups: list[list[tuple[Item, float]]] | None
    similarity: float | None
    outliers: Outliers | None
    items: list[Item]
    notes: tuple[str, ...]

    def of(self, item: Item) -> Predictions:
        """Return the predictions that an item is one of."""
        if item.file == "train":
            assert self.train is not None
            return self.train
        return self.predictions

    def label(self, item: Item) -> int:
        return int(self.of(item).labels[item.index])

    def spans(self, group: Sequence[tuple[Item, float]]) -> bool:
        """Whether a group has images of both files."""
        return len({item.file for item, _ in group}) > 1

    def disagrees(self, group: Sequence[tuple[Item, float]]) -> bool:
        """Whether the images of a group have several labels."""
        return len({self.label(item) for item, _ in group} - {-1}) > 1

    def to_leave_out(self, group: Sequence[tuple[Item, float]]) -> dict[Item, str]:
        """Return which images of a group a data set would be better without, and why.

        Evaluation keeps its images, so that its figures stay comparable: of those in both files the
        training copies go. Of copies in one file the first stays, unless their labels differ: then
        nobody knows which is right, and all of that file go.
        """
        found: dict[Item, str] = {}
        held_out = [item for item, _ in group if item.file == "predictions"]
        trained = [item for item, _ in group if item.file == "train"]
        if held_out and trained:
            found |= dict.fromkeys(trained, f"nearly {self.of(held_out[0]).ids[held_out[0].index]}")
        for items in (held_out, [] if held_out else trained):
            if len({self.label(item) for item in items} - {-1}) > 1:
                found |= dict.fromkeys(items, "near-duplicates of several labels")
            elif items:
                found |= dict.fromkeys(items[1:], f"nearly {self.of(items[0]).ids[items[0].index]}")
        return found


def find_doubts(
    predictions: Predictions,
    train: Predictions | None = None,
    *,
    kinds: Sequence[Kind] | None = None,
    similarity: float | None = None,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> Doubts:
    """Find what is doubtful in the images of predictions.

    Args:
      predictions: of images that the model did not train on; only such say something of labels.
      train: of those that it trained on, for near-duplicates across the two.
      kinds: what to look for; None: all that the files allow.
      similarity: cosine from which on two images are near-duplicates; None: by the distances that
        nearest neighbours usually have, in all and in the class.
      progress: told the images whose neighbours are known, and all of them.
    Raises: DataError if nothing of what was asked for can be found in these files.
    """
    if not len(predictions):
        raise DataError("The predictions have no images.")
    if train is not None:
        _refuse_another(predictions, train)
    if similarity is not None and not 0 < similarity < 1:
        raise DataError(f"--similarity {similarity:g}: expected more than 0 and less than 1.")
    wanted, notes = list(kinds or KINDS), list[str]()

    def attempt(problem: str | None, which: tuple[Kind, ...]) -> None:
        if problem is not None and any(kind in wanted for kind in which):
            if kinds is not None:
                raise DataError(problem)
            notes.append(f"not looked for: {', '.join(k for k in which if k in wanted)}. {problem}")
            wanted[:] = [kind for kind in wanted if kind not in which]

    attempt(_no_labels(predictions), ("labels",))
    items, features_FD, problem = _usable_features(predictions, train)
    if problem is not None and train is not None:
        raise DataError(problem)
    attempt(problem, ("duplicates", "outliers"))
    if not wanted:
        raise DataError("Nothing can be found in these predictions.", *notes)
    labels = find_label_errors(predictions) if "labels" in wanted else None
    groups: list[list[tuple[Item, float]]] | None = None
    outliers: Outliers | None = None
    if features_FD is not None and {"duplicates", "outliers"} & {*wanted}:
        lost = len(predictions) + (0 if train is None else len(train)) - len(items)
        if lost:
            notes.append(f"{lost:,} images without usable features are left out of these")
        neighbours = find_neighbours(features_FD, progress=progress)
        if "duplicates" in wanted:
            near_F = np.full(len(items), 1 - (similarity or 0))
            if similarity is None:
                near_F = neighbours.near(_guesses(items, predictions, train))
            groups = [
                [(items[place], float(neighbours.distances[place, 0])) for place in group]
                for group in group_duplicates(neighbours, near_F)
            ]
        if "outliers" in wanted:
            outliers = find_outliers(neighbours)
    doubts = Doubts(predictions, train, labels, groups, similarity, outliers, items, tuple(notes))
    if groups is not None:
        groups.sort(key=partial(_rank, doubts))
    return doubts


def _rank(doubts: Doubts, group: Sequence[tuple[Item, float]]) -> tuple[bool, bool, int, float]:
    closest = min(distance for _, distance in group)
    return not doubts.disagrees(group), not doubts.spans(group), -len(group), closest


def _guesses(
    items: Sequence[Item], predictions: Predictions, train: Predictions | None
) -> NDArray[np.int64]:
    """Return [F], what the model takes each image for."""
    given = predictions.predictions, predictions.predictions if train is None else train.predictions
    return np.array([given[item.file == "train"][item.index] for item in items])


def _no_labels(predictions: Predictions) -> str | None:
    if predictions.label_sets is not None:
        return "Images may have several labels each; labels are doubted where each has one."
    if not (predictions.labels >= 0).any():
        return "No image has a known label."
    if not (predictions.readable & (predictions.labels >= 0)).any():
        return "No image with a known label could be read."
    return None


def _usable_features(
    predictions: Predictions, train: Predictions | None
) -> tuple[list[Item], NDArray[np.float32] | None, str | None]:
    """Return the images with features, these [F, D], and what is in the way, if something is."""
    parts: list[NDArray[np.float32]] = []
    items: list[Item] = []
    named: tuple[tuple[Literal["predictions", "train"], Predictions | None], ...]
    named = ("predictions", predictions), ("train", train)
    for name, given in named:
        if given is None:
            continue
        if given.features is None:
            which = "predictions" if name == "predictions" else "training predictions"
            return (
                [],
                None,
                f"The {which} have no features, by which images are found alike or far: save them "
                "with `vitbase eval --save_predictions FILE.parquet --save_features`.",
            )
        lengths = np.linalg.norm(given.features, axis=1)
        usable = np.flatnonzero(given.readable & np.isfinite(lengths) & (lengths > 0))
        parts.append(given.features if len(usable) == len(given) else given.features[usable])
        items += [Item(name, index) for index in usable.tolist()]
    if len(items) < 2:
        return [], None, f"{len(items)} images have usable features; at least 2 are needed."
    return items, parts[0] if len(parts) == 1 else np.concatenate(parts), None


def _refuse_another(predictions: Predictions, train: Predictions) -> None:
    """Raise a DataError if the files are not by one model, or are the same one."""
    if not len(train):
        raise DataError("The training predictions have no images.")
    if predictions.classes and train.classes and predictions.classes != train.classes:
        raise DataError(
            f"The training predictions are of other classes ({len(train.classes)}, not "
            f"{len(predictions.classes)}, or others): give those of the same model and data set."
        )
    ours, theirs = (each.meta.get("weights") for each in (predictions, train))
    if ours is not None and theirs is not None and ours != theirs:
        raise DataError(
            f"The predictions are by {shown(ours)}, those of training by {shown(theirs)}: features "
            "of two models cannot be compared. Predict both with the same weights."
        )
    if predictions.features is None or train.features is None:
        return
    widths = predictions.features.shape[1], train.features.shape[1]
    if widths[0] != widths[1]:
        raise DataError(
            f"The predictions have {widths[0]} features an image, those of training {widths[1]}: "
            "predict both with the same weights."
        )
    if predictions.ids == train.ids and np.array_equal(predictions.features, train.features):
        raise DataError("The training predictions are the same images once more.")
