"""Images in class folders: ``<root>/<class>/**/<image file>``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError, ImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm"}
)
LAYOUT = "one folder per class, with its images inside: {root}/<class>/<image>.jpg (or png, webp…)"

Labels = NDArray[Any]
"""int64 [N], one class an image; or float32 [N, C] of zeros and ones, any number of classes."""


class Stamp(NamedTuple):
    """A folder as it was just before it was listed; it differs once entries came or went."""

    folder: str  # relative to the root, "" for the root itself
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder. The listing is arrays: 50 bytes a file, not objects."""

    root: Path
    paths: bytes  # relative to root, with /, one after the other
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: Labels
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        try:
            with open(self.describe(index), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from None

    def describe(self, index: int) -> str:
        return os.path.join(self.root, self.relative_path(index))

    def relative_path(self, index: int) -> str:
        return os.fsdecode(self.paths[self.starts[index] : self.ends[index]])

    def take(self, indices: NDArray[np.int64]) -> FolderSource:
        """Return the part of this source at some indices, in that order."""
        return replace(
            self,
            starts=self.starts[indices],
            ends=self.ends[indices],
            labels=self.labels[indices],
            notes=(),
        )


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, hidden ones passed over.

    Raises: DataError if it cannot be listed.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"Cannot list {folder}: {error.strerror or error}") from None
    return sorted(folders), sorted(files)


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
) -> FolderSource:
    """Build a source of files given by name.

    Args:
      root: the folder to which the names are relative.
      names: of the files, with /.
      labels: int64 [N] or float32 [N, C].
      class_names: what the labels index.
      notes: what is remarkable.
    """
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
    return FolderSource(root, b"".join(encoded), starts, ends, labels, class_names, notes)


def read_folder(root: Path, option: str, stamps: list[Stamp] | None = None) -> FolderSource:
    """List a folder of class folders. Classes and files are ordered by name.

    Hidden entries (``.name``) are passed over. Other files are left out, counted in the notes.

    Args:
      root: the folder that holds the class folders.
      option: the option that named it, for messages.
      stamps: told every folder that is listed, as it was before.
    Raises: DataError if there are no class folders, or one without images.
    """
    stamps = [] if stamps is None else stamps
    own = _stamp(root, "")
    stamps.append(own)
    folders, strays = list_folder(root)
    class_names = tuple(folders)
    if not class_names:
        raise DataError(f"--{option} {root}: {_wrong_layout(root, strays)}")
    paths: list[bytes] = []
    starts, counts = [np.zeros(0, np.int64)], []
    left_out = list(strays)
    start = 0
    for name in class_names:
        found = [*_images(root, name, left_out, frozenset({own.inode}), stamps)]
        if not found:
            raise DataError(
                f"--{option} {root}: the class folder '{name}' holds no images. "
                "Fill it, or take it away."
            )
        encoded = sorted(os.fsencode(path) for path in found)
        ends = start + np.cumsum([len(path) for path in encoded], dtype=np.int64)
        starts.append(ends)
        start = int(ends[-1])
        counts.append(len(encoded))
        paths.append(b"".join(encoded))
    ends = np.concatenate(starts)
    notes: tuple[str, ...] = ()
    if left_out:
        what = "file was" if len(left_out) == 1 else "files were"
        notes = (
            f"{root}: {len(left_out)} {what} left out, not being images in a class folder "
            f"(the first: {left_out[0]}).",
        )
    return FolderSource(
        root=root,
        paths=b"".join(paths),
        starts=np.concatenate([np.zeros(1, np.int64), ends[:-1]]),
        ends=ends,
        labels=np.repeat(np.arange(len(class_names)), counts).astype(np.int64),
        class_names=class_names,
        notes=notes,
    )


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
        listing = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        return f"{expected}; found no folders, only {len(files)} files ({listing})."
    return f"{expected}; found an empty folder."
