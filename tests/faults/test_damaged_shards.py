"""Shards and indexes that are cut, damaged, changed, lie, or cannot be written; packing killed."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_images import encode, photo, write_folder
from made_shards import contents_of

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.curation.packing import files as pack_files
from vitbase.curation.packing.split import pack_source, verify_shards
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.errors import DataError, ImageError
from vitbase.sources.folders import read_folder
from vitbase.sources.shards import source as shards
from vitbase.sources.shards.index import Shard, decode_index, encode_index, pack
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source

JPEG = encode(photo(20, 24))


pytestmark = pytest.mark.usefixtures("cache")


def write_shard(path: Path, count: int = 4, prefix: str = "", tail: bytes = b"") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(count):
            long = "ü" * 120 if number == 1 else ""  # an extended header
            for suffix, content in (("jpg", JPEG + tail), ("cls", str(number % 2).encode())):
                info = tarfile.TarInfo(f"{prefix}{number}{long}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def open_train(folder: Path) -> Source:
    return open_shards(str(folder), "train", "data_path")


def end_of_samples(content: bytes) -> int:
    """Return where the zeros begin that end a tar file."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def test_a_cut_shard_is_refused_wherever_it_is_cut(tmp_path):
    path = write_shard(tmp_path / "data" / "x.tar")
    content = path.read_bytes()
    end = end_of_samples(content)
    places = {*range(0, end + 512, 197), *range(0, end + 512, 512), end - 1, end + 511}
    for place in sorted(places):
        path.write_bytes(content[:place])
        with pytest.raises(DataError) as caught:
            open_train(path.parent)
        assert f"{path} is cut short: it ends at byte {place:,}" in str(caught.value)
    for place in (end + 512, end + 700, end + 1024):  # the mark is there, so nothing is missing
        path.write_bytes(content[:place])
        assert len(open_train(path.parent)) == 4


def test_a_shard_cut_after_it_was_indexed(tmp_path):
    path = write_shard(tmp_path / "data" / "x.tar")
    open_train(path.parent)
    os.truncate(path, 2000)
    with pytest.raises(DataError, match="is cut short: it ends at byte 2,000"):
        open_train(path.parent)


def test_damaged_headers_are_named_never_taken_for_the_end(tmp_path):
    path = write_shard(tmp_path / "data" / "x.tar")
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    rng = np.random.default_rng(0)
    for header in headers:
        for place in {*rng.integers(0, 257, 5).tolist()} - {154, 155}:  # behind the checksum
            damaged = bytearray(content)
            damaged[header + place] ^= 1 + int(rng.integers(255))
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"there is no tar header at byte {header:,}"):
                open_train(path.parent)
        zeroed = content[:header] + bytes(512) + content[header + 512 :]
        path.write_bytes(zeroed)
        with pytest.raises(DataError, match=r"data behind the zeros"):
            open_train(path.parent)


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"no tar file at all"])
def test_what_is_no_tar_file(tmp_path, start):
    path = write_shard(tmp_path / "data" / "x.tar")
    path.write_bytes(start + os.urandom(5000))
    words = "Fetch it again" if start[:2] == b"no" else "compressed"
    with pytest.raises(DataError, match=words):
        open_train(path.parent)


@pytest.mark.parametrize("content", [b"", b"7 path", b"99 path=x\n", b"9 path=x\n", b"x" * 30])
def test_extended_headers_that_lie(tmp_path, content):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("extended")
        info.type, info.size = tarfile.XHDTYPE, len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"an extended header at byte 512|no image in them"):
        open_train(tmp_path)


def test_a_damaged_index_is_made_again(tmp_path):
    write_shard(tmp_path / "data" / "x.tar")
    open_train(tmp_path / "data")
    index = tmp_path / "data" / "shards-all.index"
    whole = index.read_bytes()
    damages = [whole[:place] for place in range(0, len(whole), 23)]
    for place in range(0, len(whole), 29):
        damages.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    for damage in damages:
        index.write_bytes(damage)
        source = open_train(tmp_path / "data")
        assert "shards-all.index is damaged" in source.notes[0]
        assert source.read(3) == JPEG
        assert index.read_bytes() == whole


def lying(shard: Shard, **fields: object) -> bytes:
    return encode_index([replace(shard, **fields)])


def test_an_index_that_lies_gives_errors_not_images(tmp_path):
    write_shard(tmp_path / "data" / "x.tar")
    open_train(tmp_path / "data")
    index = tmp_path / "data" / "shards-all.index"
    (shard,) = decode_index(index.read_bytes())
    index.write_bytes(lying(shard, offsets=np.array([513] * 4)))
    source = open_train(tmp_path / "data")
    for place in range(4):
        with pytest.raises(ImageError):
            source.read(place)
    index.write_bytes(lying(shard, names=pack([["a", "b"]] * 3)))
    source = open_train(tmp_path / "data")
    assert source.name(2) == "b"
    with pytest.raises(DataError, match=r"index of the shard .*x\.tar is damaged: the names in it"):
        source.name(3)
    for lie in (
        {"offsets": np.array([512, -1, 2**62, 99])},
        {"offsets": np.array([512, 512, 512, 2**63 - 1])},
        {"sizes": np.full(4, 2**32 - 1)},  # would be allocated
        {"texts": b"no zlib"},
        {"texts": pack([1])},
        {"texts": pack([1] * 5)},
        {"texts": pack([None] * 4)},
        {"texts": pack([10**30] * 4)},
        {"left_out": ("x",)},
        {"left_out": ("x", "y")},
    ):
        index.write_bytes(lying(shard, **lie))
        source = open_train(tmp_path / "data")
        assert "is damaged" in source.notes[0]
        assert source.labels.tolist() == [0, 1, 0, 1]


def test_a_shard_written_over_in_training_gives_errors_not_other_images(tmp_path):
    path = write_shard(tmp_path / "x.tar", 8)
    source = open_train(tmp_path)
    assert source.read(5) == JPEG
    other = write_shard(tmp_path / "other" / "y.tar", 8, prefix="other")
    path.write_bytes(other.read_bytes())  # the same file, other content
    for index in range(8):
        with pytest.raises(ImageError, match="the shard has changed since it was indexed"):
            source.read(index)
    os.truncate(path, 4000)
    for index in range(8):
        with pytest.raises(ImageError):
            source.read(index)


def test_a_shard_replaced_before_it_was_opened(tmp_path):
    path = write_shard(tmp_path / "x.tar")
    source = open_train(tmp_path)
    os.replace(write_shard(tmp_path / "other" / "y.tar", tail=b"\0"), path)
    with pytest.raises(ImageError, match="has changed since it was indexed"):
        source.read(0)


def test_a_shard_replaced_while_open_is_still_the_old_one(tmp_path):
    path = write_shard(tmp_path / "x.tar")
    source = open_train(tmp_path)
    source.read(0)
    os.replace(write_shard(tmp_path / "other" / "y.tar", 2, "z"), path)
    assert source.read(3) == JPEG


def test_training_counts_and_names_images_of_a_changed_shard(tmp_path):
    write_shard(tmp_path / "a.tar", 8)
    path = write_shard(tmp_path / "b.tar", 8)
    source = open_train(tmp_path)
    path.write_bytes(path.read_bytes()[:1500] + bytes(20_000))
    transform = TrainTransform(default_preprocess(16, 16, 3), AugmentSection())
    loader = TrainLoader(source, transform, seed=0, batch_size=16, max_bad_images=8)
    (batch,) = loader.epoch(0)
    assert len(batch.bad) == 8
    assert all(bad.place.startswith(f"{path}: ") for bad in batch.bad)
    loader.max_bad_images = 0
    with pytest.raises(DataError, match=rf"{path}: .*--on_bad_image skip"):
        list(loader.epoch(0))


def test_an_index_that_cannot_be_written_beside_goes_to_the_cache(tmp_path, monkeypatch, cache):
    write_shard(tmp_path / "data" / "x.tar")
    write = shards.write_whole

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == tmp_path / "data":
            raise OSError(errno.EROFS, "Read-only file system")
        write(path, content)

    monkeypatch.setattr(shards, "write_whole", refuse)
    (note,) = open_train(tmp_path / "data").notes
    assert f"the index of its shards is kept in {cache}/shards/" in note
    assert open_train(tmp_path / "data").notes == ()
    assert os.listdir(tmp_path / "data") == ["x.tar"]


def test_an_index_that_cannot_be_kept_at_all(tmp_path, monkeypatch):
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(shards, "write_whole", refuse)
    write_shard(tmp_path / "x.tar")
    source = open_train(tmp_path)
    assert source.read(0) == JPEG
    (note,) = source.notes
    assert "cannot be kept" in note
    assert "Set VITBASE_CACHE" in note


# Packing


PACK = """
import sys
from pathlib import Path
from vitbase.sources.folders import read_folder
from vitbase.curation.packing.split import pack_source
source = read_folder(Path(sys.argv[1]), "data_path")
print("started", flush=True)
pack_source(source, sys.argv[2], "train", shard_images=3, short_side=48, num_workers=2)
"""


def test_killed_at_any_time_packing_goes_on_to_the_same_bytes(tmp_path):
    write_folder(tmp_path / "photos", {"a": 30, "b": 31}, size=(160, 200))
    source = read_folder(tmp_path / "photos", "data_path")
    pack_source(source, tmp_path / "whole", "train", shard_images=3, short_side=48)
    out = tmp_path / "out"
    for enough in (1, 5, 12):
        words = [sys.executable, "-c", PACK, str(tmp_path / "photos"), str(out)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while process.poll() is None and len(list(out.glob("*.tar"))) < enough:
                time.sleep(0.0005)
            process.kill()
        for path in out.glob("*.tar"):  # whatever has its name is whole
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    report = pack_source(source, out, "train", shard_images=3, short_side=48)
    assert report.kept_shards > 0
    assert contents_of(out) == contents_of(tmp_path / "whole")


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", {"a": 10, "b": 10})
    source = read_folder(tmp_path / "photos", "data_path")
    pack_source(source, tmp_path / "whole", "train", shard_images=4)
    left = [40]
    write = pack_files.ShardWriter._write

    def fill(self, *parts: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *parts)

    with monkeypatch.context() as patched:
        patched.setattr(pack_files.ShardWriter, "_write", fill)
        with pytest.raises(DataError, match=r"the disk is full.*finished shards are kept"):
            pack_source(source, tmp_path / "out", "train", shard_images=4)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "train-000002.tar" in names
    assert "train-000003.tar.partial" in names
    with pytest.raises(DataError, match="was not finished"):
        open_train(tmp_path / "out")
    assert verify_shards(tmp_path / "out") == 3
    report = pack_source(source, tmp_path / "out", "train", shard_images=4)
    assert report.kept_shards == 3
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_a_packed_shard_of_another_size_is_refused(tmp_path):
    write_folder(tmp_path / "photos", {"a": 4, "b": 4})
    source = read_folder(tmp_path / "photos", "data_path")
    pack_source(source, tmp_path / "out", "train", shard_images=4)
    with (tmp_path / "out" / "train-000001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"train-000001.tar has .* bytes, manifest.json says"):
        open_train(tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    write_folder(tmp_path / "photos", {"a": 2, "b": 2})
    source = read_folder(tmp_path / "photos", "data_path")
    with pytest.raises(DataError, match="Cannot write to"):
        pack_source(source, tmp_path / "file" / "out", "train")
