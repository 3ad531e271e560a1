"""What a disk does to a run while it writes: one error that says what happened, and what to do."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vitbase.errors import CheckpointError
from vitbase.files import final_name

_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EROFS: "Make it writable again",
    errno.ENOENT: "It may have been removed or renamed while the run wrote it: put it back",
    errno.EIO: "Look after the disk",
    errno.ESTALE: "Look after the network file system",
    errno.EFBIG: "Allow larger files",
    errno.EACCES: "Allow this user to write there",
    errno.EPERM: "Allow this user to write there",
    errno.EISDIR: "Remove that folder",
    errno.ENOTDIR: "Remove what stands in its place",
    errno.EINVAL: "Remove it",
    errno.ENXIO: "Remove what stands in its place",
}
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG}
"""What also comes without the name of a file: from writing to one that is open."""


P = ParamSpec("P")
T = TypeVar("T")
Owner = TypeVar("Owner", bound="_HasPath")


class _HasPath(Protocol):
    path: Path


@contextlib.contextmanager
def naming_faults(folder: Path) -> Iterator[None]:
    """Turn what the disk of a run folder refuses into an error of a user's.

    Errors of other places go through as they are.

    Raises: CheckpointError naming the file, as far as the system tells, the cause, and a remedy.
    """
    try:
        yield
    except OSError as error:
        place = _place_of(folder, error)
        if place is None:
            raise
        remedy = _REMEDIES.get(error.errno or 0, "Mend that")
        raise CheckpointError(
            f"Cannot write {place}: {error.strerror or error}. {remedy}, and give the same command "
            f"again: it goes on from the newest whole checkpoint."
        ) from None


def naming(
    method: Callable[Concatenate[Owner, P], T],
) -> Callable[Concatenate[Owner, P], T]:
    """Wrap a method that writes into the folder at `path` of its object in :func:`naming_faults`.

    Then every rank of a run hears of what the first one meets: see `Runtime.from_first`.
    """

    @functools.wraps(method)
    def named(self: Owner, /, *arguments: P.args, **options: P.kwargs) -> T:
        with naming_faults(self.path):
            return method(self, *arguments, **options)

    return named


def _place_of(folder: Path, error: OSError) -> Path | None:
    """Return what of a run folder an error is about, or None."""
    if error.filename is None:
        return folder if error.errno in _OF_A_DISK else None
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    names = [error.filename, error.filename2]
    paths = [Path(os.path.abspath(os.fsdecode(name))) for name in names if name is not None]
    inside = [path for path in paths if path.is_relative_to(os.path.abspath(folder))]
    return final_name(inside[-1]) if inside else None
