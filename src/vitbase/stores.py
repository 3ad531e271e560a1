"""Folders of files, on this machine or behind a URL, read in pieces.

A URL is opened through fsspec: ``s3://``, ``gs://``, ``https://``, ``memory://``, or a chain such
as ``simplecache::s3://``, which keeps on this machine what it has fetched. A request that fails for
a reason that may pass is made again, with growing pauses, a bounded number of times. An outage that
lasts is a DataError, never an ImageError: an image must not be left out of a run because a network
was down for a minute.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from vitbase.disk import (
    LONGEST_FILE,
    as_path,
    is_passed_over,
    list_folder,
    open_regular,
    read_regular,
)
from vitbase.errors import DataError, ImageError

T = TypeVar("T")
ReadRange = Callable[[int, int], bytes]
"""(start, end) -> the bytes between, all of them."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|://)")
_TRANSIENT_STATUS = frozenset({408, 425, 429})
# Kinds of errors, and of what they derive from, in aiohttp, botocore, urllib3 and requests.
_LOST = frozenset(
    {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError"}
    | {"IncompleteReadError", "ResponseStreamingError", "ProtocolError", "ChunkedEncodingError"}
)
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What tells two versions of a file apart, by the name that a file system gives it.
_TAGS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified", "mtime")


class FileFacts(NamedTuple):
    """A file's size, and a tag that changes with its content: ``kind:value``, or nothing."""

    size: int
    tag: str

    def same_as(self, other: FileFacts) -> bool:
        """Whether both may be of the same content; tags of different kinds tell nothing."""
        if self.size != other.size:
            return False
        same_kind = self.tag.split(":", 1)[0] == other.tag.split(":", 1)[0]
        return not same_kind or self.tag == other.tag


class Store(Protocol):
    """A folder of files."""

    @property
    def place(self) -> str:
        """The folder's path or URL, for people."""

    def below(self, name: str) -> Store:
        """Return a folder inside."""

    def list(self) -> tuple[list[str], list[str]]:
        """Return the names of folders and files inside; nothing if there is no listing."""

    def facts(self, name: str) -> FileFacts:
        """Return what is known of a file. Raises: DataError."""

    def read_whole(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is none to be read. Raises: DataError."""

    def opened(self, name: str) -> AbstractContextManager[ReadRange]:
        """Open a file for reading pieces. Raises: DataError."""


def _draw() -> float:
    """Return a random number from 0 to 1, in each process another: copies come back apart."""
    return random.random()


@dataclass(frozen=True)
class Backoff:
    """How often a failed request is made again, and the pauses: doubling, with jitter.

    By default at most 6 attempts of a minute each, and 15 seconds of pauses between them.
    """

    attempts: int = 6
    first_seconds: float = 0.5
    largest_seconds: float = 16.0
    request_seconds: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = _draw

    def run(self, action: Callable[[], T], what: str) -> T:
        """Do something until it succeeds.

        Args:
          action: what to do.
          what: the URL it concerns, for the message.
        Raises: DataError naming the URL and the cause when it fails to the last; errors that
          another attempt would not mend come through as they are.
        """
        for attempt in range(self.attempts):
            try:
                return action()
            except Exception as error:
                if not is_transient(error):
                    raise
                if attempt + 1 == self.attempts:
                    raise DataError(
                        f"{what}: no answer after {self.attempts} attempts "
                        f"({_cause(error)}). Check the network and the server, then start again: "
                        "training continues from its last checkpoint."
                    ) from None
            pause = min(self.first_seconds * 2**attempt, self.largest_seconds)
            # Between half and all of it: many readers that failed together come back apart.
            self.sleep(pause * (0.5 + 0.5 * self.draw()))
        raise AssertionError("attempts must be positive")


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path of this machine."""
    return _URL.match(place) is not None


def open_store(place: str, option: str, backoff: Backoff | None = None) -> Store:
    """Open a folder by its path or URL.

    Args:
      place: a folder's path, ``file://`` and a path, or a URL that fsspec knows.
      option: the option that named it, for messages.
      backoff: how failed requests are repeated; None: as by default.
    Raises: DataError if it is no folder, or a package for such URLs is missing.
    """
    if place.startswith("file://"):
        place = place.removeprefix("file://")
    if not is_url(place):
        folder = as_path(place)
        if not folder.is_dir():
            raise DataError(f"--{option} {place}: there is no such folder.")
        return LocalStore(folder)
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, path = url_to_fs(place)
    except ImportError as error:
        raise DataError(
            f"--{option} {place}: reading it needs another package ({error}): "
            "pip install 'vitbase[cloud]'."
        ) from None
    except Exception as error:  # every file system has kinds of its own
        raise DataError(f"--{option} {place}: cannot be opened: {_cause(error)}") from None
    return RemoteStore(system, str(path).rstrip("/"), place.rstrip("/"), backoff or Backoff())


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine."""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def below(self, name: str) -> LocalStore:
        return LocalStore(self.folder / name)

    def list(self) -> tuple[list[str], list[str]]:
        found = list_folder(self.folder)
        return found.folders, found.files

    def facts(self, name: str) -> FileFacts:
        try:
            return facts_of(os.stat(self.folder / name))
        except OSError as error:
            raise _unreadable(self.folder / name, error) from None

    def read_whole(self, name: str) -> bytes | None:
        try:
            return read_regular(self.folder / name, LONGEST_FILE)
        except (FileNotFoundError, PermissionError):
            return None
        except OSError as error:
            raise _unreadable(self.folder / name, error) from None

    @contextmanager
    def opened(self, name: str) -> Iterator[ReadRange]:
        path = self.folder / name
        try:
            descriptor = open_regular(path)
        except OSError as error:
            raise _unreadable(path, error) from None

        def read(start: int, end: int) -> bytes:
            try:
                return os.pread(descriptor, end - start, start)
            except OSError as error:
                raise _unreadable(path, error) from None

        try:
            yield read
        finally:
            os.close(descriptor)


def facts_of(status: os.stat_result) -> FileFacts:
    """Return the size and the time of change that a file's status tells."""
    return FileFacts(status.st_size, f"mtime_ns:{status.st_mtime_ns}")


@dataclass(frozen=True)
class RemoteStore:
    """A folder behind a URL."""

    system: Any = field(repr=False)  # an fsspec.AbstractFileSystem
    path: str
    place: str
    backoff: Backoff

    def below(self, name: str) -> RemoteStore:
        return RemoteStore(self.system, f"{self.path}/{name}", f"{self.place}/{name}", self.backoff)

    def list(self) -> tuple[list[str], list[str]]:
        # A web server answers with links, and only under the name with a slash.
        path = self.path + "/" if self.path.startswith("http") else self.path
        try:
            entries = self._retried(
                lambda: self.system.ls(path, detail=True, **self._within()), self.place
            )
        except DataError:
            raise
        except Exception as error:
            # There is nothing, or it is a web server without listings, whose files may be named.
            if isinstance(error, FileNotFoundError) or (path != self.path and _status(error)):
                return [], []
            raise DataError(f"{self.place}: cannot be listed: {_cause(error)}") from None
        folders: list[str] = []
        files: list[str] = []
        for entry in entries:
            full = str(entry["name"])
            name = full.rstrip("/").rsplit("/", 1)[-1]
            inside = full.rstrip("/").rsplit("/", 1)[0].strip("/") == self.path.strip("/")
            if inside and name and name[0] != "?" and not is_passed_over(name):
                (folders if entry.get("type") == "directory" else files).append(name)
        return sorted(set(folders)), sorted(set(files))

    def facts(self, name: str) -> FileFacts:
        info = self._asked(name, lambda path: self.system.info(path, **self._within()))
        below = getattr(self.system, "fs", None)  # of a chain, whose listings may lack sizes
        if info.get("size") is None and below is not None:
            info = self._asked(name, below.info)
        size = info.get("size")
        if size is None:
            raise DataError(
                f"{self.place}/{name}: the server does not tell its size, so that parts of it "
                "cannot be read. Copy the shards to a server that does, or to this machine."
            )
        tag = next((f"{kind}:{info[kind]}" for kind in _TAGS if info.get(kind)), "")
        return FileFacts(int(size), tag)

    def read_whole(self, name: str) -> bytes | None:
        try:
            within = self._within(10)
            return bytes(self._asked(name, lambda path: self.system.cat_file(path, **within)))
        except ImageError:
            return None

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes between two places of a file.

        Raises: ImageError if there is no such file or part; DataError if the server stays away.
        """

        def ask(path: str) -> bytes:
            data = bytes(self.system.cat_file(path, start=start, end=end, **self._within()))
            if len(data) < end - start:
                raise ConnectionError(f"{len(data)} of {end - start} bytes came")
            if len(data) > end - start:
                raise DataError(
                    f"{self.place}/{name}: the server sends whole files where parts are asked for "
                    "(HTTP range requests). Copy the shards to one that can, or to this machine."
                )
            return data

        return self._asked(name, ask)

    @contextmanager
    def opened(self, name: str) -> Iterator[ReadRange]:
        yield lambda start, end: self.read(name, start, end)

    def _asked(self, name: str, ask: Callable[[str], T]) -> T:
        url = f"{self.place}/{name}"
        try:
            return self._retried(lambda: ask(f"{self.path}/{name}"), url)
        except DataError:
            raise
        except Exception as error:  # every file system has kinds of its own
            raise ImageError(f"{url} cannot be read: {_cause(error)}") from None

    def _within(self, times: int = 1) -> dict[str, float]:
        """Return the time that a request may take, for file systems that can be told."""
        told = isinstance(self.system, _asynchronous())
        return {"timeout": times * self.backoff.request_seconds} if told else {}

    def _retried(self, action: Callable[[], T], url: str) -> T:
        return self.backoff.run(action, url)


def _asynchronous() -> type:
    from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]

    found: type = AsyncFileSystem
    return found


def is_transient(error: BaseException) -> bool:
    """Whether a request that failed so may succeed later: time-outs, lost connections, 5xx."""
    if isinstance(error, DataError):
        return False
    status = _status(error)
    if status:
        return status >= 500 or status in _TRANSIENT_STATUS
    if isinstance(error, _LASTING):
        # fsspec's HTTP reports any failure as "not found", from the true cause.
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, OSError | TimeoutError | EOFError):
        return True
    return any(kind.__name__ in _LOST for kind in type(error).__mro__)


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error carries, or 0."""
    for name in ("status", "code"):  # aiohttp; gcsfs
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    response = getattr(error, "response", None)  # botocore: a dictionary; requests: an object
    if isinstance(response, dict):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        response = getattr(response, "status_code", None)
    return response if isinstance(response, int) and response >= 400 else 0


def _cause(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    status = _status(error)
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    if status:
        return f"HTTP status {status}" + (f", {text}" if str(status) not in text else "")
    return f"{kind}: {text}" if text else kind


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"Cannot read {path}: {error.strerror or error}")
