"""Images in tar shards of the WebDataset layout, read at random places.

They are files, or pixels decoded beforehand (`vitbase data pack --raw`).

Shards are ``*.tar`` in a folder or behind a URL, of both splits (told by ``train`` and ``val``,
``validation``, ``valid`` or ``test`` in their names), or in a folder for each split. An index of
byte offsets makes every image one read away. It is written once: beside the shards of this machine,
or in the cache folder where that cannot be, and for shards behind a URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError
from vitbase.files import cache_folder, write_whole
from vitbase.pulse import is_alive
from vitbase.sources.shards.index import Shard, decode_index, encode_index, name_in
from vitbase.sources.shards.labels import read_class_names, resolve_labels
from vitbase.sources.shards.layout import MANIFEST, Group, find_groups, is_shard, tell_no_shards
from vitbase.sources.shards.readers import LocalReader, Reader, RemoteReader
from vitbase.sources.shards.scan import LOCAL_WINDOW, NO_LABEL, REMOTE_WINDOW, scan_shard
from vitbase.sources.source import Images, Source, unlabelled
from vitbase.sources.splits import Split
from vitbase.stores import (
    Backoff,
    FileFacts,
    LocalStore,
    RemoteStore,
    Store,
    open_store,
)

_SCANS_AT_ONCE = {True: 4, False: 16}  # by whether the shards are on this machine
_PROBE = 4096
"""Values from the middle of an image that tell most from others."""
_PLACE = np.dtype([("shard", "<u4"), ("offset", "<i8"), ("size", "<u4"), ("check", "<u4")])


@dataclass(frozen=True)
class ShardImages(Images):
    """Images in tar shards: 20 bytes an image, and packed names."""

    files: tuple[str, ...]  # path or URL of each shard
    places: NDArray[np.void]  # [M] of _PLACE
    firsts: NDArray[np.int64]  # row of each shard's first image
    names: tuple[bytes, ...]  # of each shard, packed
    raw: tuple[bool, ...]  # of each shard: whether its images are decoded pixels
    reader: Reader

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return an image file's bytes, or pixels uint8 [H, W, C], read-only.

        Raises: ImageError if the shard cannot be read or has changed; DataError if a server does
          not answer.
        """
        place = self.places[row].item()
        return self.reader.pixels(*place) if self.raw[place[0]] else self.reader.read(*place)

    def digest(self, row: int, *, probe: bool = False) -> bytes:
        """Return a digest of an image's content. Many pixels are alike in size: a probe is some."""
        content = self.read(row)
        if isinstance(content, bytes):
            return blake2b(content, digest_size=32).digest()
        values = content.reshape(-1)
        if probe:
            values = values[max(0, values.size - _PROBE) // 2 :][:_PROBE]
        shape = np.array(content.shape, "<i8").tobytes()
        return blake2b(shape + values.tobytes(), digest_size=32).digest()

    def name(self, row: int) -> str:
        """Return the path that the image was packed from, or else its shard and member."""
        shard, member, origin = self._names(row)
        return origin or f"{os.path.basename(shard)}/{member}"

    def size(self, row: int) -> int:
        return int(self.places[row]["size"])

    def describe(self, row: int) -> str:
        """Name an image: ``shard.tar: member``, and the file it was packed from if known."""
        shard, member, origin = self._names(row)
        return f"{shard}: {member}" + (f" ({origin})" if origin else "")

    def _names(self, row: int) -> tuple[str, str, str]:
        shard = int(self.places[row]["shard"])
        member, origin = name_in(
            self.names[shard], row - int(self.firsts[shard]), self.files[shard]
        )
        return self.files[shard], member, origin


def holds_shards(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names holds shards."""
    return any(is_shard(name) for name in names)


def has_split(place: str, split: Split, option: str, backoff: Backoff | None = None) -> bool:
    """Whether a folder or URL has shards that are named as those of a split.

    Args: as of :func:`open_shards`.
    """
    return split in find_groups(open_store(place, option, backoff))


def open_shards(
    place: str,
    split: Split,
    option: str,
    *,
    backoff: Backoff | None = None,
    labelled: bool = True,
) -> Source:
    """Open one split of the shards in a folder or behind a URL.

    Shards whose names tell no split serve for any.

    Args:
      place: a folder's path, or a URL known to fsspec.
      split: "train" or "val".
      option: the option that named the place, for messages.
      backoff: how failed requests are repeated; None: as by default.
      labelled: whether labels are needed; else they are not looked at.
    Raises: DataError naming the shard that is cut short, damaged, missing or without labels.
    """
    store = open_store(place, option, backoff)
    groups = find_groups(store)
    group = groups.get(split) or groups.get("all")
    if group is None:
        raise DataError(f"--{option} {place}: {tell_no_shards(split, groups, store)}")
    shards, notes = _read_shards(group, labelled=labelled)
    if not sum(map(len, shards)):
        raise DataError(
            f"--{option} {place}: {len(shards)} shards, but no image in them. Expected members "
            "such as 0001.jpg (or png, webp…) and 0001.cls."
        )
    given: tuple[str, ...] | None = ("",)
    kept = np.arange(sum(map(len, shards)))
    labels, class_names = unlabelled(len(kept))
    if labelled:
        given = read_class_names(group.store) or read_class_names(store)
        labels, class_names, kept = resolve_labels(shards, given, f"--{option} {place}")
    if not len(kept):
        raise DataError(
            f"--{option} {place}: all {len(labels)} images have the label -1, for none."
        )
    if len(kept) < len(labels):
        notes.append(f"{place}: {len(labels) - len(kept)} images with the label -1 are left out.")
    reader: Reader
    files = tuple(f"{group.store.place}/{shard.name}" for shard in shards)
    if isinstance(group.store, RemoteStore):
        reader = RemoteReader(group.store, tuple(shard.name for shard in shards))
    else:
        reader = LocalReader(files, tuple(shard.facts for shard in shards))
    return Source(
        images=_build_images(files, shards, reader),
        rows=kept,
        labels=labels[kept],
        class_names=class_names,
        named=given is not None or any(shard.texts for shard in shards),
        notes=tuple(notes),
        decoded=all(shard.raw for shard in shards),
    )


def _build_images(files: tuple[str, ...], shards: Sequence[Shard], reader: Reader) -> ShardImages:
    counts = np.array([len(shard) for shard in shards], np.int64)
    places = np.zeros(counts.sum(), _PLACE)
    places["shard"] = np.repeat(np.arange(len(shards)), counts)
    places["offset"] = np.concatenate([shard.offsets for shard in shards])
    places["size"] = np.concatenate([shard.sizes for shard in shards])
    places["check"] = np.concatenate([shard.checks for shard in shards])
    names = tuple(shard.names for shard in shards)
    raw = tuple(shard.raw for shard in shards)
    return ShardImages(files, places, np.cumsum(counts) - counts, names, raw, reader)


# The index


def _read_shards(group: Group, *, labelled: bool) -> tuple[list[Shard], list[str]]:
    """Return every shard's samples, from the index as far as it holds, and remarks."""
    store, local = group.store, isinstance(group.store, LocalStore)
    indexes, notes = _read_indexes(group)
    with ThreadPoolExecutor(_SCANS_AT_ONCE[local]) as pool:
        try:
            facts = dict(zip(group.names, pool.map(store.facts, group.names), strict=True))
            _compare_sizes(group, facts)
            known: dict[str, Shard] = {}
            for name in group.names:
                found = (index[name] for index in indexes if name in index)
                shard = next((s for s in found if s.facts.same_as(facts[name])), None)
                if shard is not None:
                    known[name] = replace(shard, facts=facts[name])
            new = [name for name in group.names if name not in known]
            scanned = list(
                pool.map(lambda name: _scan(store, name, facts[name], labelled=labelled), new)
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    known |= {shard.name: shard for shard in scanned}
    shards = [known[name] for name in group.names]
    outdated = [name for name in new if any(name in index for index in indexes)]
    if outdated:
        notes.append(
            f"{store.place}: {len(outdated)} of {len(group.names)} shards have changed since they "
            f"were indexed (the first: {outdated[0]}): indexed anew."
        )
    # An index has labels: without some, whoever trains on these images would not be told so.
    if new and (labelled or all(NO_LABEL not in shard.label_list() for shard in scanned)):
        notes += _write_index(group, shards)
    return shards, notes + _remarks(group, shards)


def _compare_sizes(group: Group, facts: dict[str, FileFacts]) -> None:
    for name, size in group.sizes.items():
        if facts[name].size != size:
            raise DataError(
                f"{group.store.place}/{name} has {facts[name].size:,} bytes, {MANIFEST} says "
                f"{size:,}: it is cut short, or another file. Fetch it again."
            )


def _scan(store: Store, name: str, facts: FileFacts, *, labelled: bool) -> Shard:
    window = LOCAL_WINDOW if isinstance(store, LocalStore) else REMOTE_WINDOW
    with store.opened(name) as read:
        is_alive()
        return scan_shard(read, name, facts, f"{store.place}/{name}", window, labelled=labelled)


def _remarks(group: Group, shards: Sequence[Shard]) -> list[str]:
    notes = []
    place = group.store.place
    left_out = [shard for shard in shards if shard.left_out]
    if left_out:
        count = sum(int(shard.left_out[0]) for shard in left_out)
        notes.append(
            f"{place}: {count} members of the shards are left out, being neither an image nor of "
            f"one (the first: {left_out[0].left_out[1]} in {left_out[0].name})."
        )
    if group.left_out:
        notes.append(
            f"{place}: {len(group.left_out)} tar files are left out, whose names tell no split "
            f"(the first: {group.left_out[0]})."
        )
    images = sum(map(len, shards))
    if group.images is not None and group.images != images:
        notes.append(f"{place}: {images} images are in the shards, {group.images} are announced.")
    return notes


def index_name(key: str) -> str:
    """Return the name of the index of a split's shards ("all" if they tell no split)."""
    return f"shards-{key}.index"


def _index_places(group: Group) -> list[tuple[Store, str]]:
    """Return where an index may be: beside the shards, and in the folder for caches."""
    places: list[tuple[Store, str]] = [(group.store, index_name(group.key))]
    root = cache_folder()
    if root is not None:
        place = group.store.place
        if isinstance(group.store, LocalStore):
            place = str(group.store.folder.resolve())
        digest = sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        places.append((LocalStore(root / "shards"), f"{digest}-{group.key}.index"))
    return places


def _read_indexes(group: Group) -> tuple[list[dict[str, Shard]], list[str]]:
    """Return what the index beside the shards and that in the cache know, and remarks."""
    indexes, notes = [], []
    for store, name in _index_places(group):
        content = store.read_whole(name)
        if content is None:
            continue
        try:
            indexes.append({shard.name: shard for shard in decode_index(content)})
        except ValueError as error:
            notes.append(f"The index {store.place}/{name} is damaged: {error}. It is made again.")
    return indexes, notes


def _write_index(group: Group, shards: Sequence[Shard]) -> list[str]:
    """Keep an index for the next time, beside the shards if that can be; return remarks."""
    cause = "no folder for caches"
    for store, name in _index_places(group):
        if isinstance(store, LocalStore):
            path = store.folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, encode_index(shards))
            except OSError as error:
                cause = f"{path}: {error.strerror or error}"
                continue
            if store is group.store:
                return []
            return [f"{group.store.place}: the index of its shards is kept in {path}."]
    return [
        f"The index of the shards cannot be kept ({cause}), and is made at every start. Set "
        "VITBASE_CACHE to a folder that can be written."
    ]
