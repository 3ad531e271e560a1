"""What one image has that a person would want to know of."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from PIL import Image

from vitbase.data.decode import decode
from vitbase.data.formats import read_image
from vitbase.errors import ImageError
from vitbase.sources.source import Source

_EXIF_ORIENTATION = 0x0112
_PNG_DEPTH = 24  # where a PNG says its bits a channel: Pillow does not tell them of colours
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "AVIF": {".avif", ".avifs"},
    "JPEG2000": {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"},
    "HEIF": {".heic", ".heif", ".hif"},
    "ICO": {".ico"},
}
_KNOWN_SUFFIXES = frozenset().union(*_SUFFIXES.values())
_SMALLEST_SIDE, _LARGEST_SIDE, _LARGEST_ASPECT = 16, 12_000, 20


class ImageFacts(NamedTuple):
    """What was seen of an image."""

    digest: int  # of its bytes; 0 if they make no image
    size: int  # in bytes
    format: str  # "" for decoded pixels, or if it is none
    height: int
    width: int
    faults: tuple[tuple[str, str], ...]  # (kind, detail); the kinds are those of the report


def look_at(source: Source, index: int) -> ImageFacts:
    """Read and decode one image of a source."""
    try:
        raw = source.read(index)
    except ImageError as error:
        return ImageFacts(0, 0, "", 0, 0, (("unreadable", str(error)),))
    content = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
    digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "little") or 1
    if not isinstance(raw, bytes):
        return ImageFacts(digest, len(content), "", raw.shape[0], raw.shape[1], ())
    path = source.describe(index)
    if path.endswith(")"):  # a shard's member, and where it came from
        path = path.split(" (", 1)[0]
    faults: list[tuple[str, str]] = []
    kind = _read_header(raw, os.path.splitext(path)[1].lower(), faults)
    height = width = 0
    try:
        height, width = decode(raw).shape[:2]
    except ImageError as error:
        text = str(error)
        faults.append(("truncated" if "truncated" in text.lower() else "unreadable", text))
        digest = 0
    return ImageFacts(digest, len(raw), kind, height, width, tuple(faults))


def _read_header(data: bytes, suffix: str, faults: list[tuple[str, str]]) -> str:
    """Add what an image's header tells to its faults; return its format, or nothing."""
    try:
        kind, (width, height), mode, frames, turned = read_image(data, _facts_of)
    except ImageError:  # decoding says what is wrong
        return ""
    if mode == "CMYK":
        faults.append(("CMYK", ""))
    if kind == "PNG" and data[_PNG_DEPTH] == 16:
        faults.append(("16-bit", ""))
    elif mode.startswith("I") or mode == "F":
        faults.append(("16-bit", f"pixels of mode {mode}"))
    if frames > 1 and kind != "MPO":
        faults.append(("animated", f"{frames} frames"))
    if turned not in (0, 1):
        faults.append(("EXIF-rotated", f"orientation {turned}"))
    if kind in _SUFFIXES and suffix in _KNOWN_SUFFIXES - _SUFFIXES[kind]:
        faults.append(("wrong suffix", f"a {kind}"))
    smaller, larger = sorted((height, width))
    if (
        smaller < _SMALLEST_SIDE
        or larger > _LARGEST_SIDE
        or larger > _LARGEST_ASPECT * max(smaller, 1)
    ):
        faults.append(("absurd size", f"{width}x{height} pixels"))
    return kind


def _facts_of(image: Image.Image) -> tuple[str, tuple[int, int], str, int, int]:
    """Return an image's format, (width, height), mode, frames and orientation."""
    turned = image.getexif().get(_EXIF_ORIENTATION, 1)
    return image.format or "", image.size, image.mode, getattr(image, "n_frames", 1), turned
