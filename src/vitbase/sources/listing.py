"""The listing of many class folders, kept between runs.

Listing a million files takes seconds to minutes (on network storage), asking a thousand folders
whether they changed does not. The cache is a help, never a need: where it cannot be written,
read, or trusted, the folders are listed.

A folder's stamp changes when an entry comes or goes, but only as finely as the file system's clock
ticks: what happens within one tick leaves the stamp as it was. So a listing is kept only if every
folder had been at rest for some seconds before; else a file that came just after it would stay
unseen for ever. Stamps hold the time of change beside that of modification, because tar, rsync
and cp set the latter back to what it was elsewhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitbase.disk import SYSTEM_NAMES
from vitbase.files import cache_folder, parse_json, written_whole
from vitbase.sources.folders import (
    IMAGE_SUFFIXES,
    Listing,
    Stamp,
    list_classes,
    read_stamp,
    refuse_repeated_folders,
)
from vitbase.sources.source import Source

SMALL = 10_000
"""Fewer files than these are listed in no time; they are not kept."""

_RACY_NS = 2_000_000_000  # FAT's clock ticks every two seconds; no other in use is coarser
_MAGIC = b"vitbase listing 2\n"
_DIGEST_BYTES = 16


def open_folder(root: Path, option: str, *, confirmed: bool = False) -> Source:
    """List a folder of class folders as :func:`read_folder` does, or take its listing as kept.

    Args:
      root: the folder that holds the class folders.
      option: the option that named it, for messages.
      confirmed: whether somebody has said that these are the classes.
    Raises: DataError as :func:`read_folder`, or if that is to be doubted.
    """
    place = _place(root)
    kept = None if place is None else _read(place, root)
    if kept is not None:
        return _source(kept, root, option, confirmed)
    started_ns = time.time_ns()
    listing, stamps = list_classes(root, option)
    newest_ns = max(max(stamp.mtime_ns, stamp.ctime_ns) for stamp in stamps)
    at_rest = newest_ns < started_ns - _RACY_NS
    if place is not None and len(listing.lengths) >= SMALL and at_rest:
        with suppress(OSError):
            _write(place, listing, stamps)
    return _source(listing, root, option, confirmed)


def _source(listing: Listing, root: Path, option: str, confirmed: bool) -> Source:
    if not confirmed:
        refuse_repeated_folders(listing, root, option)
    return listing.source(root)


def _place(root: Path) -> Path | None:
    """Return the file that keeps a root's listing: another one if what is listed changes."""
    folder = cache_folder()
    if folder is None:
        return None
    names = sorted(map(str.encode, IMAGE_SUFFIXES | SYSTEM_NAMES))
    what = [_MAGIC, os.fsencode(os.path.realpath(root)), *names]
    key = blake2b(b"\0".join(what), digest_size=16)
    return folder / f"listing-{key.hexdigest()}"


def _write(place: Path, listing: Listing, stamps: Sequence[Stamp]) -> None:
    """Write a listing so that it appears whole or not at all. Raises: OSError."""
    head = json.dumps(
        {
            "class_names": listing.class_names,
            "notes": listing.notes,
            "repeated": listing.repeated,
            "stamps": stamps,
            "files": len(listing.lengths),
            "bytes": len(listing.paths),
        }
    ).encode()
    parts = (
        len(head).to_bytes(8, "little"),
        head,
        listing.counts.astype("<i8").tobytes(),
        listing.lengths.astype("<u2").tobytes(),
        listing.paths,
    )
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place) as beside:
        beside.touch(mode=0o600)  # names of files may be private
        with beside.open("wb") as file:
            file.writelines((_MAGIC, digest.digest(), *parts))


def _read(place: Path, root: Path) -> Listing | None:
    """Read a kept listing; None if there is none, it is damaged, or a folder changed since."""
    try:
        with open(place, "rb") as file:
            return _parse(file, os.fstat(file.fileno()).st_size, root)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parse(file: BinaryIO, size: int, root: Path) -> Listing | None:
    if file.read(len(_MAGIC)) != _MAGIC:
        return None
    expected = file.read(_DIGEST_BYTES)
    digest = blake2b(digest_size=_DIGEST_BYTES)

    def take(count: int) -> bytes:
        if not 0 <= count <= size:
            raise ValueError("more bytes than the file has")
        part = file.read(count)
        digest.update(part)
        return part

    head = parse_json(take(int.from_bytes(take(8), "little")))
    class_names = tuple(head["class_names"])
    counts = np.frombuffer(take(8 * len(class_names)), "<i8")
    lengths = np.frombuffer(take(2 * head["files"]), "<u2").astype(np.int64)
    paths = take(head["bytes"])
    if digest.digest() != expected or file.read(1):
        return None
    for stamp in head["stamps"]:  # a thousand questions instead of a million entries
        if read_stamp(root, stamp[0]) != tuple(stamp):
            return None
    notes = tuple(head["notes"])
    return Listing(paths, lengths, counts, class_names, notes, tuple(head["repeated"]))
