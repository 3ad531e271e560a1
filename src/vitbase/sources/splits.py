"""The names of splits: one table for folders, files, shards, columns, and data sets of any kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "val"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "test"),
}
"""What splits are called, in lower case; of several that are there, the first is taken."""

_PUBLISHED = {
    "train": ("ilsvrc2012_train", "ilsvrc2012_img_train"),
    "val": ("ilsvrc2012_val", "ilsvrc2012_img_val"),
    "test": ("t10k",),
}
"""How ImageNet and MNIST spell some of them. (ImageNet's own test images have no labels.)"""

_SPELLINGS: dict[Split, tuple[str, ...]] = {
    split: tuple(word for name in names for word in (name, *_PUBLISHED.get(name, ())))
    for split, names in SPLIT_NAMES.items()
}
SPLIT_WORDS = frozenset(word for words in _SPELLINGS.values() for word in words)
"""Every word that means a split."""
SPLITS_TOLD = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
"""The usual ones, for messages."""


def find_split(split: Split, words: Iterable[str]) -> str | None:
    """Return the one of some words, of whatever case, that means a split: the most preferred."""
    present = {word.lower(): word for word in words}
    return next((present[word] for word in _SPELLINGS[split] if word in present), None)
