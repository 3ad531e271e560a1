"""Which of a model's classes each class of the data is: by name where that is certain, or as told.

A class is found by its name, exactly or but for case, spaces and underscores; or by the synset of
WordNet that both mean. That is certain if no two classes of the data become one of the model's.
Where it is not, nothing is guessed: the differences are listed, and `--map` tells.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import open_regular
from vitbase.errors import ConfigError, DataError, first_few, nearest
from vitbase.sources.imagenet.classes import NUM_CLASSES, SYNSET, imagenet_synsets
from vitbase.sources.imagenet.order import find_synset
from vitbase.sources.open import match_classes, renumbered
from vitbase.sources.source import Source, class_counts

_MOST_LISTED = 10
"""Classes that are listed where they are refused."""


@dataclasses.dataclass(frozen=True)
class ModelClasses:
    """What a model's outputs stand for.

    Attributes:
      names: of its classes; None if its file does not tell.
      outputs: how many there are.
      path: of its file, for messages.
    """

    names: tuple[str, ...] | None
    outputs: int
    path: object


def fit_classes(source: Source, model: ModelClasses, map_file: str | None = None) -> Source:
    """Return a source whose labels are the model's outputs; its notes say how they were found.

    Raises: DataError listing the differences, if classes that have images are not the model's;
      ConfigError if the map names classes that there are not, or one twice.
    """
    if map_file is not None:
        return _fit_by_map(source, model, read_map(map_file), map_file)
    names, notes = model.names, []
    if names is None and _are_synsets_of_imagenet(source.class_names, model.outputs):
        names = imagenet_synsets()
        if source.class_names != names:
            notes.append(_takes_synsets(model))
    if names is None:
        return _fit_by_place(source, model)
    if len(names) > model.outputs:
        raise DataError(
            f"{model.path} names {len(names)} classes, but tells {model.outputs} apart."
        )
    if source.class_names == names:
        return source
    present = class_counts(source.labels, len(source.class_names)) > 0
    table, matched = match_classes(source, present, names)
    if (table[present] < 0).any():
        table, matched = match_by_name(source.class_names, names), []
        matched.append(_describe_match(source.class_names, names, table))
    unknown = [source.class_names[i] for i in np.flatnonzero(present & (table < 0))]
    if unknown:
        raise DataError(*_differences(source.class_names, unknown, table, model, names))
    fitted = renumbered(source, table, names)
    return dataclasses.replace(fitted, notes=(*source.notes, *notes, *matched))


def match_by_name(own: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each name among others, int64 [len(own)]; -1 where it is not certain.

    A name is looked for exactly, then as words, then by the synset that it means; one that several
    names have, or are found as, is in none of these places.
    """
    table = np.full(len(own), -1, np.int64)
    for key in _KEYS:
        places = _places(names, key)
        for row, name in enumerate(own):
            found = key(name)
            if table[row] < 0 and found is not None:
                table[row] = places.get(found, -1)
    counts = np.bincount(table[table >= 0], minlength=len(names))
    table[(table >= 0) & (counts[table] > 1)] = -1
    return table


def _as_words(name: str) -> str:
    return re.sub(r"[\s_]+", "", name).casefold()


_KEYS: tuple[Callable[[str], Hashable | None], ...] = (lambda name: name, _as_words, find_synset)


def _places(names: Sequence[str], key: Callable[[str], Hashable | None]) -> Mapping[Hashable, int]:
    """Return where each key stands that a single name has."""
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(names):
        found = key(name)
        if found is not None:
            places.setdefault(found, []).append(place)
    return {found: some[0] for found, some in places.items() if len(some) == 1}


def _are_synsets_of_imagenet(own: Sequence[str], outputs: int) -> bool:
    return outputs == NUM_CLASSES and {*own} <= {*imagenet_synsets()}


def _takes_synsets(model: ModelClasses) -> str:
    return (
        f"{model.path} does not name its {NUM_CLASSES} classes: they are taken to be ImageNet-1k's "
        f"synsets in sorted order."
    )


def _fit_by_place(source: Source, model: ModelClasses) -> Source:
    """Take classes by their numbers, of a model that names none."""
    own = source.class_names
    if len(own) > model.outputs:
        raise DataError(
            f"The evaluation images have {len(own)} classes, but {model.path} tells "
            f"{model.outputs} apart. Is it another data set's?"
        )
    numbers = {*map(str, range(model.outputs))}
    if len(own) == model.outputs and {*own} == numbers:  # folders in the order of text: 0, 1, 10, 2
        return renumbered(source, np.array([*map(int, own)], np.int64), tuple(sorted(own, key=int)))
    if len(own) == model.outputs:
        return source
    note = (
        f"Warning: {model.path} does not name its {model.outputs} classes: the {len(own)} of the "
        f"evaluation images are taken to be the first of them, in this order. Give --map to tell."
    )
    return dataclasses.replace(source, notes=(*source.notes, note))


def _describe_match(own: Sequence[str], names: Sequence[str], table: NDArray[np.int64]) -> str:
    found = [
        (name, names[place]) for name, place in zip(own, table.tolist(), strict=True) if place >= 0
    ]
    pairs = [f"'{name}' is '{theirs}'" for name, theirs in found if name != theirs]
    return f"{len(pairs)} classes are found by other spellings: {first_few(pairs)}."


def _differences(
    own: Sequence[str],
    unknown: Sequence[str],
    table: NDArray[np.int64],
    model: ModelClasses,
    names: tuple[str, ...],
) -> list[str]:
    """Say in lines what classes of the data are not the model's, and which may be meant."""
    free = [name for place, name in enumerate(names) if place not in {*table.tolist()}]
    lines = [
        f"The evaluation images have classes that the model does not know: "
        f"{len(unknown)} of {len(own)} are not, for certain, among the "
        f"{len(names)} of {model.path}."
    ]
    lines += [
        f"  {name}:{nearest(name, free) or ' nothing like it.'}" for name in unknown[:_MOST_LISTED]
    ]
    if len(unknown) > _MOST_LISTED:
        lines.append(f"  and {len(unknown) - _MOST_LISTED} more.")
    lines.append(f"It knows {first_few(names, 5)}.")
    lines.append(
        "Tell with --map FILE.csv, of the columns data and model, which class of the data is which "
        "of the model; or give the images of these classes alone."
    )
    return lines


def read_map(file: str) -> dict[str, str]:
    """Read which class of the data is which of a model's, from a CSV of the columns data and model.

    Returns: the model's class, or its number, by the data's.
    Raises: ConfigError naming the line that is wrong.
    """
    pairs: dict[str, str] = {}
    try:
        with open(Path(file), encoding="utf-8-sig", newline="", opener=open_regular) as lines:
            rows = csv.reader(lines)
            header = [cell.strip().lower() for cell in next(rows, [])]
            if header != ["data", "model"]:
                raise ConfigError(
                    f"--map {file}: the first line should be data,model; then a class of the data "
                    f"and one of the model's in each line."
                )
            for row in rows:
                if not row:
                    continue
                cells = [cell.strip() for cell in row]
                if len(cells) != 2 or not all(cells):
                    raise ConfigError(f"--map {file}:{rows.line_num}: expected two classes.")
                if cells[0] in pairs:
                    raise ConfigError(
                        f"--map {file}:{rows.line_num}: the class '{cells[0]}' of the data stands "
                        f"there twice."
                    )
                pairs[cells[0]] = cells[1]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"Cannot read --map {file}: {error}") from None
    return pairs


def _fit_by_map(source: Source, model: ModelClasses, pairs: Mapping[str, str], file: str) -> Source:
    own = source.class_names
    names = model.names or tuple(map(str, range(model.outputs)))
    if (
        model.names is None
        and model.outputs == NUM_CLASSES
        and any(map(SYNSET.fullmatch, pairs.values()))
    ):
        names = imagenet_synsets()
    place_of = {name: place for place, name in reversed([*enumerate(names)])}
    place_of |= {str(n): n for n in range(len(names)) if str(n) not in place_of}
    for whose, asked, known in (("data", pairs, own), ("model", pairs.values(), place_of)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ConfigError(
                f"--map {file}: the {whose} has no class '{unknown[0]}'."
                f"{nearest(unknown[0], known)} ({len(unknown)} of {len(pairs)} lines name none.)"
            )
    data_of: dict[int, str] = {}
    for name, theirs in pairs.items():
        first = data_of.setdefault(place_of[theirs], name)
        if first != name:
            raise ConfigError(
                f"--map {file}: '{first}' and '{name}' of the data are both to be '{theirs}' of "
                f"the model. Each may stand there once."
            )
    # What the map does not name is found by its name, among the classes that it leaves.
    table = match_by_name(own, names)
    table[np.isin(table, [*data_of])] = -1
    for name, theirs in pairs.items():
        table[own.index(name)] = place_of[theirs]
    present = class_counts(source.labels, len(own)) > 0
    unknown = [own[i] for i in np.flatnonzero(present & (table < 0))]
    if unknown:
        raise DataError(*_differences(own, unknown, table, model, names))
    note = f"{len(pairs)} classes are the model's as {file} says."
    return dataclasses.replace(renumbered(source, table, names), notes=(*source.notes, note))
