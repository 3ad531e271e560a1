"""The doctor: what is in a data set that training would stumble over, or learn wrongly from.

Every image is read and decoded once. A finding is either an error, with which training would be
wrong, or a note of what a person may want to know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from vitbase.config.config import Config
from vitbase.config.options import Reading
from vitbase.curation.checking.classes import check_classes_match, check_counts, check_order
from vitbase.curation.checking.images import look_at
from vitbase.curation.checking.report import DataReport, Place, SplitReport, empty_report
from vitbase.curation.packing.files import find_damaged_shards
from vitbase.data.threads import CHUNK, count_workers, map_positions
from vitbase.disk import as_path
from vitbase.sources.holdout import hold_out
from vitbase.sources.layouts import Beside, Given, HeldOut, find_val, recognise
from vitbase.sources.source import Source
from vitbase.sources.splits import Split

Progress = Callable[[str, int, int], None]
"""Told a split's name, images done, and images in all, now and then."""


def check_data(
    data_path: str,
    val_data_path: str | None = None,
    *,
    layout: Reading = "auto",
    holdout_fraction: float = 0.1,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Progress = lambda split, done, images: None,
) -> DataReport:
    """Check the images that a run would train on, and those it would be evaluated on.

    Args:
      data_path: as the option of that name in training.
      val_data_path: likewise.
      layout: likewise.
      holdout_fraction: likewise; it says which images are held out where none are for evaluation.
      seed: likewise.
      num_workers: threads; None: one per usable core.
      progress: told how far it is.
    Raises: DataError if nothing can be opened there; ConfigError on impossible options.
    """
    count_workers(num_workers)
    Config().replace(holdout_fraction=holdout_fraction, seed=seed)  # as a run would take them
    found = recognise(data_path, "data_path", layout)
    train = found.open("train")
    described = found.words
    val: Source | None = None
    val_place = data_path
    notes: tuple[str, ...] = ()
    match find_val(data_path, val_data_path, layout):
        case Given(other, val_place):
            val = other.open("val")
            described += f"; for evaluation {other.words}"
        case Beside(other):
            val = other.open("val")
        case HeldOut():
            part = hold_out(train, holdout_fraction, seed)
            if len(part.val):
                notes = (*train.notes, *part.notes)
                train, val = train.take(part.train), train.take(part.val)

    def check(name: str, place: str, source: Source) -> SplitReport:
        tell = partial(_tell, progress, name, len(source))
        return check_split(name, source, place=place, num_workers=num_workers, progress=tell)

    reports = [check("training", data_path, train)]
    reports[0].notes += notes
    _check_shards(reports[0], "train")
    if val is None:
        reports[0].add("nothing to evaluate on", Place(data_path, "give --val_data_path FOLDER"))
    else:
        reports.append(check("evaluation", val_place, val))
        if not notes:  # else they are of the same shards
            _check_shards(reports[1], "val")
        check_leak(reports[0], reports[1], train, val)
        check_classes_match(train, val, reports[1])
    return DataReport(described, reports)


def _tell(progress: Progress, name: str, images: int, done: int) -> None:
    progress(name, done, images)


def _check_shards(report: SplitReport, split: Split) -> None:
    """Compare packed shards with their checksums."""
    for path, damage in find_damaged_shards(as_path(report.place), split):
        report.add("damaged shard", Place(str(path), damage))


def check_split(
    name: str,
    source: Source,
    *,
    place: str = "",
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> SplitReport:
    """Read and decode every image of a source, and report what was found.

    Args:
      name: of the split, for the report.
      source: the images.
      place: what was opened, for the report.
      num_workers: threads; None: one per usable core.
      progress: told the number of images done, now and then.
    """
    report = empty_report(name, place, source)
    work = partial(look_at, source)
    for index, facts in map_positions(work, range(len(source)), count_workers(num_workers)):
        report.digests[index] = facts.digest
        report.sizes[index] = facts.height, facts.width, facts.size
        if facts.format:
            report.formats[facts.format] = report.formats.get(facts.format, 0) + 1
        for kind, detail in facts.faults:
            report.add(kind, Place(source.describe(index), detail))
        if index % CHUNK == 0:
            progress(index)
    progress(len(source))
    check_counts(report)
    check_order(report, source)
    _find_duplicates(report, source)
    return report


def check_leak(train: SplitReport, val: SplitReport, train_source: Source, source: Source) -> None:
    """Report the evaluation images that are in training too, byte for byte."""
    order = np.argsort(train.digests, kind="stable")
    ordered = train.digests[order]
    for index in np.flatnonzero(np.isin(val.digests, train.digests) & (val.digests != 0)).tolist():
        first = int(order[np.searchsorted(ordered, val.digests[index])])
        val.add(
            "also in training", Place(source.describe(index), f"as {train_source.describe(first)}")
        )


def _find_duplicates(report: SplitReport, source: Source) -> None:
    """Find images with the same bytes; those already unreadable are left out."""
    order = np.argsort(report.digests, kind="stable")
    ordered = report.digests[order]
    repeated = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    for at in repeated.tolist():
        first = int(order[np.searchsorted(ordered, ordered[at], "left")])
        again = int(order[at])
        same = np.array_equal(report.labels[first], report.labels[again])
        kind = "duplicate" if same else "same image, other label"
        report.add(kind, Place(source.describe(again), f"as {source.describe(first)}"))
