"""What the doctor found: the kinds of findings, and the report of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.sources.source import Source, class_counts

MANY = 1000
"""Places that a report names for a kind of finding; the others are counted."""

KINDS: dict[str, tuple[bool, str]] = {
    "single class": (True, "there is nothing to tell apart"),
    "nothing to evaluate on": (True, "a run would not start without evaluation images"),
    "unknown class": (True, "a model trained here has no output for it"),
    "class order": (True, "labels are not those of ImageNet's models"),
    "misfiled": (True, "the image's name says another class"),
    "same image, other label": (True, "one of the labels is wrong"),
    "also in training": (True, "evaluation would flatter"),
    "damaged shard": (True, "it is not what was packed: fetch or pack it again"),
    "unreadable": (True, "left out of training, counted as wrong in evaluation"),
    "truncated": (True, "left out of training, counted as wrong in evaluation"),
    "duplicate": (False, "the same bytes in the same class"),
    "absurd size": (False, "used as it is"),
    "CMYK": (False, "converted as Pillow does"),
    "16-bit": (False, "scaled to 8 bits"),
    "animated": (False, "only the first frame is used"),
    "EXIF-rotated": (False, "used as stored, not as displayed"),
    "wrong suffix": (False, "recognised by content"),
}
"""What may be found: whether training would be wrong, and what becomes of it."""


class Place(NamedTuple):
    """Where something was found, and what exactly."""

    path: str
    detail: str


class Finding(NamedTuple):
    """All findings of a kind in a split."""

    kind: str
    error: bool
    outcome: str
    times: int
    places: list[Place]


@dataclass
class SplitReport:
    """What was found in the images of one split."""

    name: str
    place: str  # what was opened
    images: int
    class_names: tuple[str, ...]
    class_counts: list[int]
    labels: NDArray[Any]
    digests: NDArray[np.uint64]  # of the images' bytes; 0 where they make no image
    sizes: NDArray[np.int64]  # [N, 3]: height, width, bytes; 0 if unknown
    notes: list[str]
    findings: dict[str, list[Place]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether training or evaluating with these images would be wrong."""
        return any(KINDS[kind][0] for kind, count in self.counts.items() if count)

    def add(self, kind: str, place: Place) -> None:
        """Add a finding."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.findings.setdefault(kind, [])
        if len(places) < MANY:
            places.append(place)

    def ordered(self) -> Iterator[Finding]:
        """Yield what was found, errors first."""
        for kind, (error, outcome) in KINDS.items():
            if self.counts.get(kind):
                yield Finding(kind, error, outcome, self.counts[kind], self.findings[kind])

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        known = self.sizes[self.sizes[:, 0] > 0]
        return {
            "split": self.name,
            "place": self.place,
            "images": self.images,
            "classes": dict(zip(self.class_names, self.class_counts, strict=True)),
            "formats": self.formats,
            "bytes": int(self.sizes[:, 2].sum()),
            "median_height": int(np.median(known[:, 0])) if len(known) else None,
            "median_width": int(np.median(known[:, 1])) if len(known) else None,
            "notes": self.notes,
            "wrong": self.wrong,
            "findings": {
                found.kind: {
                    "images": found.times,
                    "error": found.error,
                    "outcome": found.outcome,
                    "places": [place._asdict() for place in found.places],
                }
                for found in self.ordered()
            },
        }


def empty_report(name: str, place: str, source: Source) -> SplitReport:
    """Return a report that knows of a source what its listing tells."""
    return SplitReport(
        name=name,
        place=place,
        images=len(source),
        class_names=source.class_names,
        class_counts=class_counts(source.labels, len(source.class_names)).tolist(),
        labels=np.asarray(source.labels),
        digests=np.zeros(len(source), np.uint64),
        sizes=np.zeros((len(source), 3), np.int64),
        notes=list(source.notes),
    )


@dataclass
class DataReport:
    """What was found in a data set: the training images and, where there are any, the others'."""

    layout: str
    splits: list[SplitReport]

    @property
    def wrong(self) -> bool:
        """Whether training or evaluating with this data would be wrong."""
        return any(split.wrong for split in self.splits)

    @property
    def verdict(self) -> str:
        """The report in a sentence."""
        found = [finding for split in self.splits for finding in split.ordered()]
        errors = sum(finding.times for finding in found if finding.error)
        others = sum(finding.times for finding in found if not finding.error)
        notes = f" {others} finding{'s'[: others != 1]} worth knowing of." if others else ""
        if not self.wrong:
            return f"Nothing here would make training wrong.{notes}"
        count = f"{errors} error{'s'[: errors != 1]}"
        return f"Training would be wrong: mend what is marked ERROR ({count}).{notes}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "layout": self.layout,
            "wrong": self.wrong,
            "verdict": self.verdict,
            "splits": [split.to_dict() for split in self.splits],
        }
