from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_images import encode, photo, write_folder, write_idx
from made_shards import contents_of
from made_sources import given as made_source
from PIL import features

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.curation.packing import images as pack_images
from vitbase.curation.packing.split import pack_source, verify_shards
from vitbase.data.augment import TrainTransform
from vitbase.data.decode import decode
from vitbase.data.loader import TrainLoader
from vitbase.data.order import epoch_permutation
from vitbase.errors import DataError
from vitbase.sources.archives import read_archive
from vitbase.sources.folders import read_folder
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source


def pngs(count: int) -> list[bytes]:
    return [encode(np.full((2, 3, 3), number % 256, np.uint8), "PNG") for number in range(count)]


IMAGES = pngs(40)
RARE = {"AVIF": "avif", "JPEG2000": "jpg_2000"}


def list_source(count: int, classes: int = 3) -> Source:
    names = tuple(f"class {number}" for number in range(classes))
    labels = np.arange(count, dtype=np.int64) % classes
    return made_source(IMAGES[:count], labels, names, [f"{i}.png" for i in range(count)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_goes_in_comes_out(data, tmp_path_factory):
    count = data.draw(st.integers(1, 30))
    names = data.draw(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
    paths = data.draw(st.lists(st.text(min_size=1), min_size=count, max_size=count))
    if data.draw(st.booleans()):
        labels = np.array(
            data.draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count)),
            np.int64,
        )
    else:
        row = st.lists(st.booleans(), min_size=len(names), max_size=len(names))
        rows = data.draw(st.lists(row, min_size=count, max_size=count))
        labels = np.array(rows, np.float32)
    source = made_source(IMAGES[:count], labels, tuple(names), paths)
    folder = tmp_path_factory.mktemp("packed")
    limit = data.draw(st.sampled_from([{"shard_images": 7}, {"shard_bytes": 6000}, {}]))
    shuffle = data.draw(st.booleans())
    report = pack_source(source, folder, "val", num_workers=2, shuffle=shuffle, **limit)
    assert report.images == count
    packed = open_shards(str(folder), "val", "val_data_path")
    order = epoch_permutation(0, 0, count) if shuffle else np.arange(count)
    assert packed.labels.dtype == labels.dtype
    np.testing.assert_array_equal(packed.labels, labels[order])
    assert [packed.read(i) for i in range(count)] == [IMAGES[index] for index in order]
    assert [packed.name(i) for i in range(count)] == [paths[index] for index in order]
    assert packed.class_names == tuple(names)
    assert packed.named
    assert packed.notes == ()


def test_the_number_of_threads_changes_no_byte(tmp_path):
    write_folder(tmp_path / "photos", {"a": 21, "b": 12}, size=(40, 60))
    (tmp_path / "photos" / "a" / "5x.jpg").write_bytes(b"no image")
    source = read_folder(tmp_path / "photos", "data_path")
    for workers in (1, 4):
        pack_source(
            source,
            tmp_path / str(workers),
            "train",
            shard_bytes=30_000,
            short_side=32,
            num_workers=workers,
        )
    assert contents_of(tmp_path / "1") == contents_of(tmp_path / "4")
    assert len(contents_of(tmp_path / "1")) > 4
    with tarfile.open(tmp_path / "1" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.mode == 0o644


def test_files_small_enough_are_copied_and_others_made_smaller(tmp_path, monkeypatch):
    shrinks = []
    original = pack_images.decode_window
    monkeypatch.setattr(
        pack_images,
        "decode_window",
        lambda *args, shrink: shrinks.append(shrink) or original(*args, shrink=shrink),
    )
    large, grey = photo(700, 500), photo(300, 300, channels=1)
    images = [
        encode(photo(32, 90)),
        encode(large),
        encode(photo(500, 400), "PNG"),
        encode(grey, mode="L"),
        encode(photo(300, 300), mode="CMYK"),
        encode(photo(20, 30), "WEBP"),
        photo(28, 28, channels=1),
        photo(100, 80),
    ]
    labels = np.zeros(len(images), np.int64)
    source = made_source(images, labels, ("a", "b"), [str(i) for i in range(len(images))])
    report = pack_source(source, tmp_path, "train", short_side=32, quality=95)
    assert report.changes == {"copied": 2, "resized": 5, "encoded": 1}
    packed = open_shards(str(tmp_path), "train", "data_path")
    suffixes = [packed.describe(i).split(" (")[0].rsplit(".", 1)[1] for i in range(len(images))]
    assert suffixes == ["jpg", "jpg", "jpg", "jpg", "jpg", "webp", "png", "jpg"]
    assert packed.read(0) == images[0]
    assert packed.read(5) == images[5]
    shapes = [decode(packed.read(i)).shape[:2] for i in range(len(images))]
    assert shapes == [
        (32, 90),
        (45, 32),
        (40, 32),
        (32, 32),
        (32, 32),
        (20, 30),
        (28, 28),
        (40, 32),
    ]
    np.testing.assert_array_equal(decode(packed.read(6), 1), images[6])
    assert shrinks == [4, 4, 4, 4]  # where the format allows
    # Near to what resizing the whole image gives.
    whole = pack_images.resize(decode(images[1], 1), 45, 32, "bicubic").astype(int)
    assert np.abs(decode(packed.read(1), 1).astype(int) - whole).mean() < 4


def test_every_format_that_opens_is_packed_and_found_again(tmp_path):
    kinds = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO"]
    kinds += [kind for kind, name in RARE.items() if features.check(name)]
    images = [encode(photo(48, 48), kind) for kind in kinds]
    labels = np.zeros(len(kinds), np.int64)
    source = made_source(images, labels, ("a", "b"), kinds)
    assert pack_source(source, tmp_path, "train").images == len(kinds)
    (tmp_path / "train.json").unlink(missing_ok=True)
    for index in tmp_path.glob("*.json"):
        index.unlink()  # the shard itself says what is in it
    packed = open_shards(str(tmp_path), "train", "data_path")
    assert [packed.read(i) for i in range(len(packed))] == images


@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_too_long_for_a_jpeg_becomes_a_png(as_file):
    pixels = np.zeros((3, 100_000, 1), np.uint8)
    raw = encode(pixels, "PNG") if as_file else pixels
    suffix, data, change = pack_images.prepare_image(raw, 2, 90)
    assert (suffix, change) == ("png", "resized")
    assert decode(data).shape == (2, 66_667, 3)


def test_archives_are_packed_without_loss(tmp_path):
    write_idx(tmp_path / "idx", train=30, val=10)
    for split in ("train", "val"):
        source = read_archive(tmp_path / "idx", split, "data_path")
        pack_source(source, tmp_path / "out", split)
        packed = open_shards(str(tmp_path / "out"), split, "data_path")
        assert packed.labels.tolist() == source.labels.tolist()
        for index in range(len(source)):
            np.testing.assert_array_equal(decode(packed.read(index), 1), source.read(index))
            assert packed.name(index) == source.describe(index)
    info = json.loads((tmp_path / "out" / "_info.json").read_text())
    assert {name: s["num_samples"] for name, s in info["splits"].items()} == {
        "train": 30,
        "validation": 10,
    }


def test_packed_shards_may_be_packed_again(tmp_path):
    source = list_source(20)
    pack_source(source, tmp_path / "a", "train", shard_images=7)
    pack_source(open_shards(str(tmp_path / "a"), "train", "x"), tmp_path / "b", "train")
    again = open_shards(str(tmp_path / "b"), "train", "x")
    assert [again.read(i) for i in range(20)] == source.images.contents
    assert [again.name(i) for i in range(20)] == source.images.names


def test_unreadable_images_are_left_out_counted_and_bounded(tmp_path):
    source = list_source(20)
    contents = source.images.contents
    contents[3], contents[4], contents[19] = None, b"no image", b"\x89PNG"
    report = pack_source(source, tmp_path / "a", "train", shard_images=4)
    assert [found.place for found in report.left_out] == ["3.png", "4.png", "19.png"]
    assert report.left_out[0].cause == "it is gone"
    assert report.images == 17
    packed = open_shards(str(tmp_path / "a"), "train", "data_path")
    kept = [i for i in range(20) if i not in (3, 4, 19)]
    assert packed.labels.tolist() == source.labels[kept].tolist()
    again = pack_source(source, tmp_path / "a", "train", shard_images=4)
    assert again.left_out == report.left_out
    with pytest.raises(DataError) as caught:
        pack_source(source, tmp_path / "b", "train", max_bad_images=1)
    assert "4.png: not a readable image" in str(caught.value)
    assert "2 unreadable images, more than max_bad_images 1" in str(caught.value)


def test_nothing_readable(tmp_path):
    source = made_source([b"x"] * 3, np.zeros(3, np.int64), ("a", "b"), ["0", "1", "2"])
    with pytest.raises(DataError, match="no image to pack"):
        pack_source(source, tmp_path, "train")


def test_started_again_it_keeps_what_is_whole(tmp_path):
    source = list_source(30)
    pack_source(source, tmp_path / "whole", "train", shard_images=4)
    expected = contents_of(tmp_path / "whole")
    seen = []

    def stop(done: int, images: int) -> None:
        seen.append(done)
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_source(source, tmp_path / "out", "train", shard_images=4, progress=stop)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names[:2] == ["manifest.json", "train-000000.tar"]
    with pytest.raises(DataError, match=r"was not finished. Start the same `vitbase data pack`"):
        open_shards(str(tmp_path / "out"), "train", "data_path")
    finished = sum(name.endswith(".tar") for name in names)
    report = pack_source(source, tmp_path / "out", "train", shard_images=4)
    assert report.kept_shards == finished
    assert contents_of(tmp_path / "out") == expected
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "last"])
def test_a_damaged_shard_is_found_and_made_again(tmp_path, damage):
    source = list_source(30)
    pack_source(source, tmp_path, "train", shard_images=4)
    expected = contents_of(tmp_path)
    shard = tmp_path / ("train-000007.tar" if damage == "last" else "train-000002.tar")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content[:-512] if damage == "cut" else content)
    if damage == "gone":
        shard.unlink()
    seen = []
    words = {"cut": "instead of", "gone": "is missing"}.get(damage, "does not match its checksum")
    with pytest.raises(DataError, match=words) as caught:
        verify_shards(tmp_path, lambda done, total: seen.append((done, total)))
    assert str(shard) in str(caught.value)
    assert len(seen) == (7 if damage == "last" else 2)
    report = pack_source(source, tmp_path, "train", shard_images=4)
    assert report.kept_shards == 7
    assert contents_of(tmp_path) == expected
    assert verify_shards(tmp_path) == 8


def test_other_options_and_images_are_refused(tmp_path):
    source = list_source(12)
    pack_source(source, tmp_path, "train", shard_images=4)
    with pytest.raises(DataError) as caught:
        pack_source(source, tmp_path, "train", shard_images=5, short_side=64, quality=80)
    for words in ("shard_images 4 instead of 5", "short_side none instead of 64", "instead of 80"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"other images \(12, now 13\)"):
        pack_source(list_source(13), tmp_path, "train", shard_images=4)
    with pytest.raises(DataError, match="shards with 3 classes; these images have 4"):
        pack_source(list_source(12, classes=4), tmp_path, "val", shard_images=4)
    (tmp_path / "val-000003.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"manifest.json does not list \(val-000003.tar\)"):
        pack_source(source, tmp_path, "val")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="is not a manifest of packed shards"):
        pack_source(source, tmp_path, "train", shard_images=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quality": 0}, "--quality 0"),
        ({"short_side": 0}, "--short_side 0"),
        ({"shard_images": 0}, "must be at least 1"),
    ],
)
def test_impossible_options(tmp_path, options, words):
    with pytest.raises(DataError, match=words):
        pack_source(list_source(3), tmp_path, "train", **options)


def test_two_at_once_are_refused(tmp_path):
    def again(done: int, images: int) -> None:
        with pytest.raises(DataError, match="is being packed into by another process"):
            pack_source(list_source(3), tmp_path, "val")

    pack_source(list_source(3), tmp_path, "train", progress=again)


def test_verify_wants_a_manifest(tmp_path):
    with pytest.raises(DataError, match=r"there is no manifest.json"):
        verify_shards(tmp_path)


# Other programs


def test_tarfile_reads_the_shards(tmp_path):
    pack_source(list_source(5), tmp_path, "train")
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000.png", "00000000.cls", "00000000.json"]
        assert tar.extractfile("00000004.png").read() == IMAGES[4]
        assert tar.extractfile("00000004.cls").read() == b"1"
        assert json.load(tar.extractfile("00000004.json")) == {"filename": "4.png"}


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_shards(tmp_path):
    import webdataset

    pack_source(list_source(10), tmp_path, "train", shard_images=4)
    urls = [str(tmp_path / f"train-{number:06}.tar") for number in range(3)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["png"] for sample in found] == IMAGES[:10]
    assert [int(sample["cls"]) for sample in found] == [i % 3 for i in range(10)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", ["train", "val"])
def test_timm_reads_the_shards(tmp_path, split):
    from timm import data as timm_data

    pack_source(list_source(10), tmp_path, split, shard_images=4)
    name = {"val": "validation"}.get(split, split)
    dataset = timm_data.create_dataset("wds/", root=str(tmp_path), split=name, is_training=False)
    found = [(np.asarray(image)[0, 0, 0], label) for image, label in dataset]
    assert found == [(i, i % 3) for i in range(10)]


@pytest.mark.filterwarnings("ignore")
def test_shards_of_webdataset_are_read(tmp_path):
    import webdataset

    with webdataset.ShardWriter(
        str(tmp_path / "x-train-%06d.tar"), maxcount=4, verbose=0
    ) as writer:
        for index in range(10):
            writer.write({"__key__": f"n/{index:04}", "png": IMAGES[index], "cls": index % 3})
    source = open_shards(str(tmp_path), "train", "data_path")
    assert [source.read(i) for i in range(10)] == IMAGES[:10]
    assert source.labels.tolist() == [i % 3 for i in range(10)]


def test_training_on_copies_in_shards_is_training_on_the_files(photos, tmp_path):
    files = read_folder(photos, "data_path")
    pack_source(files, tmp_path, "train", shard_images=5)
    packed = open_shards(str(tmp_path), "train", "data_path")
    transform = TrainTransform(default_preprocess(32, 32, 3), AugmentSection())
    loaders = [TrainLoader(s, transform, seed=3, batch_size=8) for s in (files, packed)]
    for one, other in zip(loaders[0].epoch(1), loaders[1].epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
