"""Folders and files of others on this machine: what counts as one, and how it is opened.

Every command lists through :func:`list_folder`, and reads images through :func:`read_regular`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from vitbase.errors import DataError

SYSTEM_NAMES = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}  # Synology, QNAP
    | {"__macosx", "icon\r", "network trash folder", "temporary items"}  # macOS
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"}  # Windows
    | {"$recycle.bin", "system volume information"}
    | {"lost+found", "__pycache__"}
)
"""What operating systems and file servers leave in folders, in lower case; more begins with a dot:
.DS_Store, .AppleDouble, ._x.jpg, .Trash-1000, .ipynb_checkpoints."""

LONGEST_IMAGE = 1 << 30
"""Bytes of an image file that are read: twice those of the largest image, uncompressed."""

LONGEST_FILE = 1 << 34
"""Bytes of a file that is read whole and is many images."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: True, "a device"),
)


def as_path(place: str | Path) -> Path:
    """Return a place as a path: `~` is somebody's home, if there is anybody of that name."""
    path = Path(place)
    with contextlib.suppress(RuntimeError):
        return path.expanduser()
    return path


class Entries(NamedTuple):
    """The names in a folder, sorted."""

    folders: list[str]
    files: list[str]
    passed_over: list[str]  # of the system's or hidden


def is_passed_over(name: str) -> bool:
    """Whether an entry of this name is hidden, or a system's own."""
    return name[:1] == "." or name.lower() in SYSTEM_NAMES


def list_folder(folder: Path) -> Entries:
    """List a folder. What is no folder, or a link that leads nowhere, is among the files.

    Raises: DataError if it cannot be listed.
    """
    folders: list[str] = []
    files: list[str] = []
    passed_over: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or name.lower() in SYSTEM_NAMES:  # inline: there are millions
                    passed_over.append(name)
                elif _is_folder(entry):
                    folders.append(name)
                else:
                    files.append(name)
    except OSError as error:
        raise DataError(f"Cannot list {folder}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name, or half of a letter
        raise DataError(f"Cannot list {folder}: {error}") from None
    return Entries(sorted(folders), sorted(files), sorted(passed_over))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it says so
        return False


def tell_passed_over(folder: Path, names: list[str]) -> tuple[str, ...]:
    """Return a note of what was passed over below a folder, if anything was."""
    if not names:
        return ()
    what = "entry was" if len(names) == 1 else "entries were"
    count = f"{len(names)} system or hidden {what} passed over"
    return (f"{folder}: {count} (the first: {names[0]}).",)


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a file, if it is a regular one: the ``opener`` of files that others may have put there.

    A FIFO that nobody writes to does not hang, nor does a terminal become ours.

    Returns: a descriptor.
    Raises: OSError if it cannot be opened, or is a folder, FIFO, socket or device.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except ValueError as error:  # a NUL in the name, or half of a letter
        raise OSError(errno.EINVAL, f"no file is called so ({error})") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file with content")


def find_strange(path: Path) -> str | None:
    """Say what stands in the place of a file, "is missing" or "is a FIFO"; None if it is one.

    Raises: OSError if it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link that leads nowhere" if path.is_symlink() else "is missing"
    return None if stat.S_ISREG(mode) else f"is {_kind(mode)}"


def _kind(mode: int) -> str:
    return next(kind for matches, kind in _KINDS if matches(mode))


def read_regular(path: str | Path, longest: int, middle: int | None = None) -> bytes:
    """Read a regular file.

    Args:
      path: the file.
      longest: bytes that it may have.
      middle: read only as many bytes, from its middle.
    Raises: OSError as :func:`open_regular`, or if it is longer.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if middle is not None:
            return os.pread(descriptor, middle, max(0, (size - middle) // 2))
        content = b""
        if size <= longest:
            content = os.read(descriptor, size + 1)  # one more would tell that it grows
        if len(content) == size:
            return content
        parts, read = [content], len(content)
        while parts[-1] and read <= longest:
            parts.append(os.read(descriptor, 1 << 20))
            read += len(parts[-1])
        if max(read, size) > longest:
            raise OSError(errno.EFBIG, f"it has more than {longest:,} bytes")
        return b"".join(parts)
    finally:
        os.close(descriptor)
