"""The doctor: what is in a data set that training would stumble over, or learn wrongly from.

Every image is read and decoded once. A finding is either an error, with which training would be
wrong, or a note of what a person may want to know.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitbase.data.decode import FORMATS, decode
from vitbase.data.layouts import has_val, open_source
from vitbase.data.protocol import Source
from vitbase.errors import ImageError
from vitbase.runtime import available_cores

EXAMPLES = 5
"""Places named for a finding; a report in JSON has `MANY` of them."""
MANY = 1000

_EXIF_ORIENTATION = 0x0112
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
}
_SMALLEST_SIDE, _LARGEST_SIDE, _LARGEST_ASPECT = 16, 12_000, 20
_IMBALANCE = 10

# What may be found in an image: whether training would be wrong, and what becomes of it.
KINDS: dict[str, tuple[bool, str]] = {
    "unreadable": (True, "left out of training, counted as wrong in evaluation"),
    "truncated": (True, "left out of training, counted as wrong in evaluation"),
    "same image, other label": (True, "one of the labels is wrong"),
    "also in training": (True, "evaluation would flatter"),
    "unknown class": (True, "a model trained here has no output for it"),
    "class order": (True, "labels would not be those of ImageNet's models"),
    "absurd size": (False, "used as it is"),
    "CMYK": (False, "converted as Pillow does"),
    "16-bit": (False, "scaled to 8 bits"),
    "animated": (False, "only the first frame is used"),
    "EXIF-rotated": (False, "used as stored, not as displayed"),
    "wrong suffix": (False, "recognised by content"),
    "duplicate": (False, "the same bytes in the same class"),
}


class Place(NamedTuple):
    """Where something was found, and what exactly."""

    path: str
    detail: str


@dataclass
class SplitReport:
    """What was found in the images of one split."""

    name: str
    images: int
    class_names: tuple[str, ...]
    class_counts: list[int]
    findings: dict[str, list[Place]]
    counts: dict[str, int]
    formats: dict[str, int]
    notes: list[str] = field(default_factory=list)
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    labels: NDArray[Any] = field(default_factory=lambda: np.zeros(0))

    @property
    def wrong(self) -> bool:
        """Whether training or evaluating with these images would be wrong."""
        return any(KINDS[kind][0] for kind, count in self.counts.items() if count)

    def add(self, kind: str, place: Place) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.findings.setdefault(kind, [])
        if len(places) < MANY:
            places.append(place)

    def lines(self) -> Iterator[str]:
        """Yield a table of the split."""
        counts = sorted(self.class_counts)
        spread = f"{counts[0]} to {counts[-1]} images each" if counts else "no images"
        formats = ", ".join(f"{count} {kind}" for kind, count in sorted(self.formats.items()))
        yield f"{self.name}: {self.images} images, {len(self.class_names)} classes, {spread}"
        if formats:
            yield f"  formats: {formats}"
        for note in self.notes:
            yield f"  {note}"
        for kind, (wrong, outcome) in KINDS.items():
            count = self.counts.get(kind, 0)
            if count:
                yield f"  {'ERROR' if wrong else 'note '} {count} {kind}: {outcome}"
                for place in self.findings[kind][:EXAMPLES]:
                    yield f"          {place.path}" + (f" ({place.detail})" if place.detail else "")
                if count > EXAMPLES:
                    yield f"          … and {count - EXAMPLES} more"
        if not any(self.counts.values()):
            yield "  no faults found"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "split": self.name,
            "images": self.images,
            "classes": dict(zip(self.class_names, self.class_counts, strict=True)),
            "formats": self.formats,
            "notes": self.notes,
            "wrong": self.wrong,
            "findings": {
                kind: {
                    "images": self.counts[kind],
                    "error": KINDS[kind][0],
                    "outcome": KINDS[kind][1],
                    "places": [place._asdict() for place in places],
                }
                for kind, places in self.findings.items()
            },
        }


class _Facts(NamedTuple):
    digest: int
    format: str
    faults: tuple[tuple[str, str], ...]  # (kind, detail)


@dataclass
class DataReport:
    """What was found in a data set: the training images and, where there are any, the others'."""

    splits: list[SplitReport]

    @property
    def wrong(self) -> bool:
        """Whether training or evaluating with this data would be wrong."""
        return any(split.wrong for split in self.splits)

    def lines(self) -> Iterator[str]:
        """Yield tables for a screen, and a verdict."""
        for split in self.splits:
            yield from split.lines()
            yield ""
        yield (
            "Training would be wrong: mend what is marked ERROR."
            if self.wrong
            else "Nothing here would make training wrong."
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {"wrong": self.wrong, "splits": [split.to_dict() for split in self.splits]}


def check_data(
    data_path: str,
    val_data_path: str | None = None,
    *,
    num_workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda split, done, images: None,
) -> DataReport:
    """Check the images that a run would train on, and those it would be evaluated on.

    Args:
      data_path: as the option of that name.
      val_data_path: likewise.
      num_workers: threads; None: one per usable core.
      progress: told a split's name, images done, and images in all, now and then.
    Raises: DataError if nothing can be opened there.
    """
    train = open_source(data_path, "train", "data_path")
    val = None
    if val_data_path is not None:
        val = open_source(val_data_path, "val", "val_data_path")
    elif has_val(data_path):
        val = open_source(data_path, "val", "data_path")
    reports = []
    for name, source in (("training", train), ("evaluation", val)):
        if source is not None:
            tell = partial(_tell, progress, name, len(source))
            reports.append(check_split(name, source, num_workers=num_workers, progress=tell))
    if val is not None:
        check_leak(reports[0], reports[1], val)
        _compare_classes(reports[0], reports[1])
    return DataReport(reports)


def _tell(progress: Callable[[str, int, int], None], name: str, images: int, done: int) -> None:
    progress(name, done, images)


def _compare_classes(train: SplitReport, val: SplitReport) -> None:
    unknown = [name for name in val.class_names if name not in train.class_names]
    for name in unknown:
        val.add("unknown class", Place(name, "not among the training classes"))


def check_split(
    name: str,
    source: Source,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> SplitReport:
    """Read and decode every image of a source, and report what was found.

    Args:
      name: of the split, for the report.
      num_workers: threads; None: one per usable core.
      progress: told the number of images done, now and then.
    """
    labels = np.asarray(source.labels)
    single = labels if labels.ndim == 1 else labels.argmax(1)
    several = labels.ndim == 2
    counts = labels.sum(0) if several else np.bincount(single, minlength=len(source.class_names))
    report = SplitReport(
        name,
        len(source),
        source.class_names,
        [int(count) for count in counts],
        {},
        {},
        {},
        list(source.notes),
        np.zeros(len(source), np.uint64),
        labels,
    )

    def look(first: int) -> list[_Facts]:
        return [_look_at(source, index) for index in range(first, min(first + _CHUNK, len(source)))]

    with ThreadPoolExecutor(num_workers or available_cores()) as pool:
        starts = range(0, len(source), _CHUNK)
        for first, found in zip(starts, pool.map(look, starts), strict=True):
            for index, facts in enumerate(found, first):
                report.digests[index] = facts.digest
                report.formats[facts.format] = report.formats.get(facts.format, 0) + 1
                for kind, detail in facts.faults:
                    report.add(kind, Place(source.describe(index), detail))
            progress(min(first + _CHUNK, len(source)))
    report.formats.pop("", None)
    _note_classes(report)
    _find_duplicates(report, source)
    return report


_CHUNK = 64


def check_leak(train: SplitReport, val: SplitReport, source: Source) -> None:
    """Report the evaluation images that are in training too, byte for byte."""
    for index in np.flatnonzero(np.isin(val.digests, train.digests)).tolist():
        val.add("also in training", Place(source.describe(index), ""))


def _note_classes(report: SplitReport) -> None:
    counts = [count for count in report.class_counts if count]
    absent = len(report.class_counts) - len(counts)
    if absent:
        report.notes.append(f"{absent} classes have no images")
    if counts and max(counts) >= _IMBALANCE * min(counts):
        most = report.class_names[int(np.argmax(report.class_counts))]
        least = report.class_names[report.class_counts.index(min(counts))]
        report.notes.append(
            f"unbalanced: '{most}' has {max(counts)} images, '{least}' {min(counts)}"
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
        detail = f"as {source.describe(first)}"
        report.add(kind, Place(source.describe(again), detail))


def _look_at(source: Source, index: int) -> _Facts:
    """Read and decode one image; unreadable ones have digest 0."""
    try:
        raw = source.read(index)
    except ImageError as error:
        return _Facts(0, "", (("unreadable", str(error)),))
    content = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
    digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "little") or 1
    if not isinstance(raw, bytes):
        return _Facts(digest, "", ())
    faults: list[tuple[str, str]] = []
    kind = _look_at_header(raw, os.path.splitext(source.describe(index))[1].lower(), faults)
    try:
        decode(raw)
    except ImageError as error:
        text = str(error)
        faults.append(("truncated" if "truncated" in text else "unreadable", text))
        digest = 0
    return _Facts(digest, kind, tuple(faults))


def _look_at_header(data: bytes, suffix: str, faults: list[tuple[str, str]]) -> str:
    """Add what an image's header tells to its faults; return its format, or nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = image.format or ""
            width, height = image.size
            mode = image.mode
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's plugins raise many kinds; decoding says what is wrong
        return ""
    if mode == "CMYK":
        faults.append(("CMYK", ""))
    if mode.startswith("I") or mode == "F":
        faults.append(("16-bit", mode))
    if frames > 1 and kind != "MPO":
        faults.append(("animated", f"{frames} frames"))
    if turned not in (0, 1):
        faults.append(("EXIF-rotated", f"orientation {turned}"))
    if suffix and kind in _SUFFIXES and suffix not in _SUFFIXES[kind]:
        faults.append(("wrong suffix", f"a {kind}"))
    smaller, larger = sorted((height, width))
    if (
        smaller < _SMALLEST_SIDE
        or larger > _LARGEST_SIDE
        or larger > _LARGEST_ASPECT * max(smaller, 1)
    ):
        faults.append(("absurd size", f"{width}x{height} pixels"))
    return kind
