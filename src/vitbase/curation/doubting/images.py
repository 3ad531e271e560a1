"""Images that predictions are of, found by name in a data set, and made small to look at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitbase.config.options import Reading
from vitbase.data.decode import Pixels, decode, to_channels
from vitbase.errors import DataError, ImageError, first_few
from vitbase.evaluation.predictions import Predictions
from vitbase.files import plain_name
from vitbase.sources.layouts import Beside, Given, HeldOut, Layout, find_val, recognise
from vitbase.sources.source import Source
from vitbase.sources.splits import Split


class Found(NamedTuple):
    """Where the images of predictions are.

    Attributes:
      split: as packing and training call it.
      indices: int64 [N], of each image in the source.
    """

    split: Split
    source: Source
    indices: NDArray[np.int64]


def open_splits(
    data_path: str, val_data_path: str | None = None, layout: Reading = "auto"
) -> dict[Split, Source]:
    """Open the training images of a data set and, where they are apart, the evaluation images.

    Args: the options of those names.
    Raises: DataError if nothing can be opened there.
    """
    layouts: dict[Split, Layout] = {"train": recognise(data_path, "data_path", layout)}
    match find_val(data_path, val_data_path, layout):
        case Given(other) | Beside(other):
            layouts["val"] = other
        case HeldOut():
            pass  # those held out are among the training images
    return {split: found.open(split) for split, found in layouts.items()}


def find_images(
    predictions: Predictions, sources: dict[Split, Source], likely: Split, where: str
) -> Found:
    """Find the images of predictions by their names.

    Args:
      predictions: of these images.
      sources: the splits of a data set.
      likely: the split that is looked at first.
      where: the predictions' file, for messages.
    Raises: DataError if no split has all of them, or their labels are others there.
    """
    best: tuple[int, Split, list[str]] | None = None
    for split in sorted(sources, key=lambda name: name != likely):
        source = sources[split]
        place = {plain_name(source.name(index)): index for index in range(len(source))}
        missing = [name for name in predictions.ids if name not in place]
        if not missing:
            found = Found(split, source, np.array([place[name] for name in predictions.ids]))
            _refuse_other_labels(predictions, found, where)
            return found
        if best is None or len(missing) < best[0]:
            best = len(missing), split, missing
    assert best is not None
    count, split, missing = best
    raise DataError(
        f"{where}: {count:,} of {len(predictions):,} images are not in the data "
        f"({first_few(missing, count=False)}; its '{split}' comes nearest). Are they predictions "
        "of another data set?"
    )


def _refuse_other_labels(predictions: Predictions, found: Found, where: str) -> None:
    """Raise a DataError if labels differ; where classes go by other names, nobody can tell."""
    source = found.source
    if source.labels.ndim != 1 or not {*source.class_names} <= {*predictions.classes}:
        return
    number = {name: index for index, name in enumerate(predictions.classes)}
    table = np.array([number[name] for name in source.class_names])
    labels = table[source.labels[found.indices]]
    differing = np.flatnonzero((labels != predictions.labels) & (predictions.labels >= 0))
    if len(differing):
        first = int(differing[0])
        raise DataError(
            f"{where}: {len(differing):,} of {len(predictions):,} images have another label in the "
            f"data: {predictions.ids[first]} is '{predictions.classes[int(labels[first])]}' there, "
            f"'{predictions.class_name(int(predictions.labels[first]))}' in the file. Are they "
            "predictions of another data set, or of labels mended since?"
        )


def thumbnail(source: Source, index: int, side: int) -> Pixels | None:
    """Return an image as uint8 [h, w, 3] that fits a square, enlarged if need be.

    Returns: None if it cannot be read.
    """
    try:
        raw = source.read(index)
        pixels = decode(raw) if isinstance(raw, bytes) else to_channels(np.asarray(raw), 3)
    except ImageError:
        return None
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
