"""A layout is recognised by what is there, and has a name."""

from __future__ import annotations

import pytest
from made_images import write_folder, write_idx
from made_shards import samples, write_tar

from vitbase.errors import DataError
from vitbase.sources.layouts import Beside, Given, HeldOut, find_val, recognise
from vitbase.sources.splits import SPLIT_NAMES, find_split

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


def test_where_the_evaluation_images_are(tmp_path):
    write_folder(tmp_path / "apart" / "train", {"a": 1, "b": 1})
    write_folder(tmp_path / "apart" / "dev", {"a": 1, "b": 1})
    both, one = str(tmp_path / "apart"), str(tmp_path / "apart" / "train")
    assert isinstance(find_val(both, None), Beside)
    assert len(find_val(both, None).layout.open("val")) == 2
    assert isinstance(find_val(one, None), HeldOut)
    given = find_val(both, one)
    assert isinstance(given, Given)
    assert given.place == one
    assert isinstance(find_val(None, one), Given)  # training images are not needed
    with pytest.raises(DataError, match="--val_data_path FOLDER"):
        find_val(None, None)


@pytest.mark.parametrize("split", [*SPLIT_NAMES["train"], *SPLIT_NAMES["val"]])
def test_every_kind_knows_every_name_of_a_split(tmp_path, split):
    train, val = ("train", split) if split in SPLIT_NAMES["val"] else (split, "val")
    for name in (train, val):
        write_folder(tmp_path / "folders" / name.upper(), {"a": 1, "b": 1})
        write_idx(tmp_path / "idx", train=4, val=2)
        write_tar(tmp_path / "shards" / f"x-{name}-0.tar", samples(2))
        write_tar(tmp_path / "deeper" / name / "0.tar", samples(2))
    for path in [*(tmp_path / "idx").iterdir()]:
        path.rename(path.with_name(path.name.replace("train-", f"{train}-").replace("t10k", val)))
    write_folder(tmp_path / "files", {"a": 2})
    table = f"path,label,split\na/0.JPEG,a,{train}\na/1.JPEG,b,{val}\n"
    (tmp_path / "files" / "t.csv").write_text(table)
    for place in ("folders", "idx", "shards", "deeper", "files/t.csv"):
        layout = recognise(str(tmp_path / place), "data_path")
        assert layout.has_val(), place
        assert len(layout.open("train")) > 0, place
        assert len(layout.open("val")) > 0, place


def test_of_several_names_the_first_is_taken():
    names = ["test", "dev", "valid", "validation", "ILSVRC2012_val", "val"]
    while names:
        assert find_split("val", names) == names.pop()
    assert find_split("val", ["Train", "other"]) is None
    assert find_split("train", ["Train", "other"]) == "Train"
