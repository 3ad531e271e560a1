"""What becomes of an image when it is packed: the same bytes, a smaller JPEG, or its pixels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import simplejpeg

from vitbase.data.decode import Pixels, decode, decode_window, read_size
from vitbase.data.formats import encode_png, suffix_of
from vitbase.data.resize import resize
from vitbase.sources.shards.raw import encode_raw, shorter_side_of

Change = Literal["copied", "resized", "encoded", "decoded"]
_LONGEST_JPEG = 65_500
"""Pixels that a side of a JPEG can have (libjpeg's JPEG_MAX_DIMENSION)."""


class Prepared(NamedTuple):
    """An image as it goes into a shard."""

    suffix: str
    data: bytes
    change: Change


def prepare_image(raw: bytes | Pixels, short_side: int | None, quality: int | None) -> Prepared:
    """Make an image ready for a shard.

    Args:
      raw: a file's bytes, or pixels uint8 [H, W, C].
      short_side: longest that the shorter side may stay, or None.
      quality: of the JPEG that a resized image becomes.
    Raises: ImageError if it cannot be decoded.
    """
    if not isinstance(raw, bytes):
        if short_side is None or min(raw.shape[:2]) <= short_side:
            return Prepared("png", encode_png(raw), "encoded")
        return _resized(_smaller(raw, raw.shape[:2], short_side), quality)
    size = read_size(raw)
    if short_side is None or min(size) <= short_side:
        decode(raw)
        return Prepared(suffix_of(raw), raw, "copied")
    return _resized(_smaller(raw, size, short_side), quality)


def prepare_pixels(raw: bytes | Pixels, short_side: int) -> Prepared:
    """Decode an image for a shard of pixels; one that is grey has a single channel there.

    Args: as of :func:`prepare_image`.
    Raises: ImageError if it cannot be decoded.
    """
    size = read_size(raw) if isinstance(raw, bytes) else raw.shape[:2]
    change: Change = "decoded"
    if min(size) > short_side:
        pixels, change = _smaller(raw, size, short_side), "resized"
    else:
        pixels = decode(raw) if isinstance(raw, bytes) else raw
    return Prepared(*encode_raw(pixels[..., :1] if _is_grey(pixels) else pixels), change)


def _smaller(raw: bytes | Pixels, size: tuple[int, ...], short_side: int) -> Pixels:
    """Return an image's pixels with a shorter side of that length and the same aspect."""
    height, width = size
    if not isinstance(raw, bytes):
        return resize(raw, *shorter_side_of(height, width, short_side), "bicubic")
    # A JPEG decodes faster to a half, a quarter or an eighth. At least twice the wanted size is
    # left to the filter, so that what it makes is nearly that of the whole image.
    fits = min(height, width) // (2 * short_side)
    shrink = max((s for s in (1, 2, 4, 8) if s <= fits), default=1)
    pixels = decode_window(raw, (0, 0, height, width), shrink=shrink)
    return resize(pixels, *shorter_side_of(height, width, short_side), "bicubic")


def _resized(pixels: Pixels, quality: int | None) -> Prepared:
    if max(pixels.shape[:2]) > _LONGEST_JPEG:
        return Prepared("png", encode_png(pixels), "resized")
    return Prepared("jpg", _encode_jpeg(pixels, quality), "resized")


def _encode_jpeg(pixels: Pixels, quality: int | None) -> bytes:
    """Encode with chroma at half resolution, as most photographs are; grey without chroma.

    Measured on images of 341 x 256 pixels made from 1000 x 750: 4:2:0 at quality 95 is as true as
    4:4:4 at 90 (34.7 against 34.1 dB), 9% larger, and decodes a tenth faster.
    """
    assert quality is not None
    if _is_grey(pixels):
        plane = np.ascontiguousarray(pixels[..., :1])
        return bytes(simplejpeg.encode_jpeg(plane, quality, "GRAY", "Gray"))
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return bytes(data)


def _is_grey(pixels: Pixels) -> bool:
    return pixels.shape[2] == 1 or (
        np.array_equal(pixels[..., 0], pixels[..., 1])
        and np.array_equal(pixels[..., 0], pixels[..., 2])
    )
