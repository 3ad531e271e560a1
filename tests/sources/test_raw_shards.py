"""Decoded pixels read out of shards: mapped, remote, cut short, and made to do harm."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_images import photo
from made_shards import JPEG, write_tar

from vitbase.errors import DataError, ImageError
from vitbase.sources.shards.index import decode_index, encode_index
from vitbase.sources.shards.raw import bytes_in_shard, encode_raw, view_raw
from vitbase.sources.shards.readers import LocalReader
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source
from vitbase.stores import facts_of

pytestmark = pytest.mark.usefixtures("cache")


def write_raw(path: Path, images: list[np.ndarray]) -> Path:
    members = []
    for number, pixels in enumerate(images):
        suffix, content = encode_raw(pixels)
        members += [(f"{number:04}.{suffix}", content), (f"{number:04}.cls", b"%d" % (number % 2))]
    return write_tar(path, members)


def open_train(folder: Path) -> Source:
    return open_shards(str(folder), "train", "data_path")


PHOTOS = [photo(9, 13, seed, channels=3 - 2 * (seed == 2)) for seed in range(6)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_what_is_written_is_read(height, width, channels):
    pixels = photo(height, width, channels=channels)
    suffix, content = encode_raw(pixels)
    assert suffix == {1: "raw.pgm", 3: "raw.ppm"}[channels]
    found = view_raw(memoryview(content))
    np.testing.assert_array_equal(found, pixels)
    assert not found.flags.writeable
    assert not found.flags.owndata
    blocks = 5 + -(-len(content) // 512)
    assert bytes_in_shard(height, width, channels) == 512 * blocks


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
@example(b"")
@example(b"P6\n999999999 999999999\n255\n")
@example(b"P6\n4294967296 1\n255\n")
@example(b"P6\n0 0\n255\n")
@example(b"P6\n-1 -1\n255\n\0\0\0")
@example(b"P6\n1 1\n65535\n" + bytes(6))
@example(b"P6\n# 1 1\n1 1\n255\n" + bytes(3))
@example(b"P6\n1 1\n255\n" + bytes(4))
@example(b"P6\n01 1\n255\n" + bytes(3))
@example("P6\n² 1\n255\n".encode())
def test_members_that_are_no_pixels_are_refused(content):
    with pytest.raises(ImageError, match=r"have no header of a PPM|its header tells of"):
        view_raw(memoryview(content))


def test_a_member_called_raw_that_is_something_else(tmp_path):
    members = [("0.raw.ppm", JPEG), ("0.cls", b"0"), ("1.raw.pgm", b""), ("1.cls", b"1")]
    members += [("2.raw.ppm", b"P6\n9 9\n255\n" + bytes(242)), ("2.cls", b"1")]
    write_tar(tmp_path / "x.tar", members)
    source = open_train(tmp_path)
    for index, words in enumerate(("no header of a PPM", "no header", "9x9 pixels, 243 bytes")):
        with pytest.raises(ImageError, match=words):
            source.read(index)


def test_files_and_pixels_in_one_shard_are_files(tmp_path):
    suffix, content = encode_raw(PHOTOS[0])
    members = [("0.jpg", JPEG), ("0.cls", b"0"), (f"1.{suffix}", content), ("1.cls", b"1")]
    write_tar(tmp_path / "x.tar", members)
    source = open_train(tmp_path)
    assert [source.read(0), source.read(1)] == [JPEG, content]
    assert not source.decoded


def test_a_ppm_that_was_packed_as_a_file_stays_one(tmp_path):
    _, content = encode_raw(PHOTOS[0])
    write_tar(tmp_path / "x.tar", [("0.ppm", content), ("0.cls", b"0")])
    assert open_train(tmp_path).read(0) == content


def test_the_index_remembers_that_they_are_pixels(tmp_path):
    write_raw(tmp_path / "x.tar", PHOTOS)
    for _ in range(2):  # scanned, then from the index
        source = open_train(tmp_path)
        for index, pixels in enumerate(PHOTOS):
            np.testing.assert_array_equal(source.read(index), pixels)
        assert source.decoded
    index = tmp_path / "shards-all.index"
    (shard,) = decode_index(index.read_bytes())
    index.write_bytes(encode_index([replace(shard, raw=False)]))
    assert open_train(tmp_path).read(0) == encode_raw(PHOTOS[0])[1]


def test_a_cut_shard_is_an_error_never_a_signal(tmp_path):
    path = write_raw(tmp_path / "x.tar", PHOTOS)
    source = open_train(tmp_path)
    np.testing.assert_array_equal(source.read(5), PHOTOS[5])
    size = path.stat().st_size
    for left in (size - 1, size // 2, 700, 0):
        os.truncate(path, left)
        for index in range(6):
            with pytest.raises(ImageError, match="the shard has changed since it was indexed"):
                source.read(index)
    with pytest.raises(DataError, match="is cut short"):
        open_train(tmp_path)


def test_a_shard_written_over_gives_errors_not_other_images(tmp_path):
    path = write_raw(tmp_path / "x.tar", PHOTOS)
    source = open_train(tmp_path)
    source.read(0)
    content = bytearray(path.read_bytes())
    content[0:4] = b"1111"  # another name in the first header
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(ImageError, match="has changed since it was indexed"):
        source.read(0)
    np.testing.assert_array_equal(source.read(1), PHOTOS[1])


def test_places_outside_of_the_shard(tmp_path):
    path = write_raw(tmp_path / "x.tar", PHOTOS)
    size = path.stat().st_size
    reader = LocalReader([str(path)], [facts_of(path.stat())])
    for offset in (512, size, size + 512, 1 << 40):
        for length in (0, size, 1 << 31):
            with pytest.raises(ImageError):
                reader.pixels(0, offset, length, 0)
    empty = tmp_path / "empty.tar"
    empty.touch()
    with pytest.raises(ImageError, match="cannot be read"):
        LocalReader([str(empty)], [facts_of(empty.stat())]).pixels(0, 512, 10, 0)


def test_pixels_outlive_the_map_that_was_let_go(tmp_path):
    for number in range(4):
        write_raw(tmp_path / f"x-{number}.tar", PHOTOS[number : number + 1])
    source = open_train(tmp_path)
    reader = source.images.reader  # type: ignore[attr-defined]
    reader.limit = 2
    before = len(os.listdir("/proc/self/fd"))
    read = [source.read(index) for index in (0, 1, 2, 3, 0, 1)]
    assert sum(file is not None for file in reader._open) == 2
    for pixels, index in zip(read, (0, 1, 2, 3, 0, 1), strict=True):
        np.testing.assert_array_equal(pixels, PHOTOS[index])
    del read, pixels
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_pixels_behind_a_url(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    content = write_raw(tmp_path / "x.tar", PHOTOS).read_bytes()
    system.pipe("/raw_shards/train-0000.tar", content)
    source = open_shards("memory://raw_shards", "train", "data_path")
    for index, pixels in enumerate(PHOTOS):
        np.testing.assert_array_equal(source.read(index), pixels)
    assert source.decoded


def test_twins_have_the_same_digest_and_others_do_not(tmp_path):
    other = PHOTOS[0].copy()
    other[0, 0, 0] ^= 1  # where a probe does not look
    large = photo(60, 70)
    images = [PHOTOS[0], PHOTOS[0], other, PHOTOS[0].reshape(13, 9, 3), large, large]
    images[5] = large.copy()
    images[5][0, 0, 0] ^= 1
    write_raw(tmp_path / "x.tar", images)
    found = open_train(tmp_path).images
    whole = [found.digest(row) for row in range(6)]
    assert whole[0] == whole[1]
    assert len(set(whole)) == 5
    assert found.digest(4, probe=True) == found.digest(5, probe=True)
    assert found.digest(0, probe=True) != found.digest(4, probe=True)


def test_an_index_that_says_other_shards_are_pixels(tmp_path):
    write_tar(tmp_path / "x.tar", [("0.jpg", JPEG), ("0.cls", b"0")])
    open_train(tmp_path)
    index = tmp_path / "shards-all.index"
    (shard,) = decode_index(index.read_bytes())
    index.write_bytes(encode_index([replace(shard, raw=True)]))
    with pytest.raises(ImageError, match="no header of a PPM"):
        open_train(tmp_path).read(0)
    body = index.read_bytes()[40:]
    (length,) = struct.unpack("<Q", body[:8])
    assert b'"raw": true' in body[8 : 8 + length]
