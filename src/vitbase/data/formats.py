"""Which formats open, through Pillow, within which bounds; and in whose words others do not."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (  # the plug-ins register themselves
    Image,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
    features,
)

from vitbase.data.signatures import name_content, name_text
from vitbase.errors import ImageError

T = TypeVar("T")

MAX_PIXELS = 178_956_970
"""Images beyond this are refused before decoding (half a GiB at 3 bytes, as in Pillow)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may open. No format that runs another program (EPS starts Ghostscript)."""

RARE_FORMATS = ("AVIF", "JPEG2000", "HEIF", "ICO")
"""What Pillow may open where it can, once the file has turned out to be none of the others."""

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}
_PNG = b"\x89PNG\r\n\x1a\n"
_REMARKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of a TIFF
_MOST_WORDS = 300

Image.preinit()  # not safe to be done by several threads at once


def read_image(data: bytes, read: Callable[[Image.Image], T]) -> T:
    """Open an image file with Pillow, and read something of it.

    Args:
      data: the file's bytes.
      read: gets the image, not yet decoded.
    Returns: what ``read`` does.
    Raises: ImageError in the decoder's own words, or saying what the file is instead.
    """
    try:
        with _open(data) as image:
            return read(image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(str(error)) from None
    except Exception as error:  # Pillow's plug-ins raise many kinds
        # Pillow refuses to unpack a profile or text of more than a megabyte. The pixels do not
        # depend on it, and so it is not unpacked at all.
        if isinstance(error, ValueError) and data.startswith(_PNG):
            plain = _without_remarks(data)
            if len(plain) < len(data):
                return read_image(plain, read)
        raise ImageError(_cause(data, error)) from None


def suffix_of(data: bytes) -> str:
    """Return what the name of an image file ends in, by its content. Raises: ImageError."""
    if data[:2] == b"\xff\xd8":
        return "jpg"
    kind = read_image(data, lambda image: image.format) or "img"
    return _SUFFIXES.get(kind, kind.lower())


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels [H, W, C] as the bytes of a PNG."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def refuse_bomb(height: int, width: int) -> None:
    """Raise an ImageError for an image too large to decode."""
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} pixels are more than the {MAX_PIXELS:,} that are safe to decode"
        )


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        content = name_content(data)
        if content is None or not content.plugin or not _can_open(content.plugin):
            raise
        image = Image.open(io.BytesIO(data), formats=(content.plugin,))
    except MemoryError:
        raise ImageError("its header asks for more memory than there is") from None
    refuse_bomb(image.height, image.width)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its tiles may be larger than itself
        refuse_bomb(image.tag_v2.get(_TILE_HEIGHT, 0), image.tag_v2.get(_TILE_WIDTH, 0))
    return image


@cache
def _can_open(plugin: str) -> bool:
    """Register a plug-in of a rare format; tell whether it is there."""
    if plugin == "HEIF":
        try:
            # Loaders decode in threads of their own, so none are needed for an image.
            importlib.import_module("pillow_heif").register_heif_opener(decode_threads=1)
        except ImportError:
            return False
        return True
    name = {"AVIF": "Avif", "JPEG2000": "Jpeg2K", "ICO": "Ico"}[plugin]
    try:
        module = importlib.import_module(f"PIL.{name}ImagePlugin")
    except ImportError:  # Pillow before 11.3 knows no AVIF
        return False
    if plugin == "AVIF":
        module.DEFAULT_MAX_THREADS = 1  # type: ignore[attr-defined]
        return bool(features.check_module("avif"))
    return plugin == "ICO" or bool(features.check_codec("jpg_2000"))


def _without_remarks(data: bytes) -> bytes:
    """Return a PNG without its colour profile and texts.

    Source: PNG (ISO/IEC 15948), section 5.3: length, type, content and checksum of every chunk.
    """
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in _REMARKS:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _cause(data: bytes, error: Exception) -> str:
    """Say why a file could not be decoded."""
    known = next((kind for kind in FORMATS if _accepts(kind, data)), None)
    content = name_content(data)
    if content is not None and content.plugin and _can_open(content.plugin):
        known = content.plugin
    is_jpeg = data[:2] == b"\xff\xd8"
    words = ""
    if not isinstance(error, UnidentifiedImageError):
        words = _words(error)
    elif known is not None and (content is None or content.plugin == known):
        words = _words_of(known, data)
    elif not is_jpeg:
        content = content or name_text(data)
        if content is not None:
            return f"not a readable image: it is {content.what}; {content.advice}"
        formats = ", ".join((*FORMATS, *RARE_FORMATS))
        return (
            f"not a readable image: it begins with {data[:8].hex(' ')}, as none of {formats} does; "
            "save it as one of these"
        )
    if is_jpeg:
        words = "; ".join(filter(None, (words, _words_of_turbo(data))))
    return f"the {known or ('JPEG' if is_jpeg else 'image')} cannot be decoded: {words}"


def _accepts(kind: str, data: bytes) -> bool:
    """Tell whether a plug-in of Pillow takes a file for its own."""
    if kind == "PPM" and not data[2:3].isspace():  # it takes any word of the kind "Python"
        return False
    accept = Image.OPEN[kind][1]
    return accept is not None and accept(data[:16]) is True


def _words_of(kind: str, data: bytes) -> str:
    """Return what a plug-in says of a file that it cannot open; Image.open keeps it to itself."""
    try:
        Image.OPEN[kind][0](io.BytesIO(data), "").close()
    except Exception as error:
        return _words(error)
    return "its header is damaged"


def _words_of_turbo(data: bytes) -> str:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        refuse_bomb(height, width)
        simplejpeg.decode_jpeg(data)
    except (ValueError, ImageError) as error:
        return f"libjpeg-turbo says: {_words(error)}"
    return ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:_MOST_WORDS] or type(error).__name__
