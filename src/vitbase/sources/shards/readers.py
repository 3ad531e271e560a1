"""Reads images out of open shards, by offset.

Before an image is handed out its tar header, which lies right before it, is compared with the
index by checksum. That costs a microsecond and half a kilobyte of reading, and an image of a
shard that was written anew since is an error, not another image under the old label.
"""

from __future__ import annotations

import os
import resource
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from vitbase.disk import open_regular
from vitbase.errors import ImageError
from vitbase.sources.shards.index import BLOCK
from vitbase.stores import FileFacts, RemoteStore, facts_of


class Reader(Protocol):
    """Reads images out of open shards. Safe to use from several threads."""

    def read(self, shard: int, offset: int, size: int, check: int) -> bytes:
        """Return a member's content. Raises: ImageError if it is not what the index says."""


class LocalReader:
    """Reads from shards of this machine: two system calls an image, and no lock.

    Shards are opened when they are first needed. Of more than `limit` the one opened first is let
    go; it is closed when the last thread that reads from it is done.
    """

    def __init__(
        self, files: Sequence[str], facts: Sequence[FileFacts], limit: int | None = None
    ) -> None:
        self.files, self.facts = files, facts
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = limit or max(1, min(4096, soft // 2))
        self._open: list[_Descriptor | None] = [None] * len(files)
        self._order: deque[int] = deque()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int, check: int) -> bytes:
        file = self._open[shard] or self._opened(shard)
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

    def _opened(self, shard: int) -> _Descriptor:
        with self._lock:
            file = self._open[shard]
            if file is None:
                file = _Descriptor(self.files[shard])
                if facts_of(os.fstat(file.number)) != self.facts[shard]:
                    raise _changed()
                if len(self._order) >= self.limit:
                    self._open[self._order.popleft()] = None
                self._open[shard] = file
                self._order.append(shard)
            return file


class _Descriptor:
    """An open file that is closed when nobody refers to it: never while a thread reads from it."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = -1
        try:
            self.number = open_regular(path)
        except OSError as error:
            raise ImageError(f"the shard cannot be read: {error.strerror or error}") from None

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


def _changed() -> ImageError:
    return ImageError(
        "the shard has changed since it was indexed; start again, and it is indexed anew"
    )
