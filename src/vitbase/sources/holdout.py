"""A part of the training images, held out for evaluation where there is none.

Which images are held out depends on the seed and on the images' names within the data set, not
on the machine, the place of the folder, or the order of its listing. Files with the same content
stay on the same side, under whatever class they are filed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import ImageError
from vitbase.sources.source import Source, class_counts


@dataclass(frozen=True)
class Holdout:
    """Indices into the source, ascending, and what was held out by name."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    held_out: tuple[str, ...]  # names
    notes: tuple[str, ...]


def hold_out(source: Source, fraction: float, seed: int) -> Holdout:
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
    held_out = tuple(source.name(int(i)) for i in val)
    return Holdout(train, val, held_out, tuple(_notes(source, groups, classes_of, val)))


def _first_labels(source: Source) -> NDArray[np.int64]:
    """Return a class for every image; of those without any, the number after the last class."""
    labels: NDArray[np.int64] = source.labels
    if labels.ndim == 2:
        labels = np.where(labels.any(1), labels.argmax(1), labels.shape[1])
    return labels


def _notes(
    source: Source,
    groups: list[list[int]],
    classes_of: list[list[int]],
    val: NDArray[np.int64],
) -> Iterable[str]:
    yield (
        f"{len(val)} of {len(source)} images are held out for evaluation, from every class alike."
    )
    repeated = [group for group in groups if len(group) > 1]
    if repeated:
        a, b = (source.name(i) for i in repeated[0][:2])
        files = sum(len(group) for group in repeated)
        yield f"{files} files have a twin of the same content (such as {a} and {b}): same side."
    torn = [group for group, classes in zip(groups, classes_of, strict=True) if len(classes) > 1]
    if torn:
        a, b = (source.name(i) for i in _of_two_classes(_first_labels(source), torn[0]))
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


def _rank(source: Source, group: list[int], seed: int) -> bytes:
    """Return the group's place in the draw: a keyed digest of its first path."""
    path = min(os.fsencode(source.name(i)) for i in group)
    return blake2b(path, digest_size=16, key=seed.to_bytes(8, "little")).digest()


def _groups_of_equals(source: Source) -> list[list[int]]:
    """Group the images by content: by size, then a probe of equal sizes, then a full digest."""
    images, rows = source.images, source.rows
    looks: tuple[Callable[[int], Hashable], ...] = (
        lambda index: images.size(int(rows[index])),
        lambda index: images.digest(int(rows[index]), probe=True),
        lambda index: images.digest(int(rows[index])),
    )
    groups: list[list[int]] = [list(range(len(source)))]
    for look in looks:
        finer: list[list[int]] = []
        for group in groups:
            finer += [group] if len(group) == 1 else _split(group, look)
        groups = finer
    return groups


def _split(group: list[int], look: Callable[[int], Hashable]) -> list[list[int]]:
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        try:
            found = look(index)
        except ImageError:
            found = ("unreadable", index)  # like nothing else; training will name it
        parts[found].append(index)
    return list(parts.values())
