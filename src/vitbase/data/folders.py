"""Images in class folders: ``<root>/<class>/**/<image file>``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError, ImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm"}
)
LAYOUT = "one folder per class, with its images inside: {root}/<class>/<image>.jpg (or png, webp…)"


@dataclass(frozen=True)
class FolderSource:
    """Image files, one folder per class. The listing is arrays: 50 bytes a file, not objects."""

    root: Path
    paths: bytes  # relative to root, with /, one after the other
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
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


def read_folder(root: Path, option: str) -> FolderSource:
    """List a folder of class folders. Classes and files are ordered by name.

    Hidden entries (``.name``) are passed over. Other files are left out, counted in the notes.

    Args:
      root: the folder that holds the class folders.
      option: the option that named it, for messages.
    Raises: DataError if there are no class folders, or one without images.
    """
    folders, strays = list_folder(root)
    class_names = tuple(folders)
    if not class_names:
        raise DataError(f"--{option} {root}: {_wrong_layout(root, strays)}")
    paths: list[bytes] = []
    starts, counts = [np.zeros(0, np.int64)], []
    left_out = list(strays)
    start = 0
    for name in class_names:
        found = [*_images(root / name, f"{name}/", left_out, frozenset())]
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
    folder: Path, prefix: str, left_out: list[str], above: frozenset[tuple[int, int]]
) -> Iterator[str]:
    """Yield the images below a folder as relative paths; append other files to ``left_out``."""
    folders, files = list_folder(folder)
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link to a folder above: everything in it is listed already
        return
    for name in files:
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            yield prefix + name
        else:
            left_out.append(prefix + name)
    for name in folders:
        yield from _images(folder / name, f"{prefix}{name}/", left_out, above | {identity})


def _wrong_layout(root: Path, files: Sequence[str]) -> str:
    expected = "expected " + LAYOUT.format(root=str(root).rstrip("/\\"))
    images = sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in files)
    if images:
        return f"{expected}; found {images} images directly in it, and no folders."
    if files:
        listing = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        return f"{expected}; found no folders, only {len(files)} files ({listing})."
    return f"{expected}; found an empty folder."
