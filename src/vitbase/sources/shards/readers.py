"""Reads images out of open shards, by offset.

Before an image is handed out its tar header, which lies right before it, is compared with the
index by checksum. That costs a microsecond and half a kilobyte of reading, and an image of a
shard that was written anew since is an error, not another image under the old label.

Decoded pixels are a view of the shard, mapped into memory: what of them is not used is not read.
What is cut off a mapped file while a crop is taken from it ends the process (SIGBUS); so its length
is asked for before each image, and a shard that has become shorter is an error like the above.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import open_regular
from vitbase.errors import ImageError
from vitbase.sources.shards.raw import BLOCK, LONGEST_HEADER, view_raw
from vitbase.stores import FileFacts, RemoteStore, facts_of


class Reader(Protocol):
    """Reads images out of open shards. Safe to use from several threads."""

    def read(self, shard: int, offset: int, size: int, check: int) -> bytes:
        """Return a member's content. Raises: ImageError if it is not what the index says."""

    def pixels(self, shard: int, offset: int, size: int, check: int) -> NDArray[np.uint8]:
        """Return a member's pixels, uint8 [H, W, C], read-only. Raises: ImageError likewise."""


class LocalReader:
    """Reads from shards of this machine: two system calls an image, one for pixels, and no lock.

    Shards are opened when they are first needed. Of more than `limit` the one opened first is let
    go; it is closed when the last thread that reads from it is done.
    """

    def __init__(
        self, files: Sequence[str], facts: Sequence[FileFacts], limit: int | None = None
    ) -> None:
        self.files, self.facts = files, facts
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = limit or max(1, min(4096, soft // 2))
        self._open: list[_File | None] = [None] * len(files)
        self._order: deque[int] = deque()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens them for itself."""
        return LocalReader, (self.files, self.facts, self.limit)

    def read(self, shard: int, offset: int, size: int, check: int) -> bytes:
        file = self._open[shard] or self._opened(shard, mapped=False)
        try:
            header = os.pread(file.number, BLOCK, offset - BLOCK)
            data = os.pread(file.number, size, offset)
            while 0 < len(data) < size:  # interrupted, or larger than one call may read
                more = os.pread(file.number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise ImageError(f"the shard cannot be read: {error.strerror or error}") from None
        if zlib.crc32(header) != check or len(data) != size:
            raise _changed()
        return data

    def pixels(self, shard: int, offset: int, size: int, check: int) -> NDArray[np.uint8]:
        file = self._open[shard] or self._opened(shard, mapped=True)
        if file.map.size() != len(file.map):
            raise _changed()
        content = memoryview(file.map)[offset - BLOCK : offset + size]
        # numpy copies without the interpreter's lock: if these bytes come from a slow disk, the
        # other threads need not wait for it.
        head = np.frombuffer(content[: BLOCK + LONGEST_HEADER], np.uint8).copy()
        if zlib.crc32(head[:BLOCK].data) != check or len(content) != BLOCK + size:
            raise _changed()
        return view_raw(content[BLOCK:])

    def _opened(self, shard: int, *, mapped: bool) -> _File:
        with self._lock:
            file = self._open[shard]
            if file is None:
                file = _File(self.files[shard], self.facts[shard], mapped=mapped)
                if len(self._order) >= self.limit:
                    self._open[self._order.popleft()] = None
                self._open[shard] = file
                self._order.append(shard)
            return file


class _File:
    """An open file that is closed when nobody refers to it: never while a thread reads from it.

    Mapped, its memory stays as long as there are views of it, and its map has the one descriptor.
    """

    __slots__ = ("map", "number")
    map: mmap.mmap

    def __init__(self, path: str, facts: FileFacts, *, mapped: bool) -> None:
        self.number = -1
        try:
            self.number = open_regular(path)
            if facts_of(os.fstat(self.number)) != facts:
                raise _changed()
            if mapped:
                self.map = mmap.mmap(self.number, facts.size, access=mmap.ACCESS_READ)
                os.close(self.number)
                self.number = -1
        except (OSError, ValueError) as error:  # ValueError: it has become shorter since
            cause = getattr(error, "strerror", None) or error
            raise ImageError(f"the shard cannot be read: {cause}") from None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.number >= 0:
            close(self.number)  # bound above: at the end of the program modules are gone


class RemoteReader:
    """Reads from shards behind a URL: one request an image."""

    def __init__(self, store: RemoteStore, names: Sequence[str]) -> None:
        self.store, self.names = store, names

    def read(self, shard: int, offset: int, size: int, check: int) -> bytes:
        data = self.store.read(self.names[shard], offset - BLOCK, offset + size)
        if zlib.crc32(data[:BLOCK]) != check:
            raise _changed()
        return data[BLOCK:]

    def pixels(self, shard: int, offset: int, size: int, check: int) -> NDArray[np.uint8]:
        return view_raw(memoryview(self.read(shard, offset, size, check)))


def _changed() -> ImageError:
    return ImageError(
        "the shard has changed since it was indexed; start again, and it is indexed anew"
    )
