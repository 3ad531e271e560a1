"""Which of ImageNet-1k's classes a data set's are, however they are named, and in whose order.

Weights trained on ImageNet-1k have an output for every synset, in sorted order. Images of the same
classes in another order train a model, and give an accuracy of nothing to such weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from vitbase.sources.imagenet.classes import (
    NUM_CLASSES,
    SYNSET,
    challenge_synsets,
    imagenet_synsets,
    readable_name,
)

MOSTLY = 900
"""So many of ImageNet-1k's classes among a data set's say that it is meant."""

_AT_THE_START = re.compile(r"(n\d{8})(?![0-9A-Za-z])")


def find_synset(class_name: str) -> str | None:
    """Return the synset that a class name means: by number, with words behind, or in words.

    Args:
      class_name: such as "n01440764", "n01440764_tench", "tench" or "tench, Tinca tinca".
    Returns: the synset; None for words that no class of ImageNet-1k has, or several have.
    """
    match = _AT_THE_START.match(class_name)
    return match[1] if match else _synsets_by_words().get(_plain(class_name))


@cache
def _synsets_by_words() -> dict[str, str]:
    """Return the synsets by all of their words, by the first, and by the others: in this order."""
    by_words: dict[str, str] = {}
    rows = [(synset, readable_name(synset)) for synset in imagenet_synsets()]
    for names_of in (
        lambda words: [words],
        lambda words: words.split(", ")[:1],
        lambda words: words.split(", ")[1:],
    ):
        found: dict[str, set[str]] = {}
        for synset, words in rows:
            for name in names_of(words):
                found.setdefault(_plain(name), set()).add(synset)
        for name, synsets in found.items():
            if len(synsets) == 1:
                by_words.setdefault(name, *synsets)
    return by_words


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.lower()))


def class_order_problem(
    class_names: Sequence[str], synsets: Sequence[str | None] | None = None
) -> str | None:
    """Say how the classes of what is plainly ImageNet-1k differ from those of its models.

    Args:
      class_names: of a data set, in the order of its labels.
      synsets: of these classes, where something tells them but their names.
    Returns: the first difference in words, and its likely cause; None if there is none, or if
      these are not ImageNet-1k's classes: a subset of it has an order of its own.
    """
    known = {synset: number for number, synset in enumerate(imagenet_synsets())}
    if synsets is None:
        synsets = [find_synset(name) for name in class_names]
    numbers = [known.get(synset or "", -1) for synset in synsets]
    if len({*numbers} - {-1}) < MOSTLY:
        return None
    missing = sorted(known.keys() - set(synsets))
    strangers = [name for name, number in zip(class_names, numbers, strict=True) if number < 0]
    if len(class_names) != NUM_CLASSES:
        what = f"there are {len(class_names)} classes, ImageNet-1k has {NUM_CLASSES}"
        if strangers:
            what += f"; '{strangers[0]}' is not one of them"
        elif missing:
            what += f"; {_told(missing[0])} is missing"
        return f"{what}: class numbers are shifted"
    for number, (name, own) in enumerate(zip(class_names, numbers, strict=True)):
        other = imagenet_synsets()[number]
        if own < 0 and SYNSET.match(name):
            return (
                f"{len(strangers)} of the 1000 synsets are not ImageNet-1k's (the first: {name}); "
                f"it has others (the first: {_told(missing[0])})"
            )
        if own not in (number, -1) and not _is_called(other, name):
            told = readable_name(imagenet_synsets()[own])
            is_words = told.startswith(name)
            return (
                f"class {number} is {name}{'' if is_words else f' ({told})'}; in ImageNet's models "
                f"it is {_told(other)}{_cause(class_names, synsets)}"
            )
    return None


def _is_called(synset: str, name: str) -> bool:
    """Tell whether a name is one of a synset's, if perhaps of others too."""
    words = readable_name(synset)
    return _plain(name) in map(_plain, (words, *words.split(", ")))


def _told(synset: str) -> str:
    return f"{synset} ({readable_name(synset)})"


def _cause(class_names: Sequence[str], synsets: Sequence[str | None]) -> str:
    """Say which order this is, if it is one that is often met."""
    pairs = [*zip(synsets, challenge_synsets(), strict=True)]
    if sum(own == other for own, other in pairs) > MOSTLY:
        return ". This is the development kit's numbering"
    if all(name.isdecimal() and len(name) < 20 for name in class_names):
        if sorted(class_names, key=int) != list(class_names):
            return ". These numbers are sorted as text, 10 before 2"
    elif sorted(class_names) == list(class_names) and not any(map(SYNSET.match, class_names)):
        return ". These names are sorted as words, not by their synsets"
    return ""
