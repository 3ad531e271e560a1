"""What is remarkable about the classes of a data set, and which images their names belie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from vitbase.curation.checking.report import Place, SplitReport
from vitbase.errors import DataError
from vitbase.sources.imagenet.classes import NUM_CLASSES, imagenet_synsets, readable_name
from vitbase.sources.imagenet.order import (
    class_order_problem,
    find_synset,
    majority_synsets,
    train_synset,
    val_class,
)
from vitbase.sources.open import match_classes
from vitbase.sources.source import Source, class_counts

IMBALANCE = 10
"""The largest class has so many times the images of the smallest: worth a note."""


def check_counts(report: SplitReport) -> None:
    """Note classes without images and a large imbalance; a single class is an error."""
    names, counts = report.class_names, report.class_counts
    if len(names) < 2 and report.labels.ndim == 1:
        report.add("single class", Place(report.place, f"'{names[0]}'"))
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        listing = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        report.notes.append(f"{len(absent)} of {len(names)} classes have no images: {listing}")
    present = [count for count in counts if count]
    if present and max(present) >= IMBALANCE * min(present):
        most, least = names[counts.index(max(present))], names[counts.index(min(present))]
        report.notes.append(
            f"unbalanced: '{most}' has {max(present)} images, '{least}' {min(present)}"
        )


def check_order(report: SplitReport, source: Source) -> None:
    """Report where ImageNet's classes are numbered otherwise, and images in another's folder.

    ImageNet's training images tell their synset by name, wherever they lie and whatever number a
    table gives them; of its evaluation images, the classes of the first are known.
    """
    names = report.class_names
    problem = class_order_problem(names)
    if report.labels.ndim == 1:
        counts, misfiled, strays = _read_image_names(report, source)
        if problem is None:
            problem = class_order_problem(names, majority_synsets(counts))
        for place in misfiled:
            report.add("misfiled", place)
        if problem is None and len(strays) > 1:
            problem = "; ".join(strays[:2])
    if problem is not None:
        report.add("class order", Place(report.place, problem))


def _read_image_names(
    report: SplitReport, source: Source
) -> tuple[list[Counter[str]], list[Place], list[str]]:
    """Return what the images' names tell of the classes.

    That is, of every class, how many images tell which synset; images that tell another class of
    this data than theirs; and what is wrong with the labels of ImageNet's first evaluation images.
    """
    counts: list[Counter[str]] = [Counter() for _ in report.class_names]
    own = [find_synset(name) for name in report.class_names]
    known = {synset for synset in own if synset}
    whole = len(own) == NUM_CLASSES
    misfiled: list[Place] = []
    strays: list[str] = []
    for index, path, label in _paths(report, source):
        synset = train_synset(path)
        counts[label][synset or ""] += 1
        if synset in known and own[label] not in (synset, None):
            told = f"its name says {synset} ({readable_name(synset or '')})"
            misfiled.append(Place(source.describe(index), told))
        number = val_class(path)
        if number is not None and whole and number != label:
            right = imagenet_synsets()[number]
            strays.append(
                f"{path.rpartition('/')[2]} has class {label} ({report.class_names[label]}); in "
                f"ImageNet it is {number} ({right}, {readable_name(right)})"
            )
    return counts, misfiled, strays


def _paths(report: SplitReport, source: Source) -> Iterator[tuple[int, str, int]]:
    relative = getattr(source, "relative_path", None)
    if relative is not None:
        for index, label in enumerate(report.labels.tolist()):
            yield index, relative(index), label


def check_classes_match(train: Source, val: Source, report: SplitReport) -> None:
    """Report the evaluation classes that training does not know, as a run would refuse them.

    Args:
      train: the training images.
      val: the evaluation images.
      report: of these; gets what is found.
    """
    if val.class_names == train.class_names:
        return
    if val.labels.ndim != train.labels.ndim and val.labels.ndim == 2:
        raise DataError(
            "The evaluation images have several labels each, the training images one: give both "
            "the same way."
        )
    present = class_counts(val.labels, len(val.class_names))
    table, notes = match_classes(val, present > 0, train.class_names)
    report.notes += notes
    for number in np.flatnonzero((present > 0) & (table < 0)).tolist():
        name = val.class_names[number]
        count = int(present[number])
        report.add("unknown class", Place(name, f"{count} image{'s'[: count != 1]}"))
