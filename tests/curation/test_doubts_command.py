"""`vitbase data doubts` as a user meets it, and packing without what it names."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_images import write_folder
from made_predictions import predicted
from PIL import Image

from vitbase.curation.packing.leave_out import plain_name
from vitbase.evaluation.predictions import Predictions, write_predictions
from vitbase.sources.layouts import open_source
from vitbase.sources.shards.source import open_shards

CLASSES = ("bag", "boot", "coat")


def predict(folder: Path, split: str, seed: int) -> Predictions:
    """Return predictions of a split: right, but for the first image; features of three clusters."""
    source = open_source(str(folder), split, "data_path")
    labels = np.asarray(source.labels)
    guesses = labels.copy()
    guesses[0] = 2
    p_NC = np.full((len(labels), 3), 0.05)
    p_NC[np.arange(len(labels)), guesses] = 0.9
    rng = np.random.default_rng(seed)
    features = 4 * np.eye(3, 16)[guesses] + rng.normal(size=(len(labels), 16))
    ids = [plain_name(source.name(index)) for index in range(len(source))]
    return predicted(p_NC, labels, ids=ids, classes=CLASSES, features=features)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Images, some of whose names are in both splits, and predictions of them: Parquet."""
    root = tmp_path_factory.mktemp("doubts")
    for split, count in (("train", 8), ("val", 6)):
        write_folder(root / "data" / split, dict.fromkeys(CLASSES, count))
    val, train = predict(root / "data", "val", 0), predict(root / "data", "train", 1)
    assert val.features is not None
    assert train.features is not None
    train.features[10] = val.features[7]
    Path(root / "data" / "val" / val.ids[0]).write_bytes(b"no image")
    write_predictions(root / "val.parquet", val)
    write_predictions(root / "train.parquet", train)
    write_predictions(root / "bare.csv", dataclasses.replace(val, features=None))
    return root


def table(path: Path) -> list[dict[str, str]]:
    return [*csv.DictReader(path.read_text("utf-8").splitlines(keepends=True))]


def test_tables_sheets_and_packing_without_what_they_name(vitbase_command, made, tmp_path):
    out = tmp_path / "doubts"
    words = ("data", "doubts", made / "val.parquet", "--train", made / "train.parquet")
    code, told, err = vitbase_command(*words, "--data_path", made / "data", "--out", out)
    assert (code, err) == (0, "")
    assert "labels: 1 of 18 images are likely labelled wrong (5.6%)" in told
    assert "labelled 'bag' (5.0%), likely 'coat' (90.0%)" in told
    assert "near-duplicates: 1 groups of 2 images; 1 groups across training and held-out" in told
    names = {path.name for path in out.iterdir()}
    assert {"labels.csv", "duplicates.csv", "outliers.csv", "leave_out.csv"} <= names
    assert {"labels.png", "duplicates.png"} <= names
    for path in out.glob("*.png"):
        with Image.open(path) as sheet:
            sheet.load()
            assert sheet.size[0] == 1030
    (row,) = table(out / "labels.csv")
    assert (row["split"], row["label"], row["likely"]) == ("val", "bag", "coat")
    train, val = table(out / "leave_out.csv")
    assert (train["split"], val["split"]) == ("train", "val")
    assert val["reason"] == "labelled bag, likely coat"
    assert [row["leave_out"] for row in table(out / "duplicates.csv")] == ["no", "yes"]

    shards = tmp_path / "shards"
    words = ("data", "pack", made / "data", shards, "--leave_out", out / "leave_out.csv")
    code, told, err = vitbase_command(*words)
    assert (code, err) == (0, "")
    assert "1 of 18 images are left out, as" in told
    packed = {split: open_shards(str(shards), split, "x") for split in ("train", "val")}
    assert {split: len(source) for split, source in packed.items()} == {"train": 23, "val": 17}
    for split, row in (("train", train), ("val", val)):
        kept = open_source(str(made / "data"), split, "x")
        expected = [index for index in range(len(kept)) if kept.name(index) != row["id"]]
        assert packed[split].labels.tolist() == kept.labels[expected].tolist()


def test_without_features_labels_alone_are_doubted(vitbase_command, made, tmp_path):
    words = ("data", "doubts", made / "bare.csv", "--out", tmp_path / "out", "--json")
    code, told, _ = vitbase_command(*words)
    assert code == 0
    found = json.loads(told)
    assert found["labels"]["likely_wrong"] == found["leave_out"] == 1
    assert found["files"] == ["labels.csv", "leave_out.csv", "doubts.json"]
    assert "have no features" in found["notes"][0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("val.parquet",), "Give --out FOLDER, where the tables are written."),
        (("val.parquet", "--out", "."), "--out . is a folder that is not empty: give a new one."),
        (("val.parquet", "--out", "bare.csv"), "--out bare.csv is there, and no folder"),
        (("gone.csv", "--out", "o"), "Cannot read predictions gone.csv: No such file"),
        (
            ("bare.csv", "--out", "o", "--find", "outliers"),
            "The predictions have no features, by which images are found alike or far: save them",
        ),
        (
            ("bare.csv", "--out", "o", "--data_path", "embedded"),
            "bare.csv: 18 of 18 images are not in the data (bag/0.JPEG",
        ),
        (("bare.csv", "--out", "o", "--layout", "files"), "Give --data_path, too."),
        (("bare.csv", "--out", "o", "--limit", "-1"), "Option 'limit' should be at least 0."),
        (("bare.csv", "--out", "o", "--find", "odd"), "'labels', 'duplicates' or 'outliers'"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(vitbase_command, made, monkeypatch, words, told):
    monkeypatch.chdir(made)
    code, _, err = vitbase_command("data", "doubts", *words)
    assert code == 2
    assert told in err
    assert not (made / "o").exists()


def test_predictions_of_other_labels_are_refused(vitbase_command, made, tmp_path):
    val = predict(made / "data", "val", 0)
    labels = val.labels.copy()
    labels[4] = 1
    write_predictions(tmp_path / "p.csv", dataclasses.replace(val, labels=labels, features=None))
    words = ("data", "doubts", tmp_path / "p.csv", "--data_path", made / "data")
    code, _, err = vitbase_command(*words, "--out", tmp_path / "out")
    assert code == 2
    assert "1 of 18 images have another label in the data" in err
    assert "is 'bag' there, 'boot' in the file" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name\nx\n", "it has no column 'id'."),
        ("id\ngone.jpg\n", "1 of its images are not in the data: gone.jpg."),
        ("id\nbag/0.JPEG\n", "'bag/0.JPEG' is the name of a training and of an evaluation image"),
        ("id,split\nbag/0.jpg,middle\n", "line 2: split is 'middle', expected train, val or"),
        (None, "No such file or directory"),
        (b"id\n\xff\xfe", "it is no CSV in UTF-8"),
    ],
)
def test_tables_that_do_not_fit_are_refused(vitbase_command, made, tmp_path, content, told):
    path = tmp_path / "leave_out.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ("data", "pack", made / "data", tmp_path / "shards", "--leave_out", path)
    code, _, err = vitbase_command(*words)
    assert code == 2
    assert told in err


def test_all_images_of_a_split_cannot_be_left_out(vitbase_command, made, tmp_path):
    source = open_source(str(made / "data"), "val", "x")
    rows = [f"{source.name(index)},val\n" for index in range(len(source))]
    (tmp_path / "all.csv").write_text("id,split\n" + "".join(rows), encoding="utf-8")
    words = ("data", "pack", made / "data", tmp_path / "shards", "--split", "val")
    code, _, err = vitbase_command(*words, "--leave_out", tmp_path / "all.csv")
    assert code == 2
    assert "no image of 'val' would be left" in err
