"""The names of splits: one table for folders, files, shards, columns, and data sets of any kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Split = Literal["train", "val"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "val": (
        *("val", "validation", "valid", "validate", "dev", "eval", "evaluation"),
        *("test", "testing", "tst"),
    ),
}
"""What splits are called, in lower case; of several that are there, the first is taken."""

AFFIXES = (
    *("set", "sets", "data", "dataset", "split", "splits", "samples", "files", "folder"),
    *("image", "images", "img", "imgs", "photos", "pictures", "pics", "jpg", "jpeg", "png"),
    *("seg", "cls", "class", "classes", "classification", "labelled", "labeled", "raw", "full"),
)
"""What may stand before and behind them, with or without something between: seg_train, TestSet."""

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

_BETWEEN = r"[\W\d_]*"
_AFFIX = f"(?:{'|'.join(AFFIXES)})"
_WITH_AFFIXES = re.compile(
    rf"(?:{_BETWEEN}{_AFFIX})*{_BETWEEN}"
    rf"(?P<word>{'|'.join(name for names in SPLIT_NAMES.values() for name in names)})"
    rf"(?:{_BETWEEN}{_AFFIX})*{_BETWEEN}"
)
_LONGEST_NAME = 40


@lru_cache(maxsize=4096)
def split_word(name: str) -> str | None:
    """Return the word in a name that means a split, if the name says nothing else."""
    lower = name.lower()
    if lower in SPLIT_WORDS:
        return lower
    match = _WITH_AFFIXES.fullmatch(lower) if len(lower) <= _LONGEST_NAME else None
    return match["word"] if match else None


def find_split(split: Split, names: Iterable[str]) -> str | None:
    """Return the one of some names that means a split: the most preferred, the plainest of it."""
    present: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
        word = split_word(name)
        if word is not None:
            present[word] = name
    return next((present[word] for word in _SPELLINGS[split] if word in present), None)
