"""From the labels that stand in shards to class numbers, and the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError
from vitbase.files import parse_json
from vitbase.sources.shards.index import Label, Shard
from vitbase.sources.shards.layout import MANIFEST
from vitbase.sources.source import counted_names, no_labels, parse_names, refuse_repeated
from vitbase.stores import Store

NAMES_FILE = "classnames.txt"
_DESCRIPTIONS = (MANIFEST, "_info.json", "info.json", "dataset_info.json", "dataset_infos.json")
_LISTS = (NAMES_FILE, "classes.txt", "class_names.txt", "labels.txt")
_CAPTIONS = 50


def read_class_names(store: Store) -> tuple[str, ...] | None:
    """Read the names of the classes, in order, from a file beside the shards.

    Such files are our manifest, a description of Hugging Face's (`names` of a class label) or of
    timm's, or `classnames.txt` (or classes.txt…) with a name in each line.

    Returns: None if there is no such file.
    Raises: DataError if a name stands there twice.
    """
    _, files = store.list()
    for name in (*_DESCRIPTIONS, *_LISTS):
        content = store.read_whole(name) if name in files or not files else None
        if content is None:
            continue
        where = f"{store.place}/{name}"
        try:
            if name in _LISTS:
                found = parse_names(content.decode("utf-8", "surrogateescape"), where)
            else:
                found = _find_names(parse_json(content))
                refuse_repeated(found, where)
        except ValueError as error:
            raise DataError(f"Cannot read the class names {where}: {error}") from None
        if found:
            return found
    return None


def _find_names(description: Any) -> tuple[str, ...]:
    """Return the first list under ``class_names`` or ``names``, at any depth."""
    if isinstance(description, list):
        return next(filter(None, map(_find_names, description)), ())
    if not isinstance(description, dict):
        return ()
    for key in ("class_names", "names"):
        names = description.get(key)
        if isinstance(names, dict):  # "0": name, "1": name
            names = [names.get(str(number)) for number in range(len(names))]
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return next(filter(None, map(_find_names, description.values())), ())


def resolve_labels(
    shards: Sequence[Shard], given: tuple[str, ...] | None, where: str
) -> tuple[NDArray[Any], tuple[str, ...], NDArray[np.int64]]:
    """Number the labels of some shards.

    Args:
      shards: in order.
      given: class names in order, if a file gives them.
      where: the option and place, for messages.
    Returns: labels of all images (int64 [M], or float32 [M, C] if an image may have several),
      class names, and the images that have a label: -1 stands for none.
    Raises: DataError naming the image whose label is out of range or unknown.
    """
    if not any(shard.texts for shard in shards):
        labels = np.concatenate([shard.labels for shard in shards])
        return _numbered(labels, given, shards, where)
    found: list[Label] = list(chain.from_iterable(shard.label_list() for shard in shards))
    if any(isinstance(label, list) for label in found):
        lists = [label if isinstance(label, list) else [label] for label in found]
        hot, names = _multi_hot(lists, given, shards, where)
        return hot, names, np.arange(len(hot))
    texts = {label for label in found if isinstance(label, str)}
    if len(texts) > _CAPTIONS and len(texts) == len(found):
        raise DataError(
            f"{where}: every image has a label of its own (such as '{str(found[0])[:60]}'). These "
            "are captions, not classes: give the shards members .cls with class numbers."
        )
    if given is None and any(isinstance(label, int) for label in found):
        raise DataError(
            f"{where}: some labels are numbers, others names. Put {NAMES_FILE} beside the shards, "
            "with the name of a class in each line, in the order of the numbers."
        )
    names = given or tuple(sorted(texts))
    number = {name: place for place, name in enumerate(names)}
    numbers = np.zeros(len(found), np.int64)
    for place, label in enumerate(found):
        if isinstance(label, str) and label not in number:
            raise DataError(
                f"{where}: the class '{label}' of {_member(shards, place)} is not among the "
                f"{len(names)} class names given there."
            )
        numbers[place] = number[label] if isinstance(label, str) else label
    return _numbered(numbers, names, shards, where)


def _numbered(
    labels: NDArray[np.int64], given: tuple[str, ...] | None, shards: Sequence[Shard], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.int64]]:
    kept = np.flatnonzero(labels != -1)
    largest = int(labels.max(initial=-1))
    if labels.min(initial=0) < -1:
        place = int(np.argmin(labels))
        raise DataError(
            f"{where}: {_member(shards, place)} has the label {labels[place]}: expected 0 or more."
        )
    if given is None:
        if largest >= _most_classes(len(labels)):
            place = int(np.argmax(labels))
            raise _no_class_number(where, _member(shards, place), largest, len(labels))
        given = counted_names(largest + 1)
    elif largest >= len(given):
        place = int(np.argmax(labels))
        raise DataError(
            f"{where}: the label {largest} of {_member(shards, place)} is out of range: "
            f"{len(given)} class names are given there."
        )
    return labels, given, kept


def _most_classes(images: int) -> int:
    """Return how many classes so many images may be of, where nobody says it."""
    return 10 * images + 1000


def _no_class_number(where: str, member: str, label: int, images: int) -> DataError:
    return DataError(
        f"{where}: {member} has the label {label}, of {images} images: these are no numbers of "
        "classes."
    )


def _multi_hot(
    lists: Sequence[list[Any]],
    given: tuple[str, ...] | None,
    shards: Sequence[Shard],
    where: str,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return float32 [M, C] from lists of names, of class numbers, or of a value per class."""
    lengths = {len(values) for values in lists}
    width = len(given) if given else max(lengths)
    numeric = all(isinstance(v, int | float) for values in lists for v in values)
    if numeric and lengths == {width} and width > 1:
        table = np.array(lists, np.float64)
        in_range = bool(((table >= 0) & (table <= 1)).all())
        # [0, 1] may be two classes' numbers or two classes' values: numbers never repeat.
        fractional = any(isinstance(v, float) for values in lists for v in values)
        if in_range and (fractional or any(len(set(values)) < len(values) for values in lists)):
            return table.astype(np.float32), given or counted_names(width)
    texts = {v for values in lists for v in values if isinstance(v, str)}
    largest = max((v for values in lists for v in values if isinstance(v, int)), default=-1)
    if not given and not texts and largest >= _most_classes(len(lists)):
        place = next(place for place, values in enumerate(lists) if largest in values)
        raise _no_class_number(where, _member(shards, place), largest, len(lists))
    names = given or (tuple(sorted(texts)) if texts else counted_names(largest + 1))
    number: dict[Any, int] = {name: place for place, name in enumerate(names)}
    if not (texts and given is None):
        number |= {place: place for place in range(len(names))}
    hot = no_labels(len(lists), len(names), where)
    for place, values in enumerate(lists):
        for value in values:
            if not isinstance(value, str | int) or value not in number:
                raise DataError(
                    f"{where}: {_member(shards, place)} has the class {value!r} among its labels: "
                    f"expected names or numbers of the {len(names)} classes."
                )
            hot[place, number[value]] = 1
    return hot, names


def _member(shards: Sequence[Shard], place: int) -> str:
    for shard in shards:
        if place < len(shard):
            return f"{shard.name}: {shard.name_of(place)[0]}"
        place -= len(shard)
    raise IndexError(place)
