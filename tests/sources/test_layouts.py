"""A layout is recognised by what is there, and has a name."""

from __future__ import annotations

import pytest

from vitbase.errors import DataError
from vitbase.sources.layouts import recognise

SYNSET = "n01440764/x.JPEG"


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["cat/1.jpg", "dog/1.jpg"], "class folders"),
        (["train/cat/1.jpg", "val/cat/1.jpg"], "class folders in train and val"),
        (["train/cat/1.jpg", "val/1.tar"], "train: class folders, val: tar shards"),
        (
            [f"ILSVRC2012_train/{SYNSET}", "ILSVRC2012_val/1.JPEG"],
            "ILSVRC2012_train: class folders, ILSVRC2012_val: ImageNet's images side by side, "
            "labels in a file",
        ),
        (
            [f"ILSVRC/Data/CLS-LOC/{split}/{SYNSET}" for split in ("train", "val")],
            "ILSVRC/Data/CLS-LOC: class folders in train and val",
        ),
        (["x-0.tar", "x-1.tar"], "tar shards"),
        (["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], "IDX files"),
        (["MNIST/raw/train-images-idx3-ubyte"], "MNIST/raw: IDX files"),
        (["data_batch_1.bin", "test_batch.bin"], "CIFAR-10"),
        (["meta", "train", "test"], "CIFAR-100 pickles"),
        (["data/train-00000-of-00001.parquet"], "Parquet or Arrow files"),
        (["x.csv"], "class folders"),  # what opening then says are missing
    ],
)
def test_folders(tmp_path, files, layout):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(str(tmp_path), "data_path").words == layout


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("embedded", "IDX files inside the package"),
        ("hf:owner/name", "data set of Hugging Face"),
        ("s3://bucket/shards", "tar shards behind a URL"),
        ("photos.csv", "table of paths and labels"),
    ],
)
def test_what_is_no_folder(path, layout):
    assert recognise(path, "data_path").words == layout


def test_nothing_there():
    with pytest.raises(DataError, match="--val_data_path /no/such: there is no such folder"):
        recognise("/no/such", "val_data_path")
