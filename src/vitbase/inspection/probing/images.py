"""The images that a probe looks at: those that a run would train on, and hold out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitbase.config.config import Config
from vitbase.errors import ConfigError, DataError, first_few
from vitbase.evaluation.features import Features
from vitbase.inspection.probing.knn import NEIGHBOURS
from vitbase.inspection.probing.shots import draw_evenly
from vitbase.sources.open import TrainVal, open_train_val
from vitbase.sources.source import Source, class_counts, name_class

SHOTS = (5, 10)
"""Of the few-shot accuracies, where nobody asks for others; the ViT paper has the first."""


def open_images(config: Config, max_images: int | None) -> TrainVal:
    """Open the training and evaluation images, of each at most so many, from every class alike.

    Raises: DataError as `open_train_val`, or if images have several labels each.
    """
    data = open_train_val(config)
    if data.train.labels.ndim == 2:
        raise DataError(
            f"--data_path {config.data.data_path}: its images may have several labels each. A "
            "probe tells images of one label each apart; for these, train a head alone: "
            "vitbase train linear_probe."
        )
    if max_images is None:
        return data
    seed = config.run.seed
    train, val = (_some(source, max_images, seed) for source in (data.train, data.val))
    notes = tuple(
        f"{len(part):,} of {len(whole):,} {what} images are looked at, from every class alike."
        for what, whole, part in (
            ("training", data.train, train),
            ("evaluation", data.val, val),
        )
        if len(part) < len(whole)
    )
    return TrainVal(train, val, data.held_out, (*data.notes, *notes))


def _some(source: Source, count: int, seed: int) -> Source:
    if len(source) <= count:
        return source
    return source.take(draw_evenly(source.labels, count, seed))


def check_counts(
    labels_N: NDArray[np.int64],
    class_names: tuple[str, ...],
    shots: tuple[int, ...] | None,
    neighbours: int | None,
) -> tuple[tuple[int, ...], int, list[str]]:
    """Say how many shots and neighbours training images allow.

    Args:
      labels_N: [N] int64, of the images that can be read.
      shots: asked for; None: those of :data:`SHOTS` that every class has images for.
      neighbours: asked for; None: as DINO, or all images, if they are fewer.
    Returns: shots; neighbours; and what is remarkable.
    Raises: DataError if fewer than two classes have images; ConfigError if there are fewer images
      than were asked for.
    """
    counts = class_counts(labels_N, len(class_names))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise DataError("Fewer than two classes have training images that can be read.")
    rarest = int(present[np.argmin(counts[present])])
    fewest, whose = int(counts[rarest]), name_class(class_names, rarest)
    too_many = [each for each in shots or () if each > fewest]
    if too_many:
        raise ConfigError(
            f"Option 'shots' asks for {too_many[0]} images of each class, and class {whose} has "
            f"{fewest} to train on: give --shots {fewest}, or fewer."
        )
    if neighbours is not None and neighbours > len(labels_N):
        raise ConfigError(
            f"Option 'neighbours' is {neighbours}, and there are {len(labels_N):,} training "
            f"images: give at most as many."
        )
    notes = []
    absent = [class_names[number] for number in np.flatnonzero(counts == 0)]
    if absent:
        notes.append(f"{len(absent)} classes have no training images: {first_few(absent)}.")
    if shots is None:
        shots = tuple(each for each in SHOTS if each <= fewest)
        if shots != SHOTS:
            left = ", ".join(str(each) for each in SHOTS if each > fewest)
            notes.append(f"Class {whose} has {fewest} images to train on: no {left}-shot accuracy.")
    if neighbours is None:
        neighbours = min(NEIGHBOURS, len(labels_N))
        if neighbours < NEIGHBOURS:
            notes.append(f"There are {neighbours} training images: so many neighbours vote.")
    return shots, neighbours, notes


def find_readable(
    features: Features,
    source: Source,
    what: str,
    most: int | None,
    tell: Callable[[str], None],
) -> NDArray[np.bool_]:
    """Return which images could be read, [N], and name the others.

    Args:
      what: "training" or "evaluation".
      most: that may be unreadable; None: any number.
      tell: gets a line for each of the first of them.
    Raises: DataError if more are unreadable than may be, or all.
    """
    causes = features.causes
    readable_N = np.ones(len(source), np.bool_)
    readable_N[[*causes]] = False
    becomes = "left out" if what == "training" else "counted as wrong"
    for index in sorted(causes)[:_TOLD]:
        tell(f"Unreadable {what} image {source.describe(index)}: {causes[index]}; {becomes}")
    if len(causes) > _TOLD:
        tell(f"{len(causes):,} of {len(source):,} {what} images are unreadable; {becomes}")
    if most is not None and len(causes) > most:
        raise DataError(
            f"{len(causes):,} of {len(source):,} {what} images are unreadable, more than "
            f"max_bad_images {most}: mend them (vitbase data check names each), or give "
            f"--max_bad_images {len(causes)}."
        )
    if not readable_N.any():
        raise DataError(f"None of the {len(source):,} {what} images can be read.")
    return readable_N


_TOLD = 10
"""Unreadable images that are named."""
