"""From the bytes of an image file to uint8 pixels [H, W, C], or to a window of them.

Plain JPEGs go through libjpeg-turbo, everything else through Pillow (see formats.py); both give the
pixels that Pillow's ``convert("RGB")`` gives, which timm and torchvision train on. As there,
transparency is dropped (not composited), the first frame of an animation counts, and the EXIF
orientation is not applied. 16-bit greys are scaled to 8 bits (Pillow alone would clip them).
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from vitbase.data.formats import read_image, refuse_bomb
from vitbase.errors import ImageError

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""

_MOST_KEPT = 1 << 26
"""Bytes of a thread's memory that may stay with it: 22 million pixels."""
_LUMA_AT_ONCE = 1 << 20


def read_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) from an image's header, without decoding it.

    Raises: ImageError if there is no such header, or the image is too large to decode.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow reads some that libjpeg-turbo refuses
        else:
            refuse_bomb(height, width)
            return height, width
    return read_image(data, lambda image: (image.height, image.width))


def is_plain_colour(data: bytes) -> bool:
    """Whether an image is a JPEG in colour, as most are, that ends where it should.

    Raises: ImageError if it is too large to decode.
    """
    if not (data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9")):
        return False
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    refuse_bomb(height, width)
    return bool(colorspace == "YCbCr")


def decode(data: bytes, channels: int = 3) -> Pixels:
    """Decode an image file.

    Args:
      data: the file's bytes.
      channels: 3 for RGB, 1 for grey.
    Returns: uint8 [H, W, channels].
    Raises: ImageError naming the cause; a truncated image is never returned half grey.
    """
    pixels = _decode_jpeg(data, channels) if data[:2] == b"\xff\xd8" else None
    if pixels is None:
        pixels = read_image(data, _pixels_of)
    return to_channels(pixels, channels)


def decode_window(data: bytes, window: Window, channels: int = 3, shrink: int = 1) -> Pixels:
    """Decode a window of an image file, and of the rest as little as the format allows.

    The rows of a baseline JPEG below the window are not decoded. With ``shrink`` 2, 4 or 8 a JPEG
    is decoded to that fraction of its size, by leaving out its high frequencies, which is several
    times faster; other formats come whole.

    Args:
      data: the file's bytes.
      window: within the image.
      channels: 3 for RGB, 1 for grey.
      shrink: how much smaller the result may be.
    Returns: uint8 [height, width, channels], the same pixels as those of :func:`decode`; smaller by
      ``shrink`` where that was done. It is a view of memory that the thread's next call uses
      again: copy what is to be kept.
    Raises: ImageError naming the cause, also if it lies outside the window.
    """
    if data[:2] == b"\xff\xd8":
        found = _decode_jpeg(data, channels, window[0] + window[2], shrink)
        if found is not None:
            return cut(to_channels(found, channels), _shrunk(window, shrink, found.shape))
    return cut(decode(data, channels), window)


def cut(pixels: Pixels, window: Window) -> Pixels:
    """Return a view of a window."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


def _shrunk(window: Window, shrink: int, shape: tuple[int, ...]) -> Window:
    """Return a window of an image in that of its decoded fraction."""
    if shrink == 1:
        return window
    height, width = (max(1, round(size / shrink)) for size in window[2:])
    top = min(round(window[0] / shrink), shape[0] - height)
    left = min(round(window[1] / shrink), shape[1] - width)
    return max(0, top), max(0, left), height, width


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return [H, W, channels]: grey is repeated into RGB, RGB becomes luma as in Pillow."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    # ITU-R 601-2 in 16-bit fixed point, rounded: the same integers as Pillow's convert("L"). In
    # parts, as they take 4 bytes for each of an image's values.
    grey: Pixels = np.empty((*pixels.shape[:2], 1), np.uint8)
    axis = int(pixels.shape[1] > pixels.shape[0])
    parts = -(-grey.size // _LUMA_AT_ONCE)
    for part, to in zip(
        np.array_split(pixels, parts, axis), np.array_split(grey, parts, axis), strict=True
    ):
        weighted = part @ np.array([19595, 38470, 7471], np.uint32)
        to[..., 0] = (weighted + 0x8000) >> 16
    return grey


class _Frame(NamedTuple):
    """What a baseline JPEG's frame header says, and where."""

    place: int  # of the two bytes of its height
    height: int
    unit: int  # rows of a row of coded blocks


class _Scratch(threading.local):
    """A thread's memory to decode into: fresh memory for each image would cost a tenth more.

    That of the rare huge image is not kept.
    """

    memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def at_least(self, size: int) -> NDArray[np.uint8]:
        if size > _MOST_KEPT:
            return np.empty(size, np.uint8)
        if self.memory.size < size:
            self.memory = np.empty(size, np.uint8)
        return self.memory


_scratch = _Scratch()
_SHRINKS = (1, 2, 4, 8)


def _decode_jpeg(
    data: bytes, channels: int, bottom: int | None = None, shrink: int = 1
) -> Pixels | None:
    """Decode a plain JPEG, down to the row ``bottom`` at least; None leaves it to Pillow.

    Grey ones come as asked for. With ``bottom``, the result is in the thread's scratch memory.
    """
    assert shrink in _SHRINKS
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        refuse_bomb(height, width)
        # Luma of a colour JPEG is computed from RGB, as Pillow does, not taken from its Y.
        kind = "GRAY" if colorspace == "Gray" and channels == 1 else "RGB"
        if bottom is None:
            pixels: Pixels = simplejpeg.decode_jpeg(data, kind)
            return pixels
        depth = 1 if kind == "GRAY" else 3
        memory = _scratch.at_least(height * width * depth)
        frame = _find_frame(data)
        if frame is not None and frame.height == height:
            # One row of blocks more than needed: chroma is interpolated from neighbouring rows.
            rows = (-(-bottom // frame.unit) + 1) * frame.unit
            if rows < height:
                return _decode_rows(data, frame.place, rows, width, kind, shrink, memory)
        sizes = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        result: Pixels = simplejpeg.decode_jpeg(
            data, kind, min_factor=shrink, buffer=memory, **(sizes if shrink > 1 else {})
        )
    except ValueError as error:
        if "Premature end" in str(error):
            raise ImageError("the JPEG is truncated: its data ends too early") from None
        return None  # a warning of libjpeg's, such as stray bytes: Pillow decides
    return result


def _decode_rows(
    data: bytes, place: int, rows: int, width: int, kind: str, shrink: int, memory: Pixels
) -> Pixels:
    """Decode the first rows of a baseline JPEG, by telling the decoder that there are no more.

    It then complains of the bytes that are left over, having decoded; of other complaints it
    reports the first, so that no damage before the end of the file goes unnoticed.
    """
    short = b"".join((data[:place], rows.to_bytes(2, "big"), data[place + 2 :]))
    height, sizes = -(-rows // shrink), {}
    if shrink > 1:
        sizes = {"min_height": height, "min_width": -(-width // shrink)}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            short, kind, min_factor=shrink, buffer=memory, **sizes
        )
    except ValueError as error:
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise
        shape = (height, -(-width // shrink), 1 if kind == "GRAY" else 3)
        pixels = memory[: shape[0] * shape[1] * shape[2]].reshape(shape)
    return pixels


def _find_frame(data: bytes) -> _Frame | None:
    """Find the frame header of a baseline JPEG in one scan, or return None.

    Source: ITU-T T.81, B.2.2 and B.2.3.
    """
    at, frame, components = 2, None, 0
    # A header that says less than it should is damaged: there are always 32 bytes of data behind.
    while data[at : at + 1] == b"\xff" and at + 32 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xC0, 0xC1) and frame is None:
            components = data[at + 9]
            sampling = data[at + 11 : at + 11 + 3 * components : 3]  # of each component
            unit = 8 * max((factors & 15 for factors in sampling), default=0)
            if not unit:
                return None
            frame = _Frame(at + 5, int.from_bytes(data[at + 5 : at + 7], "big"), unit)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # progressive, arithmetic, or a second frame: its rows are not in order
        elif marker == 0xDD and data[at + 4 : at + 6] != b"\0\0":
            return None  # restart markers among the bytes left over would hide what follows them
        elif marker == 0xDA:
            return frame if data[at + 4] == components else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _pixels_of(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no defined range; save it as 8-bit")
        wide = values.astype(np.uint32)
        scaled: Pixels = ((wide + 128) // 257).astype(np.uint8)
        return scaled[..., None]
    if image.mode == "L":
        return np.asarray(image)[..., None]
    image.info.pop("transparency", None)  # it would be dropped with a warning
    return np.asarray(image.convert("RGB"))
