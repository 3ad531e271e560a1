"""The images that a report shows: the best, the worst, and those of the hardest classes.

They are left as thumbnails beside what was seen in them, so that the report needs no data.
Shape legend: N images, K the most probable classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitbase.data.decode import decode, to_channels
from vitbase.errors import DataError, ImageError
from vitbase.files import json_line, plain_name, remove, write_whole, written_whole
from vitbase.sources.source import Source

EACH = 12
"""Best images, worst images, and hardest classes."""

SIDE = 160
"""Pixels of a thumbnail's longer side, at most."""

_LONGEST_NAME = 300


class Predicted(Protocol):
    """What of :class:`~vitbase.evaluation.predictions.Predictions` is read here."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def predictions(self) -> NDArray[np.int64]: ...
    @property
    def top_K(self) -> NDArray[np.int64]: ...  # noqa: N802 (its shape)
    @property
    def p_K(self) -> NDArray[np.float32]: ...  # noqa: N802
    @property
    def p_label(self) -> NDArray[np.float32]: ...
    @property
    def loss(self) -> NDArray[np.float32]: ...
    @property
    def readable(self) -> NDArray[np.bool_]: ...
    @property
    def classes(self) -> Sequence[str]: ...


class Choice(NamedTuple):
    """An image to show: its row, and why."""

    row: int
    kind: str


def choose(predicted: Predicted, each: int = EACH) -> list[Choice]:
    """Choose images: the same ones for the same predictions.

    Of a class there are few among the best, as easy classes would fill them, and any number among
    the worst. An image is shown once.
    """
    usable = np.flatnonzero(predicted.readable & np.isfinite(predicted.loss))
    order = usable[np.argsort(predicted.loss[usable], kind="stable")]
    worst = [int(row) for row in order[::-1][:each]]
    taken = set(worst)
    hardest = list(_of_hardest(predicted, order[::-1], taken, each))
    taken.update(hardest)
    best = list(_spread(predicted, order, taken, each))
    kinds = (("worst", worst), ("hardest", hardest), ("best", best))
    return [Choice(row, kind) for kind, rows in kinds for row in rows]


def _of_hardest(
    predicted: Predicted, worst_first: NDArray[np.int64], taken: set[int], each: int
) -> Iterator[int]:
    """Yield the worst image of each of the classes that are recognised least."""
    labels = predicted.labels
    labelled = labels >= 0
    if not labelled.any():  # any number of labels an image
        return
    right = labelled & predicted.readable & (predicted.predictions == labels)
    images = np.bincount(labels[labelled])
    hits = np.bincount(labels[right], minlength=len(images))
    recall = np.where(images > 0, hits / np.maximum(images, 1), np.inf)
    hardest = [int(one) for one in np.argsort(recall, kind="stable")[:each] if recall[one] < 1]
    first: dict[int, int] = {}
    for row in worst_first:
        if int(row) not in taken:
            first.setdefault(int(labels[row]), int(row))
    yield from (first[one] for one in hardest if one in first)


def _spread(
    predicted: Predicted, best_first: NDArray[np.int64], taken: set[int], each: int
) -> Iterator[int]:
    """Yield the best images, of one class only as many as are needed to have enough."""
    classes = max(len(np.unique(predicted.predictions[best_first])), 1)
    most, of_class, count = -(-each // classes), Counter[int](), 0
    for row in best_first:
        seen = int(predicted.predictions[row])
        if int(row) in taken or of_class[seen] >= most:
            continue
        of_class[seen] += 1
        count += 1
        yield int(row)
        if count == each:
            return


def write_shown(report: Path, predicted: Predicted, source: Source) -> list[str]:
    """Write the images to show, and what was seen in them, into a run's report folder.

    Args:
      report: `RUN/report`, made if it is not there.
      predicted: of the images of `source`, in its order.
    Returns: a line for each image that could not be read any more.
    Raises: DataError if the predictions are of other images, or the place cannot be written.
    """
    if len(predicted.ids) != len(source):
        raise DataError(f"{len(predicted.ids)} predictions do not fit {len(source)} images.")
    notes: list[str] = []
    place = report / "shown"
    try:
        report.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as beside:
            beside.mkdir()
            entries: list[dict[str, Any]] = []
            for choice in choose(predicted):
                file = f"{len(entries):02}.jpg"
                try:
                    thumbnail(source.read(choice.row)).save(beside / file, "JPEG", quality=82)
                except ImageError as error:
                    notes.append(f"Not shown: {source.describe(choice.row)}: {error}")
                    continue
                entries.append({"file": file, **_entry(predicted, choice)})
            told = {"version": 1, "images": entries}
            write_whole(beside / "shown.json", json_line(told, indent=1) + "\n")
            remove(place)
    except OSError as error:
        raise DataError(f"Cannot write {place}: {error.strerror or error}.") from None
    return notes


def thumbnail(stored: bytes | NDArray[np.uint8]) -> Image.Image:
    """Return a small picture of an image: RGB, no side longer than :data:`SIDE`, same shape.

    Raises: ImageError if it cannot be read.
    """
    pixels = decode(stored) if isinstance(stored, bytes) else to_channels(stored, 3)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _entry(predicted: Predicted, choice: Choice) -> dict[str, Any]:
    row = choice.row
    top = zip(predicted.top_K[row].tolist(), predicted.p_K[row].tolist(), strict=True)
    p_label = float(predicted.p_label[row])
    return {
        "id": _text(predicted.ids[row]),
        "label": _class(predicted, int(predicted.labels[row])),
        "prediction": _class(predicted, int(predicted.predictions[row])),
        "p_label": None if np.isnan(p_label) else round(p_label, 6),
        "top": [
            [_class(predicted, number), round(share, 6)]
            for number, share in top
            if number >= 0 and not np.isnan(share)
        ],
        "kind": choice.kind,
    }


def _class(predicted: Predicted, number: int) -> str:
    if number < 0:
        return ""
    known = number < len(predicted.classes)
    return _text(predicted.classes[number]) if known else str(number)


def _text(name: str) -> str:
    return plain_name(name)[:_LONGEST_NAME]
