"""Files of ours, written whole or not at all; JSON from outside, bounded before it is parsed.

What is written appears under its name only when all of it is on the disk: it is made beside, under
a name that begins with ``.writing-``, synced, and renamed. A reader never sees half of it, and of
two writers at once the last one wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitbase.disk import as_path, open_regular
from vitbase.errors import DataError

WRITING = ".writing-"
"""What the names of files begin with that are not whole yet."""

LONGEST_JSON = 32 << 20
"""Bytes of JSON that are parsed: those of a weights file's header with 300,000 tensors."""

DEEPEST_JSON = 64
"""Levels of JSON that are parsed; what we and others write has fewer than ten."""


@contextlib.contextmanager
def written_whole(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Give a place beside a path to write a file or a folder at; afterwards it is moved there.

    If the block raises, nothing is left, and what was at the path stays as it was.

    Args:
      beside: the place, of :func:`place_beside`, where others write, too.
    Raises: OSError if the place cannot be written, or the path is a folder that is not empty.
    """
    beside = beside or place_beside(path)
    try:
        yield beside
        if beside.is_dir():
            for inside in beside.iterdir():
                sync(inside)
        sync(beside)
        os.replace(beside, path)
    finally:
        remove(beside)
    sync(path.parent)


def place_beside(path: Path) -> Path:
    """Return a place beside a path that nobody else writes at; it keeps the suffix."""
    return path.with_name(f"{WRITING}{secrets.token_hex(4)}-{path.name}")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all; text as UTF-8. Raises: OSError."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with written_whole(path) as beside:
        beside.write_bytes(data)


def refuse_full(out: Path) -> None:
    """Raise a DataError if a path is no folder to write to: a file, or one with content."""
    try:
        if out.is_dir() and next(out.iterdir(), None) is None:
            return
        if out.is_dir() or out.exists() or out.is_symlink():
            what = "a folder that is not empty" if out.is_dir() else "there, and no folder"
            raise DataError(f"--out {out} is {what}: give a new one.")
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror or error}") from None


@contextlib.contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """Give a file's path, or one that leads there, to libraries that take no bytes but UTF-8.

    What they have opened stays open when the other path is gone.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="vitbase-") as folder:
            link = Path(folder) / f"link{path.suffix.encode('ascii', 'ignore').decode()}"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def listed(names: Iterable[str]) -> str:
    """Return names one a line; as JSON what a line would not bring back, or a terminal obeys."""
    return "".join(f"{_as_line(name)}\n" for name in names)


def json_line(value: object, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """Return a value as JSON of ASCII that can be seen: `json` leaves DEL as it is."""
    text = json.dumps(value, indent=indent, sort_keys=sort_keys)
    return text.replace("\x7f", "\\u007f")


def plain_name(name: str) -> str:
    """Return a name as tables tell it, so that it is found again: what is no UTF-8 is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def unlisted(text: str) -> list[str]:
    """Return the names in a text, one a line, of :func:`listed` or anybody else."""
    return [_from_line(line.strip()) for line in text.split("\n") if line.strip()]


def _as_line(name: str) -> str:
    plain = name == name.strip() and name.isprintable() and name[:1] != '"'
    return name if plain and name else json_line(name)


def _from_line(line: str) -> str:
    if line[0] == '"':
        with contextlib.suppress(ValueError):
            name = parse_json(line)
            if isinstance(name, str) and _as_line(name) == line:
                return name
    return line


def final_name(path: Path) -> Path:
    """Return the place that something written by :func:`written_whole` will have in the end."""
    return path.with_name(re.sub(rf"^({re.escape(WRITING)}[0-9a-f]{{8}}-)+", "", path.name))


def remove_unfinished(folder: Path, suffix: str = "") -> None:
    """Remove from a folder what writers left in it that were killed. Raises: OSError."""
    for path in folder.glob(f"{WRITING}*{suffix}"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk itself. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Raises: OSError."""
    with open(path, "rb", opener=open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path | None:
    """Return where listings and indexes are kept, or None if this machine names no place.

    It is ``$VITBASE_CACHE``, else ``$XDG_CACHE_HOME/vitbase``, else ``~/.cache/vitbase``.
    """
    own = os.environ.get("VITBASE_CACHE")
    if own:
        return as_path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the specification says to pass over relative ones
        return Path(shared) / "vitbase"
    try:
        return Path.home() / ".cache" / "vitbase"
    except RuntimeError:
        return None


def read_json(path: Path, *, longest: int = LONGEST_JSON) -> Any:
    """Read a JSON file as :func:`parse_json` does, no more of it than may be.

    Raises: OSError; ValueError as :func:`parse_json`.
    """
    with open(path, "rb", opener=open_regular) as file:
        return parse_json(file.read(longest + 1), longest=longest)


def parse_json(text: bytes | str, *, longest: int = LONGEST_JSON, most: int | None = None) -> Any:
    """Parse JSON from outside: UTF-8, bounded in size and depth before anything is built of it.

    Python's parser calls itself for each level; stopped by the limit of that, it leaves the
    interpreter at this limit, where the next thing to run may fail. So depth is counted first.

    Raises: ValueError (of which `json.JSONDecodeError` is a kind) if it is longer than `longest`
      bytes, has more than `most` values, is deeper than :data:`DEEPEST_JSON` levels, says a key of
      an object twice, or is no JSON.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(content) > longest:
        raise ValueError(f"it is longer than {longest:,} bytes")
    outside = _STRING.sub(b"", content)
    if most is not None and sum(map(outside.count, (b",", b"[", b"{"))) >= most:
        raise ValueError(f"it has more than {most:,} values")
    depth = 0
    for bracket in outside.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST_JSON:
            raise ValueError(f"it is nested more than {DEEPEST_JSON} levels deep")
    return json.loads(content, object_pairs_hook=_without_repeats)


# One that does not end reaches to the end: else each of its quotes would be tried as a beginning.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"'{name[:80]}' stands there twice")
            seen.add(name)
    return content
