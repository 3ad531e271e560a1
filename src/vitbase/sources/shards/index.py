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

from vitbase.files import parse_json
from vitbase.stores import FileFacts

BLOCK = 512
"""Bytes of a tar file's unit; a member's header is one, right before its content."""
Label = int | str | list[Any]
MAGIC = b"VBINDEX1"
_LARGEST_BLOB = 1 << 28
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

    def __len__(self) -> int:
        return len(self.offsets)

    def label_list(self) -> list[Label]:
        """Return the labels as they were found."""
        found: list[Label] = unpack(self.texts) if self.texts else self.labels.tolist()
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
            counts = [described[key] for key in ("samples", "names", "texts")]
            if min(counts) < 0:
                raise ValueError(f"it counts {min(counts)}")
            columns = {}
            for name, kind in _COLUMNS:
                columns[name] = np.frombuffer(body, kind, described["samples"], at)
                at += columns[name].nbytes
            names = bytes(body[at : at + described["names"]])
            at += described["names"]
            texts = bytes(body[at : at + described["texts"]])
            at += described["texts"]
            if texts and len(unpack(texts)) != described["samples"]:
                raise ValueError("its labels are not as many as its samples")
            facts = FileFacts(described["bytes"], described["tag"])
            remark = tuple(described["left_out"])
            shards.append(
                Shard(
                    described["name"], facts, **columns, names=names, texts=texts, left_out=remark
                )
            )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not as expected ({error})") from None
    return shards


def pack(values: list[Any]) -> bytes:
    """Return a list of plain values as compressed JSON."""
    return zlib.compress(json.dumps(values, separators=(",", ":")).encode())


@lru_cache(maxsize=16)
def unpack(packed: bytes) -> Any:
    """Return what :func:`pack` packed. Raises: ValueError."""
    try:
        return parse_json(
            zlib.decompressobj().decompress(packed, _LARGEST_BLOB), longest=_LARGEST_BLOB
        )
    except zlib.error as error:
        raise ValueError(str(error)) from None
