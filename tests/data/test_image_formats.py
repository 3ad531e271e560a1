"""What opens, within which bounds, and in whose words the rest is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from made_images import encode, photo
from PIL import Image, PngImagePlugin, features

from vitbase.data import formats
from vitbase.data.decode import decode, decode_window, read_size, to_channels
from vitbase.data.signatures import name_content
from vitbase.errors import ImageError


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_chunks(png: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """Insert chunks behind a PNG's header, or before its end."""
    place = len(png) - 12 if late else 33
    return png[:place] + b"".join(chunks) + png[place:]


LARGE = {
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
    "zTXt": chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * (3 << 20))),
    "iTXt": chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"a" * (3 << 20))),
    "tEXt": b"".join(chunk(b"tEXt", b"k%d\0" % n + b"a" * (9 << 20)) for n in range(8)),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("late", [False, True])
def test_a_png_with_a_large_profile_or_text_has_its_pixels(kind, late):
    plain = encode(photo(30, 40), "PNG", "P")
    data = with_chunks(plain, LARGE[kind], late=late)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(data)).load()
    assert np.array_equal(decode(data), decode(plain))
    assert np.array_equal(decode_window(data, (3, 4, 9, 9)), decode(plain)[3:12, 4:13])
    assert read_size(data) == (30, 40)


def test_a_bomb_of_text_stays_small_and_no_limit_of_pillows_is_moved():
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    bomb = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 26)))
    data = with_chunks(encode(photo(30, 40), "PNG"), bomb)
    tracemalloc.start()
    try:
        decode(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_damage_beside_a_large_text_is_still_met():
    data = with_chunks(encode(photo(30, 40), "PNG"), LARGE["zTXt"])
    with pytest.raises(ImageError, match="the PNG cannot be decoded"):
        decode(data[:-400])
    with pytest.raises(ImageError, match="checksum in b'zTXt'"):
        decode(data[:50] + b"x" + data[51:])


def heic(pixels: np.ndarray) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=90)
    return buffer.getvalue()


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
needs_jpeg_2000 = pytest.mark.skipif(not features.check("jpg_2000"), reason="no JPEG 2000")


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        pytest.param("AVIF", "RGB", {}, marks=needs_avif),
        pytest.param("AVIF", "RGBA", {}, marks=needs_avif),
        pytest.param("AVIF", "L", {}, marks=needs_avif),
        pytest.param("JPEG2000", "RGB", {}, marks=needs_jpeg_2000),
        pytest.param("JPEG2000", "L", {}, marks=needs_jpeg_2000),
        pytest.param("JPEG2000", "RGBA", {"no_jp2": True}, marks=needs_jpeg_2000),
        ("ICO", "RGBA", {}),
    ],
)
def test_rare_formats_equal_pillow(kind, mode, options):
    side = (64, 64) if kind == "ICO" else (33, 47)
    data = encode(photo(*side), kind, mode, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert read_size(data) == expected.shape[:2]
    assert np.array_equal(decode(data), expected)
    assert decode(data, 1).shape == (*expected.shape[:2], 1)


@needs_jpeg_2000
def test_sixteen_bits_of_jpeg_2000_are_scaled():
    wide = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "JPEG2000")
    assert np.array_equal(decode(buffer.getvalue(), 1)[..., 0], np.round(wide / 257))


def test_heic_opens_with_its_extra():
    data = heic(photo(64, 48))
    pixels = decode(data)
    assert pixels.shape == (64, 48, 3)
    opened = pytest.importorskip("pillow_heif").open_heif(io.BytesIO(data)).to_pillow()
    assert np.array_equal(pixels, np.asarray(opened.convert("RGB")))
    with pytest.raises(ImageError, match="the HEIF cannot be decoded: "):
        decode(data[:-300])


def test_without_its_library_a_format_is_named_with_what_opens_it(monkeypatch):
    monkeypatch.setattr(formats, "_can_open", lambda plugin: False)
    for brand, message in (
        (b"heic", r"it is a HEIC \(HEIF\) image; pip install 'vitbase\[heif\]' opens it"),
        (b"avif", r"it is an AVIF image; Pillow 11.3 or newer opens it"),
    ):
        with pytest.raises(ImageError, match=message):
            decode(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(80))
    with pytest.raises(ImageError, match="it is a JPEG 2000 image; a Pillow built with OpenJPEG"):
        decode(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(80))


def ftyp(brand: bytes, *others: bytes) -> bytes:
    return struct.pack(">I4s4sI", 16 + 4 * len(others), b"ftyp", brand, 0) + b"".join(others)


NO_IMAGES = {
    "HTML page": b"\n<!DOCTYPE html><html><body>404 <svg/></body></html>",
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n" + bytes(90),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "gzip": gzip.compress(b"an image"),
    "zip": b"PK\x03\x04" + bytes(90),
    "tar archive": bytes(257) + b"ustar\x0000" + bytes(200),
    "Photoshop": b"8BPS\0\1" + bytes(90),
    "JPEG XL": b"\xff\x0a" + bytes(90),
    "raw photograph (DNG)": b"II*\0\x08\0\0\0\1\0\x12\xc6\1\0\4\0\0\0\1\4\0\0" + bytes(90),
    "raw photograph (Canon CR2)": b"II*\0\x10\0\0\0CR\x02\0" + bytes(90),
    "raw photograph (Canon CR3)": ftyp(b"crx ", b"isom") + bytes(90),
    "video (MP4": ftyp(b"isom", b"mp41") + bytes(90),
    "video (AVI)": b"RIFF\0\0\0\0AVI LIST" + bytes(90),
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(90),
    "text ('Not found')": b"Not found\n",
    "text ('Python and Perl')": b"Python and Perl",
    "text ('Datei nicht gefunden, höchste": "Datei nicht gefunden, höchste ü".encode() * 99,
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "git-annex": b"/annex/objects/SHA256E-s1--00.jpg\n",
    "AppleDouble": b"\0\5\x16\7\0\2\0\0" + bytes(90),
    "zeros": bytes(5000),
    "empty": b"",
}


@pytest.mark.parametrize("what", NO_IMAGES)
def test_what_is_no_image_is_named_for_what_it_is(what):
    for read in (decode, read_size):
        with pytest.raises(ImageError) as caught:
            read(NO_IMAGES[what])
        message = str(caught.value)
        assert message.startswith("not a readable image: it is ")
        assert what in message
        assert "; " in message  # what to do


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode(photo(30, 40), "PNG").replace(b"IHDR", b"IHDS"), "broken PNG file"),
        (encode(photo(30, 40), "PNG")[:40], "the PNG cannot be decoded: "),
        (encode(photo(60, 60))[:100], "the JPEG cannot be decoded: Truncated File Read"),
        (b"\xff\xd8\xff\xe0garbage", "libjpeg-turbo says: "),
        (b"GIF89a", "the GIF cannot be decoded: "),
        (b"BM" + bytes(60), "the BMP cannot be decoded: Unsupported BMP header"),
        (b"II*\0" + b"\xff" * 60, "the TIFF cannot be decoded: "),
        (b"P6 12 \xff", "the PPM cannot be decoded: "),
        (b"RIFF\xff\0\0\0WEBPVP8 " + b"\1" * 60, "the WEBP cannot be decoded: "),
        (b"\0\0\1\0\1\0" + b"\1" * 30, "the ICO cannot be decoded: "),
        pytest.param(
            encode(photo(30, 40), "JPEG2000")[:100],
            "the JPEG2000 cannot be decoded: ",
            marks=needs_jpeg_2000,
        ),
        pytest.param(
            encode(photo(30, 40), "AVIF")[:300],
            "the AVIF cannot be decoded: ",
            marks=needs_avif,
        ),
    ],
)
def test_a_damaged_image_is_refused_in_its_decoders_words(data, words):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert words in str(caught.value)
    assert "object at 0x" not in str(caught.value)
    assert not str(caught.value).endswith(": ")


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "ICO", "HEIF"])
def test_damage_to_rare_formats_is_an_image_error_or_nothing(kind):
    pixels = photo(64, 64)
    data = heic(pixels) if kind == "HEIF" else encode(pixels, kind)
    rng = np.random.default_rng(0)
    for reach in (60, 400, len(data)) * 8:
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(3):
            damaged[rng.integers(min(reach, len(damaged)))] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (decode, read_size):
                with contextlib.suppress(ImageError):
                    read(bytes(damaged))


def test_any_bytes_have_a_name_or_none():
    rng = np.random.default_rng(0)
    for length in (*range(40), 500, 2000):
        for start in (b"", b"\0\0\0\x18ftyp", b"II*\0", b"\xef\xbb\xbf", b"RIFF", b"PK"):
            data = start + rng.bytes(length)
            name_content(data)
            with pytest.raises(ImageError, match=r"; |: "):
                decode(data)


def tiff_of_one_tile(side: int) -> bytes:
    """A TIFF of 16 x 16 pixels in a tile of ``side`` x ``side``."""
    pixels = zlib.compressobj(1)
    body = b"".join(pixels.compress(bytes(side)) for _ in range(side)) + pixels.flush()
    fields = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    fields |= {324: 8, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    header = struct.pack("<I", 8 + len(body))
    return b"II*\0" + header + body + struct.pack("<H", len(fields)) + entries + bytes(4)


def test_a_tile_larger_than_what_is_safe_is_refused_before_decoding(monkeypatch):
    data = tiff_of_one_tile(1024)
    assert decode(data).shape == (16, 16, 3)
    monkeypatch.setattr(formats, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match="1024x1024 pixels are more than"):
        decode(data)


def test_luma_in_parts_is_that_of_the_whole(monkeypatch):
    pixels = photo(50, 70)
    expected = to_channels(pixels, 1)
    monkeypatch.setattr("vitbase.data.decode._LUMA_AT_ONCE", 99)
    assert np.array_equal(to_channels(pixels, 1), expected)
    turned = pixels.swapaxes(0, 1)
    assert np.array_equal(to_channels(turned, 1), expected.swapaxes(0, 1))
