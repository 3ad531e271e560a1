"""What every source of images offers, wherever they are stored."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitbase.sources.folders import Labels


class Source(Protocol):
    """Labelled images by index. Reading is safe from several threads.

    Sources are frozen dataclasses with the fields ``labels``, ``class_names`` and ``notes``, so
    that the same images can be given with other labels.
    """

    @property
    def labels(self) -> Labels:
        """int64 [N]; or float32 [N, C] of zeros and ones, where an image may have any number."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return an image file's bytes, or pixels uint8 [H, W, C]. Raises: ImageError."""

    def describe(self, index: int) -> str:
        """Name an image so that a person finds it: its path, or a file and a number."""


def class_counts(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Count the images of every class. Returns: int64 [num_classes]."""
    several = labels.ndim == 2
    counts = np.count_nonzero(labels, 0) if several else np.bincount(labels, minlength=num_classes)
    return np.asarray(counts, np.int64)
