"""Decoding a window gives the pixels of the whole, and notices the same damage."""

import random

import numpy as np
import pytest
import simplejpeg
from made_images import encode, photo

from vitbase.data import decode as decode_module
from vitbase.data.decode import cut, decode, decode_window
from vitbase.errors import ImageError

HEIGHT, WIDTH = 211, 157


def jpegs() -> dict[str, bytes]:
    pixels = photo(HEIGHT, WIDTH)
    found = {
        kind: simplejpeg.encode_jpeg(pixels, colorsubsampling=kind, quality=85)
        for kind in ("444", "422", "420", "440", "411")
    }
    grey = np.ascontiguousarray(pixels[..., :1])
    found["grey"] = simplejpeg.encode_jpeg(grey, colorspace="GRAY", colorsubsampling="Gray")
    for name, options in {
        "progressive": {"progressive": True},
        "optimized": {"optimize": True},
        "restart markers": {"restart_marker_rows": 2},
        "rgb": {"keep_rgb": True},
        "cmyk": {"mode": "CMYK"},
        "comment": {"comment": b"\xff\xda\xff\xc0 in a comment" * 40},
        "no huffman codes to spare": {"quality": 100, "subsampling": 0},
    }.items():
        found[name] = encode(pixels, **options)
    return found


JPEGS = jpegs()


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_has_the_pixels_of_the_whole(kind, channels):
    whole = decode(JPEGS[kind], channels)
    choose = random.Random(0)
    windows = [(0, 0, HEIGHT, WIDTH), (HEIGHT - 1, WIDTH - 1, 1, 1), (0, 0, 1, 1)]
    for _ in range(40):
        top, left = choose.randrange(HEIGHT), choose.randrange(WIDTH)
        size = choose.randint(1, HEIGHT - top), choose.randint(1, WIDTH - left)
        windows.append((top, left, *size))
    for window in windows:
        found = decode_window(JPEGS[kind], window, channels)
        assert np.array_equal(found, cut(whole, window)), window


def test_rows_below_the_window_are_not_decoded(monkeypatch):
    asked = []
    decoder = decode_module.simplejpeg.decode_jpeg

    def spy(data, *arguments, **options):
        asked.append(simplejpeg.decode_jpeg_header(data)[0])
        return decoder(data, *arguments, **options)

    monkeypatch.setattr(decode_module.simplejpeg, "decode_jpeg", spy)
    decode_window(JPEGS["420"], (10, 10, 22, 50))
    assert asked == [48]  # 32 rows in blocks of 16, and one row of blocks more


@pytest.mark.parametrize("kind", ["420", "grey", "restart markers", "444"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.97])
def test_a_truncated_file_is_refused_even_if_the_window_is_whole(kind, kept):
    data = JPEGS[kind]
    with pytest.raises(ImageError, match="truncated"):
        decode_window(data[: int(len(data) * kept)], (0, 0, 8, 8))


@pytest.mark.parametrize("kind", JPEGS)
def test_damage_is_met_as_in_the_whole_or_lies_below_the_window(kind):
    """Where both give pixels they are the same; else the window's rows are not the damaged ones."""
    choose = random.Random(1)
    window = (5, 5, 40, 60)
    clean = cut(decode(JPEGS[kind]), window)
    refused = 0
    for _ in range(60):
        data = bytearray(JPEGS[kind])
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(2, len(data))] = choose.randrange(256)
        try:
            whole = cut(decode(bytes(data)), window)
        except ImageError:
            whole = None
        except (IndexError, ValueError):
            pytest.fail("decode should raise ImageError only")
        try:
            found = decode_window(bytes(data), window)
        except ImageError:
            refused += 1
            assert whole is None
            continue
        if whole is None or whole.shape != found.shape or not np.array_equal(found, whole):
            assert np.array_equal(found, clean)
    assert refused < 60


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_shrunk_window_is_the_window_seen_from_afar(options, shrink):
    # Without colour: that of 4:2:0 is sharper when it is not interpolated first.
    data = encode(photo(HEIGHT, WIDTH, channels=1), mode="RGB", quality=95, **options)
    height, width = 16 * 8, 12 * 8
    window = (3 * 8, 2 * 8, height, width)
    exact = cut(decode(data), window).astype(float)
    found = decode_window(data, window, shrink=shrink)
    assert found.shape == (height // shrink, width // shrink, 3)
    blocks = exact.reshape(height // shrink, shrink, width // shrink, shrink, 3)
    assert np.abs(blocks.mean((1, 3)) - found).mean() < 3


def test_shrunk_windows_stay_inside_the_image():
    for top, left, height, width in [(210, 156, 1, 1), (0, 0, 211, 157), (205, 3, 6, 154)]:
        for shrink in (2, 4, 8):
            found = decode_window(JPEGS["420"], (top, left, height, width), shrink=shrink)
            assert found.shape[0] == max(1, round(height / shrink))
            assert found.shape[1] == max(1, round(width / shrink))


def test_other_formats_are_decoded_whole():
    data = encode(photo(HEIGHT, WIDTH), "PNG")
    window = (9, 11, 100, 50)
    assert np.array_equal(decode_window(data, window, shrink=2), cut(decode(data), window))


def test_the_memory_of_a_huge_image_is_not_kept(monkeypatch):
    monkeypatch.setattr(decode_module, "_scratch", decode_module._Scratch())
    monkeypatch.setattr(decode_module, "_MOST_KEPT", HEIGHT * WIDTH * 3 - 1)
    found = decode_window(JPEGS["420"], (0, 0, HEIGHT, WIDTH))
    assert np.array_equal(found, decode(JPEGS["420"]))
    assert decode_module._scratch.memory.size == 0
