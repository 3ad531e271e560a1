"""What is remarkable about the classes of a data set, and which images their names belie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vitbase.curation.checking.report import Place, SplitReport
from vitbase.errors import first_few
from vitbase.sources.imagenet.classes import NUM_CLASSES, imagenet_synsets, readable_name
from vitbase.sources.imagenet.order import class_order_problem, find_synset
from vitbase.sources.open import match_classes, refuse_fewer_labels
from vitbase.sources.source import Source, class_counts

IMBALANCE = 10
"""The largest class has so many times the images of the smallest: worth a note."""

FIRST_VAL = (65, 970, 230, 809, 516, 57)
"""The classes of ILSVRC2012_val_00000001 to 6, in sorted order. (In the development kit's numbers:
490, 361, 171, 822, 297, 482.)"""

_TRAIN_IMAGE = re.compile(r"(?:.*/)?(n\d{8})_\d+\.\w+")
_VAL_IMAGE = re.compile(r"(?:.*/)?ILSVRC2012_val_0000000([1-6])(?!\d).*")


def check_counts(report: SplitReport) -> None:
    """Note classes without images and a large imbalance; a single class is an error."""
    names, counts = report.class_names, report.class_counts
    if len(names) < 2 and report.labels.ndim == 1:
        report.add("single class", Place(report.place, f"'{names[0]}'"))
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        listing = first_few(absent, count=False)
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
    for index, label in enumerate(report.labels.tolist()):
        path = source.name(index)
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


def train_synset(path: str) -> str | None:
    """Return the synset that the name of one of ImageNet's training images tells."""
    match = _TRAIN_IMAGE.fullmatch(path)
    return match[1] if match else None


def val_class(path: str) -> int | None:
    """Return the class of one of ImageNet's first evaluation images, by its name."""
    match = _VAL_IMAGE.fullmatch(path)
    return FIRST_VAL[int(match[1]) - 1] if match else None


def majority_synsets(counts: Sequence[Counter[str]]) -> list[str | None]:
    """Return the synset that most images of each class tell by their names, if most do.

    Args:
      counts: of each class, how many images tell which synset; "" for none.
    """
    found: list[str | None] = []
    for count in counts:
        synset, images = count.most_common(1)[0] if count else ("", 0)
        found.append(synset if synset and 2 * images > count.total() else None)
    return found


def check_classes_match(train: Source, val: Source, report: SplitReport) -> None:
    """Report the evaluation classes that training does not know, as a run would refuse them.

    Args:
      train: the training images.
      val: the evaluation images.
      report: of these; gets what is found.
    """
    if val.class_names == train.class_names:
        return
    refuse_fewer_labels(train, val)
    present = class_counts(val.labels, len(val.class_names))
    table, notes = match_classes(val, present > 0, train.class_names)
    report.notes += notes
    for number in np.flatnonzero((present > 0) & (table < 0)).tolist():
        name = val.class_names[number]
        count = int(present[number])
        report.add("unknown class", Place(name, f"{count} image{'s'[: count != 1]}"))
