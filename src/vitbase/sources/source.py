"""What every source of images offers, wherever they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError
from vitbase.files import unlisted

Labels = NDArray[Any]
"""int64 [N], one class an image; or float32 [N, C] of zeros and ones, any number of classes."""

UNKNOWN_SIZE = -1

LARGEST_TABLE = 1 << 33
"""Bytes of the labels of images that may have several: two million images of a thousand classes."""


class Images(Protocol):
    """Stored images by row. A kind of storage is these five methods, safe from several threads."""

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return an image file's bytes, or pixels uint8 [H, W, C]. Raises: ImageError."""

    def name(self, row: int) -> str:
        """Return an image's name within the data set, which lasts wherever that lies."""

    def size(self, row: int) -> int:
        """Return an image's bytes where they are known without reading it, or UNKNOWN_SIZE."""
        return UNKNOWN_SIZE

    def digest(self, row: int, *, probe: bool = False) -> bytes:
        """Return a digest of an image's content; a probe may be one of a part, sooner read.

        Raises: ImageError
        """
        return blake2b(bytes(self.read(row)), digest_size=32).digest()

    def describe(self, row: int) -> str:
        """Name an image so that a person finds it: its path, or a file and a number."""


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images by index, its methods those of :class:`Images`.

    The same images with other labels, class names or notes: `dataclasses.replace`.
    """

    images: Images
    rows: NDArray[np.int64]  # [N]: which of the stored images these are
    labels: Labels
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    named: bool = True  # whether the class names were given, rather than counted
    decoded: bool = False  # whether the images are pixels in memory, rather than files

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        return self.images.read(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def describe(self, index: int) -> str:
        return self.images.describe(int(self.rows[index]))

    def take(self, indices: NDArray[np.int64]) -> Source:
        """Return the part of this source at some indices, in that order."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices], notes=())


def unlabelled(count: int) -> tuple[Labels, tuple[str, ...]]:
    """Return labels and class names of images whose classes nobody asks for."""
    return np.zeros(count, np.int64), ("",)


def class_counts(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Count the images of every class. Returns: int64 [num_classes]."""
    several = labels.ndim == 2
    counts = np.count_nonzero(labels, 0) if several else np.bincount(labels, minlength=num_classes)
    return np.asarray(counts, np.int64)


def counted_names(count: int) -> tuple[str, ...]:
    """Return the names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def name_class(class_names: Sequence[str], number: int) -> str:
    """Return a class's name in quotes; its number, where it has no other name."""
    name = class_names[number] if number < len(class_names) else str(number)
    return name if name == str(number) else f"'{name}'"


def parse_names(text: str, where: object) -> tuple[str, ...]:
    """Return the class names in a text, one a line. Raises: DataError as `refuse_repeated`."""
    names = tuple(unlisted(text))
    refuse_repeated(names, where)
    return names


def refuse_repeated(names: Sequence[str], where: object) -> None:
    """Raise a DataError, naming where they stand, if two class names are the same."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: the name '{name}' stands there twice.")
        seen.add(name)


def no_labels(images: int, classes: int, where: object) -> NDArray[np.float32]:
    """Return a table of labels in which no image is of any class yet.

    Raises: DataError, naming where they come from, if they are too many for a memory.
    """
    if 4 * images * classes > LARGEST_TABLE:
        raise DataError(
            f"{where}: {images:,} images with any of {classes:,} classes would make a table of "
            f"{4 * images * classes:,} bytes. Are these labels the images' own names, or captions?"
        )
    return np.zeros((images, classes), np.float32)
