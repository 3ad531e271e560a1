"""Which tar files of a folder are the shards of which split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from vitbase.errors import DataError
from vitbase.files import parse_json
from vitbase.sources.splits import SPLIT_NAMES, find_split, split_word
from vitbase.stores import Store

MANIFEST = "manifest.json"
_INFOS = (MANIFEST, "_info.json", "info.json")  # ours, and those of timm's sets


@dataclass(frozen=True)
class Group:
    """The shards of a split, and what is known of them beforehand."""

    key: str  # "train", "val" or "all"
    store: Store
    names: tuple[str, ...]
    sizes: dict[str, int] = field(default_factory=dict)  # in bytes, where a manifest tells them
    images: int | None = None
    left_out: tuple[str, ...] = ()


def find_groups(store: Store) -> dict[str, Group]:
    """Return the shards of each split in a folder: "train" and "val", or "all".

    A manifest says which they are, or else their names, or else the folders they are in.

    Raises: DataError if a manifest says that they were not finished.
    """
    folders, files = store.list()
    groups = _listed_groups(store, files)
    if groups:
        return groups
    names = [name for name in files if is_shard(name)]
    if names:
        return _groups_by_name(store, names)
    for split in SPLIT_NAMES:
        while split not in groups and (folder := find_split(split, folders)) is not None:
            folders = [name for name in folders if name != folder]
            deeper = find_groups(store.below(folder))
            found = deeper.get(split) or deeper.get("all")
            if found is not None:
                groups[split] = found
    return groups


def _listed_groups(store: Store, files: Sequence[str]) -> dict[str, Group]:
    """Return the shards that a manifest lists, if there is one."""
    for name in _INFOS:
        # A web server may have no listing, but an info file.
        content = store.read_whole(name) if name in files or not files else None
        try:
            splits = parse_json(content or b"{}")["splits"]
            found = {key: _listed_group(store, name, key, facts) for key, facts in splits.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        groups: dict[str, Group] = {}
        for split in SPLIT_NAMES:
            key = find_split(split, found)
            if key is not None:
                groups[split] = replace(found[key], key=split)
        if groups:
            return groups
    return {}


def _listed_group(store: Store, manifest: str, key: str, facts: dict[str, Any]) -> Group:
    if not facts.get("complete", True):
        raise DataError(
            f"{store.place}: packing the split '{key}' was not finished. Start the same "
            "`vitbase data pack` again: it continues where it stopped."
        )
    if "shards" in facts:
        names = tuple(shard["name"] for shard in facts["shards"])
        sizes = {shard["name"]: int(shard["bytes"]) for shard in facts["shards"]}
    else:
        names, sizes = tuple(facts["filenames"]), {}
    for name in names:
        if not _is_inside(name):
            raise DataError(f"{store.place}/{manifest}: '{name}' is no name of a file in there.")
    return Group(key, store, names, sizes, facts.get("num_samples"))


def _is_inside(name: object) -> bool:
    """Whether it is the name of a file below a folder, as systems take them."""
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        return False
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a letter
        return False


def _groups_by_name(store: Store, names: Sequence[str]) -> dict[str, Group]:
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in names}
    groups: dict[str, Group] = {}
    for split in SPLIT_NAMES:
        word = find_split(split, chain.from_iterable(words.values()))
        if word is not None:
            named = tuple(name for name in names if word in words[name])
            groups[split] = Group(split, store, named)
    if not groups:
        return {"all": Group("all", store, tuple(names))}
    others = tuple(name for name in names if not any(map(split_word, words[name])))
    return {key: replace(group, left_out=others) for key, group in groups.items()}


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard."""
    return name.endswith(".tar") and not name.startswith(".")


def is_whole_set(files: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether the shards among some files are surely a data set: described, indexed or numbered.

    A tar file that is called as a folder beside it is what that was unpacked from.
    """
    numbered = [
        re.sub(r"\d+", "", name)
        for name in files
        if re.fullmatch(r".*\d{3,}\.tar", name) and name[:-4] not in folders
    ]
    described = any(name in _INFOS or name.endswith(".index") for name in files)
    return described or len(set(numbered)) < len(numbered)


def tell_no_shards(split: str, groups: Iterable[str], store: Store) -> str:
    """Say why there are no shards of a split."""
    others = [key for key in groups if key != split]
    if others:
        return f"there are shards of '{others[0]}', but none of '{split}'."
    _, files = store.list()
    packed = [name for name in files if re.search(r"\.tar\.\w+$|\.tgz$", name)]
    if packed:
        return f"{packed[0]} is compressed, so that images cannot be reached: decompress it first."
    return (
        "there are no tar shards (*.tar, directly or in folders train and val). A server without "
        "listings needs a manifest.json, as `vitbase data pack` writes, or timm's _info.json."
    )
