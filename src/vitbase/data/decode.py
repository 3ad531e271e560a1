"""From the bytes of an image file to uint8 pixels [H, W, C].

Plain JPEGs go through libjpeg-turbo, everything else through Pillow; both give the pixels that
Pillow's ``convert("RGB")`` gives, which timm and torchvision train on. As there, transparency is
dropped (not composited), the first frame of an animation counts, and the EXIF orientation is not
applied. 16-bit greys are scaled to 8 bits (Pillow alone would clip them).
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 (they register themselves)

from vitbase.errors import ImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Images beyond this are refused before decoding (a quarter of a GiB at 3 bytes, as in Pillow)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may open. No format that runs another program (EPS starts Ghostscript)."""

Image.preinit()  # not safe to be done by several threads at once


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
            _refuse_bomb(height, width)
            return height, width
    with _open(data) as image:
        return image.height, image.width


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
        pixels = _decode_other(data)
    return to_channels(pixels, channels)


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return [H, W, channels]: grey is repeated into RGB, RGB becomes luma as in Pillow."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    # ITU-R 601-2 in 16-bit fixed point, rounded: the same integers as Pillow's convert("L").
    weighted = pixels @ np.array([19595, 38470, 7471], np.uint32)
    grey: Pixels = ((weighted + 0x8000) >> 16).astype(np.uint8)
    return grey[..., None]


def _decode_jpeg(data: bytes, channels: int) -> Pixels | None:
    """Decode a plain JPEG; None for one that is left to Pillow. Grey ones come as asked for."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        _refuse_bomb(height, width)
        # Luma of a colour JPEG is computed from RGB, as Pillow does, not taken from its Y.
        kind = "GRAY" if colorspace == "Gray" and channels == 1 else "RGB"
        pixels: Pixels = simplejpeg.decode_jpeg(data, kind)
    except ValueError as error:
        if "Premature end" in str(error):
            raise ImageError("the JPEG is truncated: its data ends too early") from None
        return None  # a warning of libjpeg's, such as stray bytes: Pillow decides
    return pixels


def _decode_other(data: bytes) -> Pixels:
    with _open(data) as image:
        try:
            return _pixels_of(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise many kinds
            raise ImageError(f"the {image.format} cannot be decoded: {error}") from None


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


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(str(error)) from None
    except Exception:  # Pillow's plugins raise many kinds
        known = ", ".join(FORMATS)
        cause = "the file is empty" if not data else f"it is none of {known}, or damaged"
        raise ImageError(f"not a readable image: {cause}") from None
    _refuse_bomb(image.height, image.width)
    return image


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} pixels are more than the {MAX_PIXELS:,} that are safe to decode"
        )
