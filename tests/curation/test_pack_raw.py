"""`vitbase data pack --raw`: decoded pixels in shards, and what is made of them."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_images import encode, photo, write_folder, write_idx
from made_shards import contents_of
from made_sources import given as made_source
from PIL import Image

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.curation.packing.pack import pack_data
from vitbase.curation.packing.split import pack_source, verify_shards
from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.decode import decode
from vitbase.data.loader import EvalLoader, TrainLoader
from vitbase.data.resize import resize
from vitbase.errors import DataError
from vitbase.sources.archives import read_archive
from vitbase.sources.holdout import hold_out
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source

PREPROCESS = default_preprocess(32, 32, 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Folders train and val, with class folders."""
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "train", {"bag": 9, "boot": 8, "coat": 7}, size=(60, 70))
    write_folder(root / "val", {"bag": 1, "boot": 2, "coat": 3}, size=(71, 60))
    return root


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    pack_data(str(photos), out, raw=40)
    return out


def everything(source: Source) -> list[tuple[str, int, str]]:
    return [(source.name(i), int(source.labels[i]), source.describe(i)) for i in range(len(source))]


def test_order_labels_and_names_are_those_of_packed_files(photos, packed, tmp_path):
    pack_data(str(photos), tmp_path, short_side=40)
    for split in ("train", "val"):
        files, pixels = (open_shards(str(place), split, "x") for place in (tmp_path, packed))
        assert [row[:2] for row in everything(files)] == [row[:2] for row in everything(pixels)]
        assert files.class_names == pixels.class_names
        assert pixels.describe(0).startswith(f"{packed}/{split}-000000.tar: 00000000.raw.ppm (")
        assert (files.decoded, pixels.decoded) == (False, True)
        parts = [hold_out(source, 0.3, seed=5) for source in (files, pixels)]
        assert parts[0].held_out == parts[1].held_out
        assert parts[0].val.tolist() == parts[1].val.tolist()
    assert verify_shards(packed) == 2


def test_pixels_are_those_of_the_image_made_smaller(tmp_path):
    grey, arrays = photo(50, 90, channels=1), [photo(28, 28, channels=1), photo(100, 80)]
    images = [
        encode(photo(60, 100)),
        encode(photo(99, 66), "PNG"),
        encode(photo(31, 90)),  # small enough
        encode(photo(500, 600)),
        encode(grey),
        encode(grey, "PNG", mode="RGB"),
        *arrays,
    ]
    source = made_source(images, np.zeros(8, np.int64), ("a", "b"), [*map(str, range(8))])
    report = pack_source(source, tmp_path, "train", raw=40)
    assert report.changes == {"copied": 0, "resized": 6, "encoded": 0, "decoded": 2}
    found = open_shards(str(tmp_path), "train", "x")
    read = [found.read(index) for index in range(8)]
    shapes = [(40, 67, 3), (60, 40, 3), (31, 90, 3), (40, 48, 3), (40, 72, 1), (40, 72, 1)]
    assert [pixels.shape for pixels in read] == [*shapes, (28, 28, 1), (50, 40, 3)]
    for index, (height, width) in ((0, (40, 67)), (1, (60, 40)), (2, (31, 90))):
        expected = resize(decode(images[index]), height, width, "bicubic")
        np.testing.assert_array_equal(read[index], expected)
    # Of a large JPEG a fraction is decoded, at least twice the size.
    whole = resize(decode(images[3]), 40, 48, "bicubic").astype(int)
    assert np.abs(read[3].astype(int) - whole).mean() < 4
    np.testing.assert_array_equal(read[4], resize(decode(images[4], 1), 40, 72, "bicubic"))
    np.testing.assert_array_equal(read[6], arrays[0])
    assert not any(pixels.flags.writeable for pixels in read)


def test_archives_come_back_as_they_were(tmp_path):
    write_idx(tmp_path / "idx", train=30, val=10)
    source = read_archive(tmp_path / "idx", "train", "data_path")
    pack_source(source, tmp_path / "out", "train", raw=256)
    found = open_shards(str(tmp_path / "out"), "train", "data_path")
    for index in range(30):
        np.testing.assert_array_equal(found.read(index), source.read(index))


@pytest.mark.parametrize("crop", ["random_resized", "simple", "center", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_on_packed_pixels_is_training_on_these_pixels(packed, crop, channels):
    source = open_shards(str(packed), "train", "data_path")
    pixels = [np.array(source.read(index)) for index in range(len(source))]
    loose = made_source(pixels, source.labels, source.class_names, [*map(str, range(len(pixels)))])
    preprocess = default_preprocess(32, 32, channels)
    augment = AugmentSection(train_crop=crop, crop_pad=4)
    transform = TrainTransform(preprocess, augment)
    loaders = [
        TrainLoader(images, transform, seed=3, batch_size=8, num_workers=workers)
        for images, workers in ((loose, 1), (source, 3))
    ]
    for one, other in zip(loaders[0].epoch(1), loaders[1].epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_ranks_share_the_batches_of_one(packed):
    source = open_shards(str(packed), "train", "data_path")
    transform = TrainTransform(PREPROCESS, AugmentSection())
    (whole, *_) = TrainLoader(source, transform, seed=0, batch_size=8).epoch(0)
    parts = [
        next(
            TrainLoader(
                source, transform, seed=0, batch_size=4, rank=rank, num_ranks=2, num_workers=2
            ).epoch(0)
        )
        for rank in range(2)
    ]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


def test_evaluation_takes_the_middle_as_it_is_where_the_size_is_right(packed):
    source = open_shards(str(packed), "val", "data_path")
    preprocess = PREPROCESS.model_copy(update={"crop_ratio": 0.8})  # 32 of 40
    (batch,) = EvalLoader(source, EvalTransform(preprocess), batch_size=8)
    for index, image in enumerate(batch.images.numpy()):
        height, width = source.read(index).shape[:2]
        assert min(height, width) == 40
        top, left = round((height - 32) / 2), round((width - 32) / 2)
        expected = source.read(index)[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(image, expected)


def test_the_same_bytes_with_any_threads_and_after_an_interruption(tmp_path, packed, photos):
    options = {"raw": 40, "split": "train", "shard_images": 5}
    for workers in (1, 3):
        pack_data(str(photos), tmp_path / str(workers), num_workers=workers, **options)
    expected = contents_of(tmp_path / "1")
    assert contents_of(tmp_path / "3") == expected

    def stop(split: str, done: int, images: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_data(str(photos), tmp_path / "out", progress=stop, **options)
    with pytest.raises(DataError, match="was not finished"):
        open_shards(str(tmp_path / "out"), "train", "data_path")
    (report,) = pack_data(str(photos), tmp_path / "out", **options)
    assert report.kept_shards > 0
    assert contents_of(tmp_path / "out") == expected


def test_what_is_packed_otherwise_is_refused_both_ways(photos, packed, tmp_path):
    with pytest.raises(DataError, match="raw 40 instead of none"):
        pack_data(str(photos), packed)
    with pytest.raises(DataError, match="raw 40 instead of 48"):
        pack_data(str(photos), packed, raw=48)
    pack_data(str(photos), tmp_path)
    with pytest.raises(DataError, match=r"shard_megabytes 256 instead of 1024, raw none instead"):
        pack_data(str(photos), tmp_path, raw=40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--raw", 0), "--raw 0: expected at least 1 pixel"),
        (("--raw", 40, "--short_side", 40), "--raw 40 and --short_side 40: pixels are not encoded"),
        (("--raw", 40, "--quality", 90), "--raw 40 and --quality 90: pixels are not encoded"),
        (("--raw", "large"), "raw"),
    ],
)
def test_options_that_make_no_sense(vitbase_command, photos, tmp_path, options, words):
    code, _, err = vitbase_command("data", "pack", photos, tmp_path / "out", *options)
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


def test_bytes_are_told_before_and_after(vitbase_command, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    code, told, err = vitbase_command("data", "pack", photos, out, "--raw", 40)
    assert (code, err) == (0, "")
    before = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes", told)]
    after = [(out / f"{split}-000000.tar").stat().st_size for split in ("train", "val")]
    assert [bytes_ + 1024 for bytes_ in before] == after  # the mark that ends a tar file
    lines = told.splitlines()
    assert lines[0].startswith("train: 24 images as pixels will take ")
    assert lines[0].endswith(" GiB are free there")
    assert lines[2].startswith("train: 24 images in 1 shards, 0.2 MiB, in ")
    assert lines[2].endswith(" (24 resized)")
    monkeypatch.setattr("vitbase.curation.packing.estimate._LOOKED_AT", 3)
    seen: list[str] = []
    pack_data(str(photos), out, raw=40, tell=seen.append)
    assert "will take about, by 3 of them, " in seen[0]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    pack_data(str(photos), out, raw=40, tell=seen.append)
    assert seen[-1].endswith("0.0 GiB are free there: too few, unless some are there already")


def test_the_doctor_reads_the_pixels_and_compares_checksums(vitbase_command, photos, tmp_path):
    pack_data(str(photos), tmp_path, raw=40)
    assert vitbase_command("data", "check", tmp_path)[0] == 0
    shard = tmp_path / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1  # a pixel
    shard.write_bytes(content)
    code, told, _ = vitbase_command("data", "check", tmp_path)
    assert code == 1
    assert "damaged shard" in told


def test_a_run_trains_and_evaluates_on_pixels(vitbase_command, packed, tmp_path):
    words = ("--model", "testing", "--image_size", 32, "--batch_size", 8, "--epoch_size", 1)
    words += ("--warmup_epochs", 0, "--device_target", "CPU", "--output_dir", tmp_path / "run")
    assert vitbase_command("train", "finetune", "--data_path", packed, *words)[0] == 0
    code, told, _ = vitbase_command("eval", "--checkpoint_path", tmp_path / "run")
    assert code == 0
    assert "6 of 6" in told


# Other programs


def test_pillow_reads_the_members(packed):
    source = open_shards(str(packed), "train", "x")
    with tarfile.open(packed / "train-000000.tar") as tar:
        content = tar.extractfile("00000003.raw.ppm").read()
        assert tar.extractfile("00000003.cls").read() == b"0"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), source.read(3))


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_shards(packed):
    import webdataset

    source = open_shards(str(packed), "train", "x")
    urls = [str(packed / "train-000000.tar")]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [int(sample["cls"]) for sample in found] == source.labels.tolist()
    for index, sample in enumerate(found):
        np.testing.assert_array_equal(sample["raw.ppm"], source.read(index))
