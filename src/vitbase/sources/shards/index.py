"""Where every image lies in a set of tar shards, and the file that remembers it.

The index file is ``MAGIC``, the SHA-256 of all that follows, the length of a JSON description, the
description, and the columns' raw bytes: nothing in it is run, and nothing is allocated on its word.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError
from vitbase.files import parse_json
from vitbase.sources.shards.raw import BLOCK, are_raw
from vitbase.stores import FileFacts

Label = int | str | list[Any]
MAGIC = b"VBINDEX1"
# Bytes of names, and of labels, when unpacked. Some bytes of brackets become a list of seventy: so
# the values are counted, too.
_LARGEST_NAMES, _LARGEST_TEXTS, _MOST_VALUES = 1 << 28, 1 << 26, 1 << 24
_LARGEST_NUMBER = 1 << 62
_COLUMNS = (("offsets", "<i8"), ("sizes", "<u4"), ("checks", "<u4"), ("labels", "<i8"))


class Member(NamedTuple):
    """A file inside a tar file."""

    name: str
    offset: int  # of its content; its header is the block before
    size: int
    check: int  # CRC-32 of its header


@dataclass(frozen=True)
class Shard:
    """The samples of one shard. Names and odd labels are packed: they are rarely asked for."""

    name: str
    facts: FileFacts
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    checks: NDArray[np.uint32]
    labels: NDArray[np.int64]  # zeros if there are texts
    names: bytes  # packed list of [member, path of the original or ""]
    texts: bytes = b""  # packed list of labels, where some are no integers
    left_out: tuple[str, ...] = field(default=())  # members without use: how many, the first
    raw: bool = False  # whether its images are decoded pixels

    def __len__(self) -> int:
        return len(self.offsets)

    def name_of(self, place: int) -> tuple[str, str]:
        """Return the member of a sample, and the path of its original or "". Raises: DataError."""
        return name_in(self.names, place, self.name)

    def label_list(self) -> list[Label]:
        """Return the labels as they were found."""
        if not self.texts:
            return [*map(int, self.labels)]
        found: list[Label] = _unpack(self.texts, len(self.texts) << 10)  # looked at before
        return found


def build_shard(
    name: str,
    facts: FileFacts,
    members: Sequence[Member],
    labels: Sequence[Label],
    origins: Sequence[str],
    left_out: tuple[str, ...] = (),
) -> Shard:
    """Put the samples of a shard into columns.

    Args:
      name: of the shard, relative to the index.
      facts: of its file.
      members: the image of each sample.
      labels: of each: an integer, a class name, or a list.
      origins: the path that each image had before, or "".
      left_out: members without use.
    """
    plain = all(isinstance(label, int) for label in labels)
    return Shard(
        name=name,
        facts=facts,
        offsets=np.array([member.offset for member in members], np.int64),
        sizes=np.array([member.size for member in members], np.uint32),
        checks=np.array([member.check for member in members], np.uint32),
        labels=np.array(labels if plain else [0] * len(members), np.int64),
        names=pack([[m.name, origin] for m, origin in zip(members, origins, strict=True)]),
        texts=b"" if plain else pack(list(labels)),
        left_out=left_out,
        raw=bool(members) and are_raw(member.name for member in members),
    )


def encode_index(shards: Sequence[Shard]) -> bytes:
    """Return the bytes of an index: a function of the shards alone."""
    described = [
        {
            "name": shard.name,
            "bytes": shard.facts.size,
            "tag": shard.facts.tag,
            "samples": len(shard),
            "names": len(shard.names),
            "texts": len(shard.texts),
            "left_out": shard.left_out,
            **({"raw": True} if shard.raw else {}),
        }
        for shard in shards
    ]
    description = json.dumps({"shards": described}).encode()
    parts = [len(description).to_bytes(8, "little"), description]
    for shard in shards:
        parts += [getattr(shard, name).astype(kind).tobytes() for name, kind in _COLUMNS]
        parts += [shard.names, shard.texts]
    body = b"".join(parts)
    return MAGIC + sha256(body).digest() + body


def decode_index(content: bytes) -> list[Shard]:
    """Read an index. Raises: ValueError if it is damaged or none."""
    start = len(MAGIC) + 32
    body = memoryview(content)[start:]
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no index of this version")
    if sha256(body).digest() != content[len(MAGIC) : start]:
        raise ValueError("it does not match its checksum")
    length = int.from_bytes(body[:8], "little")
    at = 8 + length
    shards = []
    try:
        for described in parse_json(bytes(body[8:at]))["shards"]:
            shard, at = _decode_shard(described, body, at)
            shards.append(shard)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is not as expected ({error})") from None
    return shards


def _decode_shard(described: dict[str, Any], body: memoryview, at: int) -> tuple[Shard, int]:
    """Read a shard's columns, which begin at a byte of the body. Returns: also where they end.

    Raises: ValueError, KeyError, TypeError if it is not as :func:`encode_index` writes it.
    """
    samples, names_bytes, texts_bytes, size = (
        _is(int, described[key]) for key in ("samples", "names", "texts", "bytes")
    )
    if min(samples, names_bytes, texts_bytes, size) < 0:
        raise ValueError("it counts less than nothing")
    columns = {}
    for name, kind in _COLUMNS:
        columns[name] = np.frombuffer(body, kind, samples, at)
        at += columns[name].nbytes
    offsets, ends = columns["offsets"], columns["offsets"] + columns["sizes"]
    if samples and not (offsets.min() >= BLOCK and ends.min() >= BLOCK and ends.max() <= size):
        raise ValueError("an image of it lies outside of its shard")
    names = bytes(body[at : at + names_bytes])
    at += names_bytes
    texts = bytes(body[at : at + texts_bytes])
    at += texts_bytes
    if texts:
        labels = _is(list, _unpack(texts, _LARGEST_TEXTS, _MOST_VALUES))
        if len(labels) != samples or any(as_label(label) is None for label in labels):
            raise ValueError("its labels are not as many as its samples, or no labels")
    count, *first = (_is(str, text) for text in described["left_out"] or ("0", ""))
    if len(first) != 1 or not (count.isascii() and count.isdigit() and len(count) < 20):
        raise ValueError("it does not say what was left out")
    facts = FileFacts(size, _is(str, described["tag"]))
    left_out = tuple(described["left_out"])
    name = _is(str, described["name"])
    raw = _is(bool, described.get("raw", False))
    shard = Shard(name, facts, **columns, names=names, texts=texts, left_out=left_out, raw=raw)
    return shard, at


def _is(kind: type[Any], value: object) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} should be of type {kind.__name__}")
    return value


def as_label(value: object) -> Label | None:
    """Return a value from outside if it may be a label: a number, a name, or a list of them."""
    if isinstance(value, str) or (isinstance(value, int) and value is not True):
        return value if isinstance(value, str) or abs(value) < _LARGEST_NUMBER else None
    if isinstance(value, list) and not any(_is_too_large(part) for part in value):
        return value
    return None


def _is_too_large(part: object) -> bool:
    return isinstance(part, int) and abs(part) >= _LARGEST_NUMBER


def name_in(packed: bytes, place: int, shard: str) -> tuple[str, str]:
    """Return the member at a place of packed names, and the path of its original or "".

    Names are not looked at before they are asked for: so it is here that they may be damaged.

    Raises: DataError naming the shard.
    """
    try:
        names = _unpack_names(packed)
        member, origin = names[place]
        return _is(str, member), _is(str, origin)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise DataError(
            f"The index of the shard {shard} is damaged: the names in it are not those of its "
            f"images ({error}). Remove the file shards-*.index beside it: it is made again."
        ) from None


@lru_cache(maxsize=16)
def _unpack_names(packed: bytes) -> Any:
    return _unpack(packed, _LARGEST_NAMES, _MOST_VALUES)


def pack(values: list[Any]) -> bytes:
    """Return a list of plain values as compressed JSON."""
    return zlib.compress(json.dumps(values, separators=(",", ":")).encode())


def _unpack(packed: bytes, longest: int, most: int | None = None) -> Any:
    """Return what :func:`pack` packed. Raises: ValueError as `parse_json`."""
    try:
        text = zlib.decompressobj().decompress(packed, longest)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    return parse_json(text, longest=longest, most=most)
