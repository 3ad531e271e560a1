import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from made_images import encode, photo
from PIL import Image

from vitbase.data import formats
from vitbase.data.decode import decode, read_size, to_channels
from vitbase.errors import ImageError


def by_pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize("subsampling", [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
@pytest.mark.parametrize("quality", [30, 75, 96])
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (1, 1), (8, 200)])
def test_jpeg_equals_pillow(size, quality, subsampling):
    data = encode(photo(*size, seed=quality), quality=quality, subsampling=subsampling)
    assert read_size(data) == size
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"optimize": True}])
def test_kinds_of_jpeg(options):
    data = encode(photo(50, 61), **options)
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings(subsampling):
    data = simplejpeg.encode_jpeg(photo(50, 61), colorsubsampling=subsampling)
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "L"),
        ("GIF", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "CMYK"),
        ("PPM", "RGB"),
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_other_kinds_equal_pillow(kind, mode, channels):
    data = encode(photo(33, 47), kind, mode)
    expected = by_pillow(data) if channels == 3 else to_channels(by_pillow(data), 1)
    pixels = decode(data, channels)
    assert pixels.dtype == np.uint8
    assert read_size(data) == (33, 47)
    assert np.array_equal(pixels, expected)


def test_webp():
    data = encode(photo(33, 47), "WEBP", lossless=True)
    assert np.array_equal(decode(data), photo(33, 47))


def test_luma_equals_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert np.array_equal(
        to_channels(pixels, 1)[..., 0], np.asarray(Image.fromarray(pixels).convert("L"))
    )


def test_transparency_of_a_palette_is_dropped_without_a_warning():
    image = Image.fromarray(photo(20, 20)).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(decode(buffer.getvalue()), np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_scaled_not_clipped():
    wide = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    expected = np.round(wide / 257).astype(np.uint8)
    assert np.array_equal(decode(buffer.getvalue(), 1)[..., 0], expected)
    assert np.array_equal(decode(buffer.getvalue(), 3)[..., 2], expected)


def test_float_pixels_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(ImageError, match="no defined range"):
        decode(buffer.getvalue())


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(photo(20, 20, seed)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(buffer.getvalue()), by_pillow(buffer.getvalue()))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(30, 50), exif=exif)
    assert decode(data).shape == (30, 50, 3)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {})],
)
def test_truncated_images_are_errors(kind, options, kept):
    data = encode(photo(120, 160), kind, **options)
    with pytest.raises(ImageError):
        decode(data[: int(kept * len(data))])


@pytest.mark.parametrize("missing", [1, 2, 3, 20])
def test_a_jpeg_that_lacks_its_last_bytes_is_truncated(missing):
    data = encode(photo(60, 60))
    with pytest.raises(ImageError, match="truncated"):
        decode(data[:-missing])


def test_stray_bytes_in_a_jpeg_are_pillows_to_judge():
    data = encode(photo(60, 60))
    stray = data[:-2] + b"stray bytes" + data[-2:]
    assert np.array_equal(decode(stray), by_pillow(stray))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no image at all", "not a readable image: it is text"),
        (b"\xff\xd8\xff garbage", "the JPEG cannot be decoded: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "a PostScript file"),
        (b"\x02\x93" * 40, "begins with 02 93 02 93 02 93 02 93, as none of JPEG, PNG"),
    ],
)
def test_what_is_no_image_is_an_error(data, message):
    for read in (decode, read_size):
        with pytest.raises(ImageError, match=message):
            read(data)


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        length, crc = struct.pack(">I", len(content)), zlib.crc32(kind + content)
        return length + kind + content + struct.pack(">I", crc)

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 40_000])
def test_bombs_are_refused_before_decoding(side):
    for read in (decode, read_size):
        with pytest.raises(ImageError, match="pixels"):
            read(huge_png(side, side))


def test_a_jpeg_bomb_is_refused_before_decoding(monkeypatch):
    data = encode(photo(40, 50))
    monkeypatch.setattr(formats, "MAX_PIXELS", 1999)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("was decoded"))
    for read in (decode, read_size):
        with pytest.raises(ImageError, match="50x40 pixels are more than the 1,999"):
            read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"])
def test_damage_is_an_image_error_or_nothing(kind):
    data = encode(photo(24, 30), kind)
    rng = np.random.default_rng(0)
    for reach in (30, 200, len(data)) * 20:
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(3):
            damaged[rng.integers(min(reach, len(damaged)))] = rng.integers(256)
        for read in (decode, read_size):
            with contextlib.suppress(ImageError):
                read(bytes(damaged))
