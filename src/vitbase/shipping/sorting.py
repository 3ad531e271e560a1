"""Images sorted into a folder by class: copies, or links.

Whatever classes and files are called, nothing is made outside that folder, and nothing in it is
overwritten. What is there already, the same image under its name, stays: a second time changes
nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vitbase.data.formats import encode_png, suffix_of
from vitbase.disk import LONGEST_IMAGE, is_passed_over, read_regular
from vitbase.errors import DataError
from vitbase.files import place_beside
from vitbase.shipping.predict import UNSURE, Prediction
from vitbase.sources.folders import is_image_name
from vitbase.sources.source import Source

_UNSAFE = frozenset('/\\:*?"<>|')  # of paths, here or on Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' own
_LONGEST = 180
"""Bytes of a name; file systems take 255, and a number and a mark of ours may come to it."""


def safe_name(text: str) -> str:
    """Return a text as a name that any file system takes, and that no list passes over."""
    visible = "".join("_" if c in _UNSAFE or not c.isprintable() else c for c in text)
    stem, suffix = os.path.splitext(visible.lstrip(" .-").rstrip(" ."))
    room = _LONGEST - len(suffix.encode())
    if room < _LONGEST // 2:  # nothing that a file is known by
        stem, suffix, room = stem + suffix, "", _LONGEST
    name = stem.encode()[:room].decode(errors="ignore").rstrip(" .") + suffix
    if not name or is_passed_over(name) or _DEVICES.fullmatch(name):
        return f"_{name}"
    return name


def folder_names(class_names: Iterable[str]) -> dict[str, str]:
    """Return a folder's name for each class, and for the images that are unsure: all different.

    A class whose name is safe keeps it; of several that would share one, the others get a number.
    """
    wanted = {name: safe_name(name) for name in dict.fromkeys(class_names)}
    first = sorted(wanted, key=lambda name: wanted[name] != name)
    taken = {_key(UNSURE)}
    folders = {}
    for name in first:
        numbered = _numbered(wanted[name], "", 1)
        folders[name] = next(each for each in numbered if _key(each) not in taken)
        taken.add(_key(folders[name]))
    return folders


def _key(name: str) -> str:
    """Return what two names have in common that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _numbered(stem: str, suffix: str, first: int) -> Iterator[str]:
    for number in itertools.count(first):
        yield f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}"


class Sorter:
    """Puts images into folders by class.

    Args:
      folder: where these are; made if it is not there.
      source: the images.
      class_names: of the classes that there may be.
      link: makes links instead of copies: hard ones, or symbolic ones to another file system.
    """

    def __init__(
        self, folder: Path, source: Source, class_names: Sequence[str], *, link: bool = False
    ) -> None:
        self.folder, self.source, self.link = folder, source, link
        self._folders = folder_names(class_names)
        self._made: set[str] = set()
        self._last: dict[tuple[str, str], int] = {}  # number of the last file of a name

    def put(self, index: int, found: Prediction) -> None:
        """Put an image where it belongs; one that could not be read stays where it is.

        Raises: DataError if that cannot be written, or a link made.
        """
        if found.error is not None:
            return
        inside = UNSURE if found.unsure else self._folders[found.classes[0][0]]
        try:
            self._put(index, inside)
        except OSError as error:
            place = self.folder / inside
            raise DataError(
                f"Cannot sort {found.image} into {place}: {error.strerror or error}."
            ) from None

    def _put(self, index: int, inside: str) -> None:
        path = self.source.describe(index)
        content = b""
        if not self.link:
            content, name = self._read(index)
        elif os.path.isfile(path):
            name = os.path.basename(path)
        else:
            raise DataError(f"{path} is no file that a link could lead to: leave out --link.")
        name, place = safe_name(name), self._make(inside)
        key = (inside, _key(name))
        first = self._last.get(key, 0) + 1
        for number, numbered in enumerate(_numbered(*os.path.splitext(name), first), first):
            target = place / numbered
            if self._is_there(target, path, content) or self._make_new(target, path, content):
                self._last[key] = number
                return

    def _read(self, index: int) -> tuple[bytes, str]:
        """Return an image as a file's content, and what it may be called."""
        raw = self.source.read(index)
        name = os.path.basename(self.source.name(index))
        if not isinstance(raw, bytes):
            return encode_png(raw), f"{name}.png"
        return raw, name if is_image_name(name) else f"{name}.{suffix_of(raw)}"

    def _make(self, inside: str) -> Path:
        """Return the folder of a class, made if it was not there; none that a link leads to."""
        place = self.folder / inside
        if inside not in self._made:
            place.mkdir(parents=True, exist_ok=True)
            if place.is_symlink():
                raise DataError(f"{place} is a link to another place: nothing is sorted into it.")
            self._made.add(inside)
        return place

    def _is_there(self, target: Path, path: str, content: bytes) -> bool:
        """Whether a file is this very image, from a time before."""
        with contextlib.suppress(OSError):
            if self.link:
                return os.path.samefile(target, path)
            if target.stat().st_size == len(content):
                return read_regular(target, LONGEST_IMAGE) == content
        return False

    def _make_new(self, target: Path, path: str, content: bytes) -> bool:
        """Make a file or link, whole. Returns: False if something of that name is there."""
        if os.path.lexists(target):
            return False
        try:
            if self.link:
                _link(path, target)
            else:
                _write(content, path, target)
        except FileExistsError:
            return False
        return True


def _link(path: str, target: Path) -> None:
    try:
        os.link(os.path.realpath(path), target)
    except FileExistsError:
        raise
    except OSError:  # of another file system, or of somebody else
        target.symlink_to(os.path.abspath(path))


def _write(content: bytes, path: str, target: Path) -> None:
    beside = place_beside(target)
    try:
        beside.write_bytes(content)
        with contextlib.suppress(OSError, ValueError):  # where it comes from no file
            shutil.copystat(path, beside)
        try:
            os.link(beside, target)  # fails where something is, as renaming does not
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)
