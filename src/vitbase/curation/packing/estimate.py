"""How many bytes decoded pixels will take, told before they are written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitbase.data.decode import read_size
from vitbase.errors import ImageError
from vitbase.sources.shards.raw import bytes_in_shard, shorter_side_of
from vitbase.sources.source import Source

_LOOKED_AT = 1000


def tell_bytes(source: Source, split: str, short_side: int, folder: Path) -> Iterator[str]:
    """Say what packing a source's pixels will take, and whether the disk has room for it.

    The sizes stand in the images' headers. Of more than a thousand images, as many are looked at,
    spread evenly. Grey images turn out a third as large; that does not stand in every header.

    Args:
      source: the images.
      split: what it is called.
      short_side: longest that a shorter side stays.
      folder: into which they are packed; it need not be there yet.
    """
    count = len(source)
    looked_at = np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64).tolist()
    sizes = [found for index in looked_at if (found := _size(source, index)) is not None]
    if not sizes:
        return
    each = [bytes_in_shard(*shorter_side_of(h, w, short_side), channels=c) for h, w, c in sizes]
    total = sum(each) * count // len(each)
    about = "" if len(each) == count else f"about, by {len(each):,} of them, "
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield (
        f"{split}: {count:,} images as pixels will take {about}{total:,} bytes "
        f"({total / 2**20:,.1f} MiB); {free / 2**30:.1f} GiB are free there"
        + (": too few, unless some are there already" if free < total else "")
    )


def _size(source: Source, index: int) -> tuple[int, int, int] | None:
    """Return an image's height, width and channels; None if it cannot be read."""
    try:
        raw = source.read(index)
        if not isinstance(raw, bytes):
            return raw.shape[0], raw.shape[1], raw.shape[2]
        return *read_size(raw), 3
    except ImageError:
        return None
