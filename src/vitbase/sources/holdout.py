"""A part of the training images, held out for evaluation where there is none.

Which images are held out depends on the seed and on the images' paths relative to their root, not
on the machine, the place of the folder, or the order of its listing. Files with the same content
stay on the same side, under whatever class they are filed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import ImageError
from vitbase.sources.folders import FolderSource
from vitbase.sources.huggingface import HuggingFaceSource
from vitbase.sources.shards.source import ShardSource
from vitbase.sources.source import Source, class_counts

_PROBE_BYTES = 4096


class Divisible(Source, Protocol):
    """A source of which a part can be taken, whose images have names that last."""

    def relative_path(self, index: int) -> str:
        """Return an image's name within the data set, wherever that lies."""

    def take(self, indices: NDArray[np.int64]) -> Self:
        """Return the part of this source at some indices, in that order."""


@dataclass(frozen=True)
class Holdout:
    """Indices into the source, ascending, and what was held out by name."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    held_out: tuple[str, ...]  # relative paths
    notes: tuple[str, ...]


def hold_out(source: Divisible, fraction: float, seed: int) -> Holdout:
    """Choose a stratified part of the images for evaluation.

    In every class, the rounded fraction of its distinct images is held out: at least one, and at
    least one stays, where it has two. Images filed under several classes stay in training unless
    a class has nothing else to hold out. Where labels are multi-hot, an image counts for the
    first of its classes.

    Args:
      source: the images; every file is looked at, only files of equal size are read.
      fraction: share of every class, between 0 and 1.
      seed: another seed holds out other images.
    """
    labels = _first_labels(source)
    groups = _groups_of_equals(source)
    groups.sort(key=lambda group: _rank(source, group, seed))
    classes_of = [sorted({int(labels[i]) for i in group}) for group in groups]
    groups_of_class: dict[int, list[int]] = defaultdict(list)
    for number, classes in enumerate(classes_of):
        for label in classes:
            groups_of_class[label].append(number)
    left = {label: len(numbers) for label, numbers in groups_of_class.items()}
    chosen: set[int] = set()

    def choose(number: int) -> bool:
        if any(left[label] < 2 for label in classes_of[number]):
            return False  # a class would be left without a training image
        chosen.add(number)
        for label in classes_of[number]:
            left[label] -= 1
        return True

    for numbers in groups_of_class.values():
        wanted = max(1, int(fraction * len(numbers) + 0.5))
        for number in [n for n in numbers if len(classes_of[n]) == 1][:wanted]:
            choose(number)
    for _, numbers in sorted(groups_of_class.items()):
        if not chosen.intersection(numbers):
            next(filter(choose, numbers), None)

    val = np.sort(np.array([i for n in chosen for i in groups[n]], np.int64))
    train = np.setdiff1d(np.arange(len(source)), val)
    held_out = tuple(source.relative_path(int(i)) for i in val)
    return Holdout(train, val, held_out, tuple(_notes(source, groups, classes_of, val)))


def _first_labels(source: Source) -> NDArray[np.int64]:
    """Return a class for every image; of those without any, the number after the last class."""
    labels: NDArray[np.int64] = source.labels
    if labels.ndim == 2:
        labels = np.where(labels.any(1), labels.argmax(1), labels.shape[1])
    return labels


def _notes(
    source: Divisible,
    groups: list[list[int]],
    classes_of: list[list[int]],
    val: NDArray[np.int64],
) -> Iterable[str]:
    yield (
        f"{len(val)} of {len(source)} images are held out for evaluation, from every class alike."
    )
    repeated = [group for group in groups if len(group) > 1]
    if repeated:
        a, b = (source.relative_path(i) for i in repeated[0][:2])
        files = sum(len(group) for group in repeated)
        yield f"{files} files have a twin of the same content (such as {a} and {b}): same side."
    torn = [group for group, classes in zip(groups, classes_of, strict=True) if len(classes) > 1]
    if torn:
        a, b = (source.relative_path(i) for i in _of_two_classes(_first_labels(source), torn[0]))
        yield f"{len(torn)} images are filed under several classes (such as {a} and {b})."
    everywhere = class_counts(source.labels, len(source.class_names))
    here = class_counts(source.labels[val], len(source.class_names))
    for label in np.flatnonzero((here == 0) & (everywhere > 0)):
        yield (
            f"class '{source.class_names[label]}' has no image to spare for evaluation: "
            "it is trained on, but not evaluated."
        )


def _of_two_classes(labels: NDArray[np.int64], group: list[int]) -> tuple[int, int]:
    other = next(i for i in group if labels[i] != labels[group[0]])
    return group[0], other


def _rank(source: Divisible, group: list[int], seed: int) -> bytes:
    """Return the group's place in the draw: a keyed digest of its first path."""
    path = min(os.fsencode(source.relative_path(i)) for i in group)
    return blake2b(path, digest_size=16, key=seed.to_bytes(8, "little")).digest()


def _groups_of_equals(source: Divisible) -> list[list[int]]:
    """Group the images by content: by size, then a probe of equal sizes, then a full digest."""
    groups: list[list[int]] = [list(range(len(source)))]
    for look in _looks(source):
        finer: list[list[int]] = []
        for group in groups:
            finer += [group] if len(group) == 1 else _split(group, look)
        groups = finer
    return groups


def _looks(source: Divisible) -> Iterable[Callable[[int], Hashable]]:
    """Return ways of looking at an image, the cheapest first: equal images look equal."""
    if isinstance(source, FolderSource):
        files = source.describe
        return (
            lambda index: _size(files(index)),
            lambda index: _probe(files(index)),
            lambda index: _digest(files(index)),
        )
    sizes = np.zeros(len(source), np.int64)  # not known
    if isinstance(source, ShardSource):
        sizes = source.table.places["size"][source.rows].astype(np.int64)
    elif isinstance(source, HuggingFaceSource):
        sizes = source.read_sizes()
    return (lambda index: int(sizes[index]), lambda index: _read_digest(source, index))


def _read_digest(source: Source, index: int) -> bytes:
    return blake2b(bytes(source.read(index)), digest_size=32).digest()


def _split(group: list[int], look: Callable[[int], Hashable]) -> list[list[int]]:
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        try:
            found = look(index)
        except (OSError, ImageError):
            found = ("unreadable", index)  # like nothing else; training will name it
        parts[found].append(index)
    return list(parts.values())


def _size(path: str) -> int:
    return os.stat(path).st_size


def _probe(path: str) -> bytes:
    """Read a piece from the middle: photos of equal size differ there, their headers may not."""
    with open(path, "rb", buffering=0) as file:
        file.seek(max(0, (os.fstat(file.fileno()).st_size - _PROBE_BYTES) // 2))
        return blake2b(file.read(_PROBE_BYTES), digest_size=16).digest()


def _digest(path: str) -> bytes:
    digest = blake2b(digest_size=32)
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()
