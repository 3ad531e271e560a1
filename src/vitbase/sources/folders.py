"""Images in class folders: ``<root>/<class>/**/<image file>``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import LONGEST_IMAGE, list_folder, read_regular, tell_passed_over
from vitbase.errors import DataError, ImageError, first_few
from vitbase.pulse import is_alive
from vitbase.sources.source import UNKNOWN_SIZE, Images, Labels, Source

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif"}
)
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".gz", ".zip", ".7z", ".rar", ".parquet", ".arrow", ".bin")
"""What files end in that may hold a data set of their own: first of those left out to be named."""
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
            return read_regular(self.describe(row), LONGEST_IMAGE, middle)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from None


class Listing(NamedTuple):
    """What is in class folders, ordered by class and by name."""

    paths: bytes  # relative to the root, with /, one after the other
    lengths: NDArray[np.int64]  # of each path
    counts: NDArray[np.int64]  # files of each class
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    repeated: tuple[str, ...] = ()  # the folders in each class folder, where they are the same

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

    What a system left there, and hidden entries, are passed over; other files are left out. Both
    are counted in the notes.

    Args:
      root: the folder that holds the class folders.
      option: the option that named it, for messages.
    Raises: DataError if there are no class folders, or one without images.
    """
    return list_classes(root, option)[0].source(root)


def list_classes(root: Path, option: str) -> tuple[Listing, list[Stamp]]:
    """List a folder as :func:`read_folder` does. Returns: also every folder, as it was before."""
    walk = Walk(root)
    folders, files = walk.enter(_stamp(root, ""))
    if not folders:
        raise DataError(f"--{option} {root}: {_wrong_layout(root, files)}")
    walk.left_out = sorted(files, key=lambda name: not name.lower().endswith(ARCHIVE_SUFFIXES))
    paths: list[bytes] = []
    lengths: list[NDArray[np.int64]] = []
    for name in folders:
        found = [*walk.images(name)]
        if not found:
            others = [other for other in folders if other != name and holds_images(root / other)]
            only = f", or give --{option} {root / others[0]}" if len(others) == 1 else ""
            raise DataError(
                f"--{option} {root}: the class folder '{name}' holds no images. "
                f"Fill it, or take it away{only}."
            )
        encoded = sorted(os.fsencode(path) for path in found)
        lengths.append(np.array([len(path) for path in encoded], np.int64))
        is_alive()
        paths.append(b"".join(encoded))
    notes: tuple[str, ...] = ()
    if walk.left_out:
        what = "file was" if len(walk.left_out) == 1 else "files were"
        notes = (
            f"{root}: {len(walk.left_out)} {what} left out, not being images in a class folder "
            f"({first_few(walk.left_out, count=False)}).",
        )
    notes += tell_passed_over(root, walk.passed_over)
    counts = np.array([len(part) for part in lengths], np.int64)
    listing = Listing(
        *(b"".join(paths), np.concatenate(lengths), counts, tuple(folders), notes),
        repeated=_repeated(folders, walk.holding),
    )
    return listing, walk.stamps


def _repeated(classes: Sequence[str], holding: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders in each class folder, if they are the same and hold all the images."""
    inside: dict[str, set[str]] = {name: set() for name in classes}
    for name, *deeper in holding:
        inside[name].add(deeper[0] if deeper else "")
    first, *others = inside.values()
    same = len(first) > 1 and "" not in first and all(other == first for other in others)
    return tuple(sorted(first)) if same else ()


def refuse_repeated_folders(listing: Listing, root: Path, option: str) -> None:
    """Raise a DataError if each class folder holds the same folders, which may be the classes."""
    if not listing.repeated:
        return
    classes, told = listing.class_names, first_few(listing.repeated)
    what = f"the folders {first_few(classes)} hold the same folders each ({told})"
    if len(classes) == 1:
        what = f"it holds a single folder, '{classes[0]}', and that the folders {told}"
    raise DataError(
        f"--{option} {root}: {what}. If these are the classes, give --{option} "
        f"{root / classes[0]}; if {first_few(classes)} should be, give --layout classes."
    )


class Walk:
    """Lists what is below a folder, every folder once; remembers what is no image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: list[str] = []  # files, relative to the root, as all names here
        self.passed_over: list[str] = []
        self.stamps: list[Stamp] = []  # of every folder, as it was just before
        self.not_entered: list[str] = []  # folders
        self.holding: set[tuple[str, ...]] = set()  # images: the first two parts of folders' names

    def enter(self, stamp: Stamp) -> tuple[list[str], list[str]]:
        """Return the folders and files in a folder."""
        self.stamps.append(stamp)
        folders, files, passed_over = list_folder(self.root / stamp.folder)
        self.passed_over += (os.path.join(stamp.folder, name) for name in passed_over)
        return folders, files

    def images(
        self, folder: str, above: frozenset[int] | None = None, *, recursive: bool = True
    ) -> Iterator[str]:
        """Yield the images below a folder, or directly in it; "" is the root."""
        stamp = _stamp(self.root, folder)
        if above is None:
            above = frozenset(root.inode for root in self.stamps[:1])
        if stamp.inode and stamp.inode in above and _leads_up(self.root / folder):
            return  # a link to a folder above: everything in it is listed already
        folders, files = self.enter(stamp)
        prefix = folder and f"{folder}/"
        any_image = False
        for name in files:
            if is_image_name(name):
                any_image = True
                yield prefix + name
            else:
                self.left_out.append(prefix + name)
        if any_image:
            self.holding.add(tuple(folder.split("/")[:2]))
        if not recursive:
            self.not_entered += folders
            return
        for name in folders:
            yield from self.images(prefix + name, above | {stamp.inode})


def holds_images(folder: Path) -> bool:
    """Whether there is an image below a folder."""
    return any(True for _ in Walk(folder.parent).images(folder.name))


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
