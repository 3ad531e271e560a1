"""Tar shards as other programs write them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from made_images import encode, photo

JPEG = encode(photo(8, 9))


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents_of(folder: Path) -> dict[str, bytes]:
    """Read the files of a packed folder, but the index, which holds the times of the shards."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".index"}


def samples(count: int, prefix: str = "", classes: int = 3) -> list[tuple[str, bytes]]:
    """Members jpg and cls; image i is different from all others."""
    found = []
    for number in range(count):
        found.append((f"{prefix}{number:04}.jpg", JPEG + str(number).encode()))
        found.append((f"{prefix}{number:04}.cls", str(number % classes).encode()))
    return found
