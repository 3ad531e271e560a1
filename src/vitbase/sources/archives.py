"""Data sets that are a few files of already decoded pixels: IDX (MNIST's format) and CIFAR.

CIFAR comes as plain records ("binary version") and as pickles ("python version").
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import LONGEST_FILE, list_folder, read_regular
from vitbase.errors import DataError
from vitbase.sources.pickles import read_pickle
from vitbase.sources.source import Images, Source, counted_names, parse_names, refuse_repeated
from vitbase.sources.splits import SPLIT_WORDS, Split, find_split

IDX_IMAGES = re.compile(
    rf"(?P<head>.*?(?P<split>{'|'.join(sorted(SPLIT_WORDS))})-)images[-.]idx3-ubyte(\.gz)?"
)
_IDX_USUAL: dict[Split, str] = {"train": "train", "val": "t10k"}
Archive = Literal["idx", "cifar10", "cifar100", "cifar10 pickles", "cifar100 pickles"]
# Bytes that come out of a packed file: twice those of the largest that is published, and no more
# than 256 MiB beyond a hundred times its own, which images are far from.
_LONGEST_UNPACKED, _MOST_INFLATION, _FREE_INFLATION = 1 << 30, 100, 1 << 28
_LONGEST_NAMES = 1 << 24  # bytes of a list of class names
CIFAR_SIDE = 32
_CIFAR_BYTES = 3 * CIFAR_SIDE * CIFAR_SIDE
_PART = re.compile(r".*-ubyte(\.gz)?|(data_batch_\d+|test_batch|train|test|meta)(\.bin)?")
_PIECE = 1 << 20
_CIFAR_BATCH = re.compile(r"data_batch_\d+\..*")


@dataclass(frozen=True)
class Pixels(Images):
    """Images of one size, decoded and in memory."""

    pixels: NDArray[np.uint8]  # [M, H, W, C]
    files: tuple[tuple[str, int], ...]  # (name, number of images), in the order of the pixels

    def read(self, row: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.pixels[row]
        return image

    def name(self, row: int) -> str:
        for name, count in self.files:
            if row < count:
                return f"{name}[{row}]"
            row -= count
        raise IndexError(row)

    def describe(self, row: int) -> str:
        return self.name(row)


def find_archive(names: Iterable[str]) -> Archive | None:
    """Tell by the names of its files which archive a folder holds, if any."""
    names = set(names)
    if any(IDX_IMAGES.fullmatch(name) for name in names):
        return "idx"
    if "test_batch.bin" in names or any(_CIFAR_BATCH.fullmatch(name) for name in names):
        return "cifar10"
    if {"train.bin", "test.bin"} & names:
        return "cifar100"
    if "test_batch" in names or "data_batch_1" in names:
        return "cifar10 pickles"
    return "cifar100 pickles" if "meta" in names and {"train", "test"} & names else None


def is_whole_archive(names: Iterable[str]) -> bool:
    """Tell whether several files of an archive are there, rather than one that has strayed."""
    return sum(_PART.fullmatch(name) is not None for name in names) > 1


def has_split(folder: Path, split: Split) -> bool:
    """Tell whether the archive that a folder holds has files of a split."""
    names = list_folder(folder).files
    kind = find_archive(names)
    if kind == "idx":
        matches = filter(None, map(IDX_IMAGES.fullmatch, names))
        return find_split(split, (match["split"] for match in matches)) is not None
    assert kind is not None
    return not set(_cifar_files(split, kind)).isdisjoint(names)


def read_archive(folder: Path, split: Split, option: str) -> Source:
    """Read one split of the archive that a folder holds.

    Args:
      folder: a folder in whose files :func:`find_archive` finds one.
      split: "train", or "val" for the test files.
      option: the option that named the folder, for messages.
    Raises: DataError naming the file that is missing, cut short, or contradicts another.
    """
    names = list_folder(folder).files
    kind = find_archive(names)
    assert kind is not None
    if kind == "idx":
        return _read_idx(folder, names, split, option)
    return _read_cifar(folder, split, option, kind)


def _read_idx(folder: Path, names: Sequence[str], split: Split, option: str) -> Source:
    images_path, labels_path = _find_idx_pair(folder, names, split, option)
    pixels = _read_idx_array(images_path, dimensions=3)[..., None]
    labels = _read_idx_array(labels_path, dimensions=1).astype(np.int64)
    if len(pixels) != len(labels):
        raise DataError(
            f"{images_path} holds {len(pixels)} images but {labels_path.name} {len(labels)} labels."
        )
    names_path = folder / "labels.txt"
    class_names = _checked(_listed_names(names_path), names_path, labels, labels_path)
    return _source(pixels, labels, ((images_path.name, len(labels)),), class_names)


def _find_idx_pair(
    folder: Path, names: Sequence[str], split: Split, option: str
) -> tuple[Path, Path]:
    matches = [*filter(None, map(IDX_IMAGES.fullmatch, names))]
    word = find_split(split, (match["split"] for match in matches))
    if word is None:
        wanted = f"{_IDX_USUAL[split]}-images-idx3-ubyte[.gz]"
        raise DataError(f"--{option} {folder}: there is no file {wanted}.")
    found = {  # the uncompressed one wins
        match["head"]: folder / match[0]
        for match in sorted(matches, key=lambda match: match[0], reverse=True)
        if match["split"] == word
    }
    if len(found) > 1:
        listing = ", ".join(sorted(path.name for path in found.values()))
        raise DataError(
            f"--{option} {folder}: several data sets ({listing}); keep one in a folder."
        )
    ((head, images_path),) = found.items()
    for spelling in ("labels-idx1-ubyte", "labels.idx1-ubyte"):
        for suffix in ("", ".gz"):
            labels_path = folder / f"{head}{spelling}{suffix}"
            if labels_path.is_file():
                return images_path, labels_path
    raise DataError(f"{images_path}: its labels, {head}labels-idx1-ubyte[.gz], are missing.")


def _read_idx_array(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    content = _read_maybe_gzipped(path)
    magic = 0x800 + dimensions  # unsigned bytes, and the number of dimensions
    header = 4 + 4 * dimensions
    found = int.from_bytes(content[:4], "big")
    if found != magic or len(content) < header:
        raise DataError(
            f"{path} is not an IDX file of {dimensions} dimensions of bytes: it starts with "
            f"{found:#010x}, not {magic:#010x}."
        )
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(np.int64)
    expected = header + math.prod(shape.tolist())  # which numpy would let overflow
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content):,} bytes, but its header promises {expected:,}: "
            "it is cut short or damaged. Fetch it again."
        )
    if shape.min() == 0:
        raise DataError(f"{path} is empty: its header says {' x '.join(map(str, shape))}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_maybe_gzipped(path: Path) -> bytes:
    try:
        content = read_regular(path, LONGEST_FILE)
        if content[:2] != b"\x1f\x8b":
            return content
        most = min(_LONGEST_UNPACKED, _FREE_INFLATION + _MOST_INFLATION * len(content))
        parts, length = [], 0
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while part := file.read(_PIECE):  # a larger one would be allocated beforehand
                parts.append(part)
                length += len(part)
                if length > most:
                    raise OSError(f"it unpacks to more than {most:,} bytes")
        return b"".join(parts)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}") from None


def _cifar_files(split: Split, kind: Archive) -> list[str]:
    """Return the names of the files that a split of CIFAR has."""
    if kind.startswith("cifar100"):
        files = ["train" if split == "train" else "test"]
    elif split == "train":
        files = [f"data_batch_{number}" for number in range(1, 6)]
    else:
        files = ["test_batch"]
    return [name if kind.endswith("pickles") else f"{name}.bin" for name in files]


def _read_cifar(folder: Path, split: Split, option: str, kind: Archive) -> Source:
    files, fine = _cifar_files(split, kind), kind.startswith("cifar100")
    pickled = kind.endswith("pickles")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"--{option} {folder}: there is no file {', '.join(missing)}.")
    read_batch = _read_pickled_batch if pickled else _read_binary_batch
    batches = [read_batch(folder / name, fine=fine) for name in files]
    planes = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    labels = np.concatenate([numbers for _, numbers in batches])
    if pickled:
        names_path = folder / ("meta" if fine else "batches.meta")
        names = _pickled_names(names_path, fine=fine)
    else:
        names_path = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
        names = _listed_names(names_path)
    return _source(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels,
        tuple((name, len(numbers)) for name, (_, numbers) in zip(files, batches, strict=True)),
        _checked(names, names_path, labels, folder / files[0]),
    )


_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels [N, 3072], and labels."""


def _read_pickled_batch(path: Path, *, fine: bool) -> _Batch:
    batch = _read_dict(path)
    rows = batch.get("data")
    numbers = batch.get("fine_labels" if fine else "labels")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2:
        raise DataError(f"{path} has no 'data' of bytes, as CIFAR's files have.")
    if rows.shape[1] != _CIFAR_BYTES or not len(rows):
        raise DataError(
            f"{path} has images of {rows.shape[1]} bytes, {len(rows)} of them; "
            f"expected {_CIFAR_BYTES} bytes each."
        )
    if not isinstance(numbers, list) or not all(
        isinstance(number, int) and 0 <= number < (100 if fine else 10) for number in numbers
    ):
        raise DataError(f"{path} has no list of labels from 0 to {99 if fine else 9}.")
    if len(numbers) != len(rows):
        raise DataError(
            f"{path} has {len(rows)} images but {len(numbers)} labels: "
            "it is damaged. Fetch it again."
        )
    return rows, np.array(numbers, np.int64)


def _read_binary_batch(path: Path, *, fine: bool) -> _Batch:
    label_bytes = 2 if fine else 1  # CIFAR-100 has a coarse label before the fine one
    record = label_bytes + _CIFAR_BYTES
    content = _read_maybe_gzipped(path)
    if not content or len(content) % record:
        raise DataError(
            f"{path} has {len(content):,} bytes, not a multiple of {record}: "
            "it is cut short, or not CIFAR's binary version."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_dict(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary; Python 2's keys are bytes."""
    found = read_pickle(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is a pickle, but not of a dictionary, as CIFAR's files are.")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else key: value
        for key, value in found.items()
        if isinstance(key, bytes | str)
    }


def _pickled_names(path: Path, *, fine: bool) -> tuple[str, ...] | None:
    """Read pickled class names; None if there is no such file."""
    if not path.is_file():
        return None
    found = _read_dict(path).get("fine_label_names" if fine else "label_names")
    if not isinstance(found, list) or not all(isinstance(name, str | bytes) for name in found):
        raise DataError(f"{path} has no list of class names.")
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found]
    refuse_repeated(names, path)
    return tuple(names)


def _listed_names(path: Path) -> tuple[str, ...] | None:
    """Read class names, one a line; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return parse_names(read_regular(path, _LONGEST_NAMES).decode("utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the class names {path}: {error}") from None


def _checked(
    names: tuple[str, ...] | None, names_path: Path, labels: NDArray[np.int64], labels_path: Path
) -> tuple[str, ...] | None:
    if names is not None and int(labels.max()) >= len(names):
        wrong = int(np.argmax(labels >= len(names)))
        raise DataError(
            f"{labels_path}: label {labels[wrong]} of image {wrong} is out of range: "
            f"{names_path.name} names {len(names)} classes."
        )
    return names


def _source(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    files: tuple[tuple[str, int], ...],
    names: tuple[str, ...] | None,
) -> Source:
    return Source(
        images=Pixels(pixels, files),
        rows=np.arange(len(labels)),
        labels=labels,
        class_names=counted_names(int(labels.max()) + 1) if names is None else names,
        named=names is not None,
        decoded=True,
    )
