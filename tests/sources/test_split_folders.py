"""Which folders are splits, which are classes; in doubt nobody guesses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_images import write_folder, write_idx
from made_shards import samples, write_tar

from vitbase.errors import DataError
from vitbase.sources.folders import Files
from vitbase.sources.layouts import recognise
from vitbase.sources.open import open_source, open_train_val, open_val
from vitbase.sources.splits import find_split, split_word


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names_of(root: Path, split: str = "train", reading: str = "auto") -> list[str]:
    source = open_source(str(root), split, "data_path", reading)
    return [Path(source.describe(i)).relative_to(root).as_posix() for i in range(len(source))]


def notes_of(root: Path, split: str = "train", reading: str = "auto") -> str:
    return "\n".join(open_source(str(root), split, "data_path", reading).notes)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("Train", "Valid"),
        ("train_images", "images-val"),
        ("TrainSet", "evaluation data"),
        ("train2017", "val2017"),
        ("01_train", "02_test"),
    ],
)
def test_splits_in_any_case_and_with_affixes(tmp_path, config, vitbase_command, train, val):
    write_folder(tmp_path / train, {"a": 3, "b": 2})
    write_folder(tmp_path / val, {"a": 1, "b": 1}, size=(30, 30))
    data = open_train_val(config(data_path=str(tmp_path)))
    assert (len(data.train), len(data.val), data.held_out) == (5, 2, ())
    assert data.train.class_names == ("a", "b")
    code, out, _ = vitbase_command("data", "check", tmp_path)
    assert code == 0
    assert f"layout: class folders in {train} and {val}" in out


def test_words_that_are_no_splits():
    for name in ("train_station", "test_tube", "invalid", "trainer", "latest", "developer", "x"):
        assert split_word(name) is None
    assert split_word("ILSVRC2012_img_test") is None  # its labels are kept secret
    assert find_split("train", ["img_train", "Train", "train_1"]) == "Train"


def test_splits_of_kaggle_that_are_wrapped_twice(tmp_path):
    write(
        tmp_path,
        *(f"seg_{s}/seg_{s}/{c}/1.jpg" for s in ("train", "test") for c in ("sea", "street")),
        "seg_pred/seg_pred/7.jpg",
    )
    assert names_of(tmp_path) == [f"seg_train/seg_train/{c}/1.jpg" for c in ("sea", "street")]
    assert names_of(tmp_path, "val") == [f"seg_test/seg_test/{c}/1.jpg" for c in ("sea", "street")]
    assert "left out: seg_pred" in notes_of(tmp_path)


SPLITS = tuple(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("a", "b"))


def test_what_is_beside_splits_is_left_out_and_named(tmp_path, vitbase_command):
    write(tmp_path, *SPLITS, "samples/x.jpg", "test/a/2.jpg", "annotations/a.xml", "metadata.csv")
    assert names_of(tmp_path) == ["train/a/1.jpg", "train/b/1.jpg"]
    expected = f"{tmp_path}: left out: annotations, samples, test, metadata.csv."
    assert expected in notes_of(tmp_path)
    assert expected in vitbase_command("data", "check", tmp_path)[1]


def test_a_split_may_have_classes_called_like_splits(tmp_path):
    names = [f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("car", "train")]
    write(tmp_path, *names)
    assert names_of(tmp_path) == names[:2]
    assert names_of(tmp_path, "val") == names[2:]


def test_two_complete_readings_are_a_question(tmp_path, config, vitbase_command):
    write_folder(tmp_path / "train", {"steam": 2, "diesel": 2})
    write_folder(tmp_path, {"car": 3, "bus": 3})
    for words in (("train", "finetune", "--data_path"), ("data", "check"), ("data", "pack")):
        out = [tmp_path.parent / "out"] if "pack" in words else []
        code, _, err = vitbase_command(*words, tmp_path, *out)
        assert code == 2
        assert "train may be a split, or a class called like one" in err
        assert "would be read as splits (train: train): --layout splits confirms that" in err
        assert "--layout classes takes the folders as classes (bus, car, train)" in err
    classes = open_train_val(config(data_path=str(tmp_path), layout="classes"))
    assert classes.train.class_names == ("bus", "car", "train")
    splits = open_train_val(config(data_path=str(tmp_path), layout="splits"))
    assert splits.train.class_names == ("diesel", "steam")
    assert any("left out: bus, car" in note for note in splits.notes)
    val = open_val(config(data_path=str(tmp_path), layout="classes"), ("bus", "car", "train"))
    assert val.class_names == ("bus", "car", "train")
    for layout, classes in (("classes", 3), ("splits", 2)):
        out = vitbase_command("data", "check", tmp_path, "--layout", layout, "--json")[1]
        assert out.count('"median_height"') == 2
        assert len(open_source(str(tmp_path), "train", "o", layout).class_names) == classes


def test_several_folders_for_one_split_are_a_question(tmp_path):
    write(tmp_path, *(f"train_{n}/{name}/1.jpg" for n in (1, 2) for name in "ab"), *SPLITS[2:])
    with pytest.raises(DataError, match=r"train_1, train_2, val may be a split.*--layout splits"):
        names_of(tmp_path)
    assert names_of(tmp_path, reading="splits") == ["train_1/a/1.jpg", "train_1/b/1.jpg"]
    assert "left out: train_2" in notes_of(tmp_path, reading="splits")


@pytest.mark.parametrize(
    ("files", "first", "told"),
    [
        # Splits under names that nobody knows, splits in every class, a folder around classes.
        ([f"{s}/{c}/1.jpg" for s in ("x", "y") for c in "ab"], "x", "folders x, y hold the same"),
        (
            [f"{c}/{s}/1.jpg" for c in ("cat", "dog") for s in ("test", "train")],
            "cat",
            "hold the same folders each (test, train)",
        ),
        ([f"photos/{c}/1.jpg" for c in ("cat", "dog")], "photos", "a single folder, 'photos'"),
        ([f"photos/{c}/x/1.jpg" for c in ("cat", "dog")], "photos", "a single folder, 'photos'"),
        ([f"photos/{s}/a/1.jpg" for s in ("train", "val")], "photos", "a single folder, 'photos'"),
    ],
)
def test_folders_that_hold_the_same_folders_are_a_question(
    tmp_path, vitbase_command, files, first, told
):
    write(tmp_path, *files)
    commands = {("train", "finetune", "--data_path"): "--data_path ", ("data", "check"): ""}
    for words, option in commands.items():
        code, _, err = vitbase_command(*words, tmp_path)
        assert code == 2
        assert told in err
        assert f"give {option}{tmp_path / first}" in err
        assert "--layout classes" in err
    assert names_of(tmp_path, reading="classes") == sorted(files)


def test_a_folder_for_images_and_one_for_the_rest(tmp_path):
    write(tmp_path, "images/a/1.jpg", "images/b/1.jpg", "annotations/1.xml")
    with pytest.raises(DataError, match=f"take it away, or give --data_path {tmp_path}/images"):
        names_of(tmp_path)


def test_folders_of_a_class_may_repeat_where_it_has_images_of_its_own(tmp_path):
    write(tmp_path, *(f"{c}/{n}" for c in "ab" for n in ("1.jpg", "x/1.jpg", "y/1.jpg")))
    assert len(names_of(tmp_path)) == 6
    other = write(tmp_path / "o", *(f"{c}/{n}" for c in "ab" for n in ("i/1.jpg", "l/1.txt")))
    assert len(names_of(other)) == 2


# Files of many images beside folders


@pytest.mark.parametrize("name", ["backup.tar", "features.parquet", "all.zip", "data_batch_1"])
def test_folders_win_over_a_stray_archive(tmp_path, name, vitbase_command):
    write(tmp_path, "a/1.jpg", "b/1.jpg", "info.txt", "a.txt", "b.txt", name)
    assert names_of(tmp_path) == ["a/1.jpg", "b/1.jpg"]
    assert name in notes_of(tmp_path)
    splits = write(tmp_path / "s", *SPLITS, name)
    assert names_of(splits) == ["train/a/1.jpg", "train/b/1.jpg"]
    assert f"left out: {name}" in notes_of(splits)
    assert name in vitbase_command("data", "check", tmp_path / "s")[1]


def test_what_an_archive_was_unpacked_from_is_a_stray(tmp_path):
    synsets = ("n01440764", "n01443537")
    write(tmp_path, *(f"{s}/1.JPEG" for s in synsets), *(f"{s}.tar" for s in synsets))
    assert names_of(tmp_path) == [f"{s}/1.JPEG" for s in synsets]
    shards = tmp_path / "shards"
    for split in ("train", "val"):
        write_tar(shards / split / "0.tar", samples(3))
    write(shards, "backup.tar")
    assert len(open_source(str(shards), "train", "data_path")) == 3


@pytest.mark.parametrize("kind", ["packed", "numbered", "idx", "parquet"])
@pytest.mark.parametrize("folders", [("a/1.jpg", "b/1.jpg"), SPLITS], ids=["classes", "splits"])
def test_two_whole_data_sets_are_a_question(tmp_path, vitbase_command, kind, folders):
    root = write(tmp_path / "data", *folders)
    if kind == "packed":
        write_folder(tmp_path / "other", {"a": 2, "b": 2})
        assert vitbase_command("data", "pack", tmp_path / "other", tmp_path / "out")[0] == 0
        for path in (tmp_path / "out").iterdir():
            path.rename(root / path.name)
    elif kind == "numbered":
        for number in range(2):
            write_tar(root / f"part-{number:06}.tar", samples(4))
    elif kind == "idx":
        write_idx(root)
    else:
        write(root, "train-00000-of-00001.parquet")
    with pytest.raises(DataError) as error:
        recognise(str(root), "data_path")
    layout = "classes" if folders != SPLITS else "splits"
    words = {"idx": "IDX files", "parquet": "Parquet or Arrow files"}.get(kind, "tar shards")
    assert "may be read in two ways: as class folders" in str(error.value)
    assert f"or as {words}. Give --layout {layout} or --layout files" in str(error.value)
    told = str(error.value).removeprefix("--data_path ")
    assert vitbase_command("data", "check", root)[::2] == (2, f"vitbase: error: {told}\n")
    assert len(names_of(root, reading=layout)) == 2
    if kind != "parquet":
        source = open_source(str(root), "train", "data_path", "files")
        assert not isinstance(source.images, Files)
        assert len(source) > 2


def test_a_folder_of_pictures_beside_shards_is_left_out(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    write(tmp_path, "preview/1.jpg", "logs/1.txt")
    source = open_source(str(tmp_path), "train", "data_path")
    assert source.labels.tolist() == [0, 1, 2]
    assert source.notes[0] == f"{tmp_path}: left out: preview."


def test_images_side_by_side_beside_a_stray_tar(tmp_path):
    images = [f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in range(1, 7)]
    write(tmp_path, *images, "val/backup.tar")
    labels = ("490", "361", "171", "822", "297", "482")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(labels))
    for reading in ("auto", "classes"):  # which is said of the training images
        source = open_source(str(tmp_path / "val"), "val", "val_data_path", reading)
        assert source.labels.tolist() == [65, 970, 230, 809, 516, 57]


def test_asked_for_what_is_not_there(tmp_path):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match="no folder there is called like one"):
        names_of(tmp_path, reading="splits")
    with pytest.raises(DataError, match="there is no file of images"):
        names_of(tmp_path, reading="files")
    assert np.array_equal(open_source(str(tmp_path), "train", "o", "classes").labels, [0, 1])
