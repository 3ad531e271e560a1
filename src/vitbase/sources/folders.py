"""Images in class folders: ``<root>/<class>/**/<image file>``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError, ImageError, first_few
from vitbase.sources.source import UNKNOWN_SIZE, Images, Labels, Source
from vitbase.stores import list_folder

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif"}
)
_PROBE_BYTES = 4096
LAYOUT = "one folder per class, with its images inside: {root}/<class>/<image>.jpg (or png, webp…)"


class Stamp(NamedTuple):
    """A folder as it was just before it was listed; it differs once entries came or went."""

    folder: str  # relative to the root, "" for the root itself
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class Files(Images):
    """Image files below a folder. Names are bytes in a row, not objects: there may be millions."""

    root: Path
    paths: bytes  # relative to root, with /, one after the other
    bounds: NDArray[np.int64]  # [M + 1]: where each begins, and the last ends

    def read(self, row: int) -> bytes:
        return self._read(row)

    def name(self, row: int) -> str:
        return os.fsdecode(self.paths[self.bounds[row] : self.bounds[row + 1]])

    def size(self, row: int) -> int:
        try:
            return os.stat(self.describe(row)).st_size
        except OSError:
            return UNKNOWN_SIZE

    def digest(self, row: int, *, probe: bool = False) -> bytes:
        """As :meth:`Images.digest`; photos of equal size differ in the middle, if not in front."""
        return blake2b(self._read(row, _PROBE_BYTES if probe else None), digest_size=32).digest()

    def describe(self, row: int) -> str:
        return os.path.join(self.root, self.name(row))

    def _read(self, row: int, middle: int | None = None) -> bytes:
        """Return a file's bytes, or as many from its middle. Raises: ImageError."""
        try:
            with open(self.describe(row), "rb", buffering=0) as file:
                if middle is None:
                    return file.read()
                file.seek(max(0, (os.fstat(file.fileno()).st_size - middle) // 2))
                return file.read(middle)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from None


class Listing(NamedTuple):
    """What is in class folders, ordered by class and by name."""

    paths: bytes  # relative to the root, with /, one after the other
    lengths: NDArray[np.int64]  # of each path
    counts: NDArray[np.int64]  # files of each class
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    def source(self, root: Path) -> Source:
        """Return these files as a source."""
        files = Files(root, self.paths, _bounds(self.lengths))
        labels = np.repeat(np.arange(len(self.class_names)), self.counts)
        return Source(files, np.arange(len(labels)), labels, self.class_names, self.notes)


def _bounds(lengths: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def is_image_name(name: str) -> bool:
    """Tell by its suffix whether a file is an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_stamp(root: Path, folder: str) -> Stamp:
    """Read the stamp of a folder below a root. Raises: OSError."""
    status = os.stat(os.path.join(root, folder))
    return Stamp(folder, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def build_source(
    root: Path,
    names: Sequence[str],
    labels: Labels,
    class_names: tuple[str, ...],
    notes: tuple[str, ...] = (),
) -> Source:
    """Build a source of files given by name.

    Args:
      root: the folder to which the names are relative.
      names: of the files, with /.
      labels: int64 [N] or float32 [N, C].
      class_names: what the labels index.
      notes: what is remarkable.
    """
    encoded = [os.fsencode(name) for name in names]
    files = Files(root, b"".join(encoded), _bounds([len(name) for name in encoded]))
    return Source(files, np.arange(len(labels)), labels, class_names, notes)


def read_folder(root: Path, option: str) -> Source:
    """List a folder of class folders. Classes and files are ordered by name.

    Hidden entries (``.name``) are passed over. Other files are left out, counted in the notes.

    Args:
      root: the folder that holds the class folders.
      option: the option that named it, for messages.
    Raises: DataError if there are no class folders, or one without images.
    """
    return list_classes(root, option)[0].source(root)


def list_classes(root: Path, option: str) -> tuple[Listing, list[Stamp]]:
    """List a folder as :func:`read_folder` does. Returns: also every folder, as it was before."""
    own = _stamp(root, "")
    stamps = [own]
    folders, strays = list_folder(root)
    if not folders:
        raise DataError(f"--{option} {root}: {_wrong_layout(root, strays)}")
    paths: list[bytes] = []
    lengths: list[NDArray[np.int64]] = []
    left_out = list(strays)
    for name in folders:
        found = [*_images(root, name, left_out, frozenset({own.inode}), stamps)]
        if not found:
            raise DataError(
                f"--{option} {root}: the class folder '{name}' holds no images. "
                "Fill it, or take it away."
            )
        encoded = sorted(os.fsencode(path) for path in found)
        lengths.append(np.array([len(path) for path in encoded], np.int64))
        paths.append(b"".join(encoded))
    notes: tuple[str, ...] = ()
    if left_out:
        what = "file was" if len(left_out) == 1 else "files were"
        notes = (
            f"{root}: {len(left_out)} {what} left out, not being images in a class folder "
            f"(the first: {left_out[0]}).",
        )
    counts = np.array([len(part) for part in lengths], np.int64)
    return Listing(b"".join(paths), np.concatenate(lengths), counts, tuple(folders), notes), stamps


def _images(
    root: Path, folder: str, left_out: list[str], above: frozenset[int], stamps: list[Stamp]
) -> Iterator[str]:
    """Yield the images below a folder as relative paths; append other files to ``left_out``."""
    stamp = _stamp(root, folder)
    if stamp.inode and stamp.inode in above and _leads_up(root / folder):
        return  # a link to a folder above: everything in it is listed already
    stamps.append(stamp)
    folders, files = list_folder(root / folder)
    for name in files:
        if is_image_name(name):
            yield f"{folder}/{name}"
        else:
            left_out.append(f"{folder}/{name}")
    for name in folders:
        yield from _images(root, f"{folder}/{name}", left_out, above | {stamp.inode}, stamps)


def _leads_up(folder: Path) -> bool:
    return any(parent.samefile(folder) for parent in folder.parents)


def _stamp(root: Path, folder: str) -> Stamp:
    try:
        return read_stamp(root, folder)
    except OSError as error:
        path = os.path.join(root, folder)
        raise DataError(f"Cannot list {path}: {error.strerror or error}") from None


def _wrong_layout(root: Path, files: Sequence[str]) -> str:
    expected = "expected " + LAYOUT.format(root=str(root).rstrip("/\\"))
    images = sum(is_image_name(name) for name in files)
    if images:
        return f"{expected}; found {images} images directly in it, and no folders."
    if files:
        listing = first_few(files, count=False)
        return f"{expected}; found no folders, only {len(files)} files ({listing})."
    return f"{expected}; found an empty folder."
