import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from made_images import encode, photo, write_folder, write_idx

from vitbase.errors import DataError, ImageError
from vitbase.sources.folders import read_folder
from vitbase.sources.layouts import recognise
from vitbase.sources.open import open_source, open_train_val, open_val


def test_folder(tmp_path):
    write_folder(tmp_path, {"zebra": 3, "ant": 2, "Bee": 1})
    source = read_folder(tmp_path, "data_path")
    assert source.class_names == ("Bee", "ant", "zebra")  # sorted as every other system does
    assert source.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert source.name(2) == "ant/1.JPEG"
    assert source.describe(2) == str(tmp_path / "ant" / "1.JPEG")
    assert source.read(2) == (tmp_path / "ant" / "1.JPEG").read_bytes()
    assert source.notes == ()
    part = source.take(np.array([5, 1]))
    assert [part.name(i) for i in range(2)] == ["zebra/2.JPEG", "ant/0.JPEG"]
    assert part.labels.tolist() == [2, 1]


def test_all_suffixes_nested_folders_and_names_beyond_ascii(tmp_path):
    names = ["a.jpg", "b.PNG", "deep/er/c.webp", "ü 字.Jpeg", "e.tif", "f.bmp", "g.gif"]
    for name in names:
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "x.jpeg").touch()
    source = read_folder(tmp_path, "data_path")
    found = [source.name(i) for i in range(len(source))]
    assert sorted(found) == sorted([f"one/{name}" for name in names] + ["two/x.jpeg"])
    assert found == sorted(found, key=os.fsencode)


def test_strays_are_counted_and_hidden_entries_passed_over(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "Thumbs.db").touch()
    (tmp_path / "readme.txt").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / ".hidden.jpg").touch()
    source = read_folder(tmp_path, "data_path")
    assert len(source) == 2
    strays, passed_over = source.notes
    assert "1 file was left out" in strays
    assert "readme.txt" in strays
    assert "3 system or hidden entries were passed over (the first: .cache)" in passed_over


def test_a_link_to_a_folder_above_ends(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b" / "root").symlink_to(tmp_path, target_is_directory=True)
    assert len(read_folder(tmp_path, "data_path")) == 3


def test_empty_class(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 0})
    with pytest.raises(DataError, match=r"--data_path .*class folder 'b' holds no images"):
        read_folder(tmp_path, "data_path")


def test_wrong_layouts_say_what_was_found(tmp_path):
    with pytest.raises(DataError, match="found an empty folder"):
        read_folder(tmp_path, "data_path")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"only 1 files \(notes.txt\)"):
        read_folder(tmp_path, "data_path")
    for number in range(3):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(DataError, match=r"<class>/<image>.*found 3 images directly in it"):
        read_folder(tmp_path, "data_path")


def test_a_vanished_file_is_an_image_error(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 1, "b": 1}), "data_path")
    (tmp_path / "a" / "0.JPEG").unlink()
    with pytest.raises(ImageError, match="No such file"):
        source.read(0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", r"--val_data_path .*nowhere: there is no such folder \(there is "),
        ("file", "is a file; expected a folder"),
    ],
)
def test_missing_folder(tmp_path, path, message):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / path), "val", "val_data_path")


def test_embedded(config):
    data = open_train_val(config(data_path="embedded", num_classes=10, num_train_images=10_000))
    assert (len(data.train), len(data.val)) == (10_000, 2_000)
    assert data.train.class_names == data.val.class_names
    assert data.notes == ()
    assert data.held_out == ()
    assert len(open_val(config(data_path="embedded"), data.train.class_names)) == 2_000


def test_no_data_path(config):
    with pytest.raises(DataError, match="--data_path FOLDER"):
        open_train_val(config())
    with pytest.raises(DataError, match="--val_data_path FOLDER"):
        open_val(config())


def test_idx_folder(config, tmp_path):
    write_idx(tmp_path)
    data = open_train_val(config(data_path=str(tmp_path)))
    assert (len(data.train), len(data.val)) == (30, 10)
    assert data.val.decoded


def test_evaluation_images_without_class_names_take_those_of_training(config, tmp_path):
    write_idx(tmp_path / "named")
    write_idx(tmp_path / "plain")
    (tmp_path / "named" / "labels.txt").write_text("ant\nbee\ncow\n")
    options = {"data_path": str(tmp_path / "named"), "val_data_path": str(tmp_path / "plain")}
    assert open_train_val(config(**options)).val.class_names == ("ant", "bee", "cow")


def test_idx_without_test_files(config, tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no file t10k-images"):
        open_train_val(config(data_path=str(tmp_path)))


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test", "Val"])
def test_split_folders(config, tmp_path, val):
    write_folder(tmp_path / "train", {"a": 3, "b": 2})
    write_folder(tmp_path / val, {"a": 1, "b": 1})
    data = open_train_val(config(data_path=str(tmp_path)))
    assert (len(data.train), len(data.val)) == (5, 2)
    assert data.held_out == ()
    assert len(open_val(config(val_data_path=str(tmp_path)))) == 2


def test_train_alone_is_held_out_of(config, tmp_path):
    write_folder(tmp_path / "train", {"a": 4, "b": 4})
    data = open_train_val(config(data_path=str(tmp_path)))
    assert (len(data.train), len(data.val)) == (6, 2)
    with pytest.raises(DataError, match="no folder val or"):
        open_train_val(config(data_path=str(tmp_path), val_data_path=str(tmp_path)))


def test_a_class_may_be_called_train(config, tmp_path):
    write_folder(tmp_path, {"train": 3, "car": 3, "test": 2})
    with pytest.raises(DataError, match=r"classes car, test, train: --layout classes confirms"):
        open_train_val(config(data_path=str(tmp_path)))
    sure = config(data_path=str(tmp_path), layout="classes")
    assert open_train_val(sure).train.class_names == ("car", "test", "train")
    shutil.rmtree(tmp_path / "car")  # train and test hold images, no class folders
    with pytest.raises(DataError, match=r"'train' would have to hold a folder for every class"):
        open_train_val(config(data_path=str(tmp_path)))
    assert open_train_val(sure).train.class_names == ("test", "train")


def test_holdout_is_named_and_the_same_for_evaluation(config, tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 20})
    options = {"data_path": str(tmp_path), "holdout_fraction": 0.2}
    data = open_train_val(config(**options))
    assert np.bincount(data.val.labels).tolist() == [2, 4]
    assert len(data.train) == 24
    held_out = tuple(data.val.name(i) for i in range(6))
    assert data.held_out == held_out
    val = open_val(config(**options), ("a", "b"))
    assert tuple(val.describe(i) for i in range(6)) == tuple(str(tmp_path / p) for p in held_out)
    assert any("held out" in note for note in data.notes)
    assert any("held out" in note for note in val.notes)


def test_evaluation_classes_are_mapped_by_name(config, tmp_path):
    write_folder(tmp_path / "t", {"a": 2, "b": 2, "c": 2})
    write_folder(tmp_path / "v", {"b": 1, "c": 2})
    options = {"data_path": str(tmp_path / "t"), "val_data_path": str(tmp_path / "v")}
    data = open_train_val(config(**options))
    assert data.val.class_names == ("a", "b", "c")
    assert data.val.labels.tolist() == [1, 2, 2]
    assert any("1 of 3 classes have no evaluation images: a" in note for note in data.notes)
    shutil.rmtree(tmp_path / "t")  # evaluation alone does not need the training images
    val = open_val(config(**options), ["c", "x", "b"])
    assert val.labels.tolist() == [2, 0, 0]
    assert val.class_names == ("c", "x", "b")


def test_unknown_evaluation_class(config, tmp_path):
    write_folder(tmp_path / "t", {"a": 2, "b": 2})
    write_folder(tmp_path / "v", {"a": 1, "beetle": 1})
    options = {"data_path": str(tmp_path / "t"), "val_data_path": str(tmp_path / "v")}
    with pytest.raises(DataError, match=r"does not know: beetle\. It knows a, b"):
        open_train_val(config(**options))


def test_synset_folders_stand_for_readable_names_in_sorted_order(config, tmp_path):
    write_folder(tmp_path, {"n01440764": 1, "n01443537": 1})
    val = open_val(config(val_data_path=str(tmp_path)), ["tench", "goldfish"])
    assert val.class_names == ("tench", "goldfish")
    assert val.labels.tolist() == [0, 1]
    assert "n01440764 is 'tench'" in val.notes[0]
    with pytest.raises(DataError, match="does not know"):
        open_val(config(val_data_path=str(tmp_path)), ["tench", "goldfish", "shark"])


def test_training_folder_as_evaluation_folder_is_noted(config, tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    data = open_train_val(config(data_path=str(tmp_path), val_data_path=str(tmp_path)))
    assert any("accuracies will be those of training images" in note for note in data.notes)


def test_class_counts(config, tmp_path):
    write_folder(tmp_path / "three", {"a": 2, "b": 2, "c": 2})
    path = str(tmp_path / "three")
    with pytest.raises(DataError, match=r"3 classes .*give --num_classes 3"):
        open_train_val(config(data_path=path, num_classes=2))
    notes = open_train_val(config(data_path=path, num_classes=1000, num_train_images=7)).notes
    assert any("997 outputs" in note for note in notes)
    assert any("num_train_images is 7, but there are 3 images" in note for note in notes)
    write_folder(tmp_path / "one", {"only": 3})
    with pytest.raises(DataError, match="a single class, 'only'"):
        open_train_val(config(data_path=str(tmp_path / "one")))


def test_nothing_to_spare(config, tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"no class has an image to spare.*--val_data_path"):
        open_train_val(config(data_path=str(tmp_path)))


def test_a_listing_is_compact(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.jpg").write_bytes(encode(photo(4, 4)))
    (tmp_path / "a").mkdir()
    for number in range(3000):
        (tmp_path / "a" / f"n01440764_{number:05}.JPEG").touch()
    source = read_folder(tmp_path, "data_path")
    arrays = (source.images.bounds, source.rows, source.labels)
    held = len(source.images.paths) + sum(array.nbytes for array in arrays)
    assert held / len(source) < 60  # bytes a file


def write_shard(path, count, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for suffix, content in (("jpg", b"%03d" % number), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("set-train-0.tar", "set-val-0.tar"),
        ("train/0.tar", "val/0.tar"),
        ("Train/0.tar", "test/a-0.tar"),
    ],
)
def test_shards(config, tmp_path, train, val):
    write_shard(tmp_path / train, 9)
    write_shard(tmp_path / val, 5, 100)
    data = open_train_val(config(data_path=str(tmp_path)))
    assert [data.train.read(i) for i in range(9)] == [b"%03d" % i for i in range(9)]
    assert data.train.labels.tolist() == [0, 1, 2] * 3
    assert data.val.labels.tolist() == [1, 2, 0, 1, 2]
    assert [data.val.read(i) for i in range(5)] == [b"%03d" % i for i in range(100, 105)]
    assert data.held_out == ()


def test_shards_behind_a_url(config, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("VITBASE_CACHE", str(tmp_path / "cache"))
    write_shard(tmp_path / "0.tar", 6)
    files = fsspec.filesystem("memory")
    for name in ("set-train-0.tar", "set-val-0.tar"):
        files.pipe(f"/sources/{name}", (tmp_path / "0.tar").read_bytes())
    try:
        assert recognise("memory://sources", "data_path").has_val()
        data = open_train_val(config(data_path="memory://sources"))
        assert data.val.read(4) == b"004"
        files.rm("/sources/set-val-0.tar")
        assert not recognise("memory://sources", "data_path").has_val()
    finally:
        files.rm("/sources", recursive=True)


def test_shards_of_training_alone_are_held_out_of(config, tmp_path):
    write_shard(tmp_path / "0.tar", 30)
    data = open_train_val(config(data_path=str(tmp_path), holdout_fraction=0.2))
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    train, val = ({s.read(i) for i in range(len(s))} for s in (data.train, data.val))
    assert train | val == {b"%03d" % i for i in range(30)}
    assert data.held_out == tuple(data.val.name(i) for i in range(6))


def test_class_folders_beside_a_stray_tar_are_class_folders(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 2})
    write_folder(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / "backup.tar").touch()
    assert len(open_source(str(tmp_path), "train", "data_path")) == 5
    assert recognise(str(tmp_path), "data_path").has_val()


@pytest.mark.parametrize("layout", ["folders", "train only", "split", "idx", "embedded"])
def test_has_val(tmp_path, layout):
    path = str(tmp_path)
    if layout == "folders":
        write_folder(tmp_path, {"a": 1, "b": 1})
    elif layout == "idx":
        write_idx(tmp_path)
    elif layout == "embedded":
        path = "embedded"
    else:
        write_folder(tmp_path / "train", {"a": 1, "b": 1})
        if layout == "split":
            write_folder(tmp_path / "valid", {"a": 1, "b": 1})
    assert recognise(path, "data_path").has_val() == (layout in ("split", "idx", "embedded"))


@pytest.mark.parametrize("inside", ["MNIST/raw", "FashionMNIST/raw"])
def test_archives_where_torchvision_unpacks_them(config, tmp_path, inside):
    write_idx(tmp_path / inside)
    data = open_train_val(config(data_path=str(tmp_path)))
    assert (len(data.train), len(data.val)) == (30, 10)
    assert recognise(str(tmp_path), "data_path").has_val()


def test_labels_of_classes_without_images_need_no_output(config, tmp_path):
    # Class names may be more than the classes that occur.
    write_idx(tmp_path)
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\ndog\n")
    val = open_val(config(data_path=str(tmp_path)), ["cow", "bee", "ant"])
    assert val.labels.tolist() == [[2, 1, 0][i % 3] for i in range(10)]
