"""Decoded pixels as members of a shard: binary PPM (RGB) or PGM (grey), 8 bits a value.

A header of some bytes, then the rows from the top, nothing compressed: so a window is read without
the rest, and whatever opens images opens these. They are called ``raw.ppm`` and ``raw.pgm``, which
sets them apart from PPM files that were packed as they are.

Source: Netpbm's ppm(5) and pgm(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import ImageError

BLOCK = 512
"""Bytes of a tar file's unit; a member's header is one, right before its content."""
RAW_SUFFIXES = ("raw.ppm", "raw.pgm")
LONGEST_HEADER = 32
_HEADER = re.compile(rb"P([56])\n([1-9][0-9]{0,8}) ([1-9][0-9]{0,8})\n255\n")


def encode_raw(pixels: NDArray[np.uint8]) -> tuple[str, bytes]:
    """Return pixels uint8 [H, W, 1 or 3] as a member's suffix and content."""
    height, width, channels = pixels.shape
    return RAW_SUFFIXES[channels == 1], _header(height, width, channels) + pixels.tobytes()


def view_raw(content: memoryview) -> NDArray[np.uint8]:
    """Return the pixels of a member, uint8 [H, W, 1 or 3]: a view of its content, not read yet.

    Raises: ImageError if its header is not as :func:`encode_raw` writes it, or tells of other
      pixels than there are.
    """
    found = _HEADER.match(bytes(content[:LONGEST_HEADER]))
    if found is None:
        raise ImageError("its pixels have no header of a PPM: the shard was not packed with --raw")
    width, height, channels = int(found[2]), int(found[3]), 3 if found[1] == b"6" else 1
    told, there = height * width * channels, len(content) - found.end()
    if told != there:
        raise ImageError(
            f"its header tells of {width}x{height} pixels, {told:,} bytes, but it has {there:,}"
        )
    return np.frombuffer(content, np.uint8, told, found.end()).reshape(height, width, channels)


def are_raw(names: Iterable[str]) -> bool:
    """Whether all members of such names hold decoded pixels."""
    return all(name.endswith(RAW_SUFFIXES) for name in names)


def bytes_in_shard(height: int, width: int, channels: int = 3) -> int:
    """Return the bytes that an image takes in a shard: its pixels, label and name, in blocks."""
    content = len(_header(height, width, channels)) + height * width * channels
    return (5 + -(-content // BLOCK)) * BLOCK  # three members' headers, and two short contents


def shorter_side_of(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with a shorter side of at most some pixels, and the same aspect."""
    if min(height, width) <= longest:
        return height, width
    if height <= width:
        return longest, round(width * longest / height)
    return round(height * longest / width), longest


def _header(height: int, width: int, channels: int) -> bytes:
    return b"P%d\n%d %d\n255\n" % (5 if channels == 1 else 6, width, height)
