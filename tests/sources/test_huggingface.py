import json
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow
import pytest
from made_images import encode, photo
from pyarrow import parquet

from vitbase.errors import DataError, ImageError
from vitbase.sources.huggingface import open_dataset
from vitbase.sources.layouts import recognise
from vitbase.sources.open import open_source, open_train_val

NAMES = ["cat", "ant", "dog"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    datasets.disable_progress_bars()


def photos(count, seed=0):
    return [encode(photo(8, 9, seed=100 * seed + i)) for i in range(count)]


def build(count=6, seed=0, labels=None, kind=None, **columns):
    """Make a data set of encoded images and labels."""
    images = [{"bytes": data, "path": None} for data in photos(count, seed)]
    labels = [i % 3 for i in range(count)] if labels is None else labels
    features = {"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=NAMES)}
    content = {"image": images, "label": labels}
    for name, (values, feature) in columns.items():
        content[name], features[name] = values, feature
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def save(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def test_a_saved_data_set(config, tmp_path):
    place = save(tmp_path / "set", train=build(9), validation=build(4, 1), test=build(3, 2))
    source = open_source(place, "train", "data_path")
    assert [source.read(i) for i in range(9)] == photos(9)  # the very bytes, not decoded
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert source.labels.dtype == np.int64
    assert source.class_names == tuple(NAMES)  # in the set's own order
    assert source.describe(3) == f"{place} (train)[3]"
    data = open_train_val(config(data_path=place))
    assert [data.val.read(i) for i in range(4)] == photos(4, 1)
    assert (len(data.train), len(data.val), data.held_out) == (9, 4, ())


@pytest.mark.parametrize("names", [["validation"], ["val"], ["test"], ["valid", "test"]])
def test_names_of_splits(tmp_path, names):
    splits = {name: build(4 if i == 0 else 3, 1) for i, name in enumerate(names)}
    place = save(tmp_path / "set", train=build(), **splits)
    assert len(open_source(place, "val", "o")) == 4
    assert recognise(place, "data_path").has_val()


def test_a_split_that_is_not_there(tmp_path):
    place = save(tmp_path / "set", train=build(), extra=build())
    assert not recognise(place, "data_path").has_val()
    with pytest.raises(DataError, match=r"--o .*no split val or .*; it has train, extra"):
        open_source(place, "val", "o")


def test_rows_of_no_split_serve_for_any_and_are_held_out_of(config, tmp_path):
    build(30).save_to_disk(tmp_path / "set")
    place = str(tmp_path / "set")
    assert len(open_source(place, "val", "o")) == 30
    data = open_train_val(config(data_path=place, holdout_fraction=0.2))
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    held_out = [int(row) for row in data.held_out]
    assert [data.val.read(i) for i in range(6)] == [photos(30)[row] for row in held_out]
    assert data.val.describe(0) == f"{place}[{held_out[0]}]"
    train = {data.train.read(i) for i in range(24)}
    assert not train & {data.val.read(i) for i in range(6)}


@pytest.mark.parametrize("inside", ["", "data"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files(config, tmp_path, inside, kind):
    folder = tmp_path / "set" / inside
    folder.mkdir(parents=True)
    (folder / "README.md").touch()
    for number in range(2):
        part = build(5, number)
        path = folder / f"train-{number:05}-of-00002.{kind}"
        if kind == "parquet":
            part.to_parquet(path)
        else:
            part.save_to_disk(tmp_path / f"part{number}")
            next((tmp_path / f"part{number}").glob("*.arrow")).rename(path)
    source = open_source(str(tmp_path / "set"), "train", "data_path")
    assert [source.read(i) for i in range(10)] == photos(5, 0) + photos(5, 1)
    assert source.labels.tolist() == [0, 1, 2, 0, 1] * 2
    assert source.class_names == tuple(NAMES)
    assert not recognise(str(tmp_path / "set"), "data_path").has_val()


def test_parquet_of_plain_structs_and_splits(config, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for name, count in (("train", 6), ("test", 3)):
        images = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(photos(count))]
        labels = ["dog" if i % 2 else "ant" for i in range(count)]
        table = pa.table({"picture": images, "label": labels})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    data = open_train_val(config(data_path=str(tmp_path)))
    assert data.train.class_names == data.val.class_names == ("ant", "dog")
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [data.val.read(i) for i in range(3)] == photos(3)


def test_a_name_on_the_hub(monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        if arguments[0] == "owner/none":
            raise FileNotFoundError("Couldn't find any data file\nat /somewhere.")
        return datasets.DatasetDict(train=build(), test=build(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_source("hf:owner/name", "train", "data_path")) == 6
    assert recognise("hf:owner/name:small", "data_path").has_val()
    assert asked == [("owner/name", None), ("owner/name", "small")]
    with pytest.raises(DataError, match=r"--data_path hf:owner/none cannot be opened: Couldn't"):
        open_source("hf:owner/none", "train", "data_path")


def test_labels_that_are_numbers_or_words(tmp_path):
    numbers = build(labels=[10, 2, 10, 2, 30, 2], kind=datasets.Value("int64"))
    words = build(labels=["b", "a", "c", "a", "b", "a"], kind=datasets.Value("string"))
    place = save(tmp_path / "set", train=numbers, test=words)
    source = open_source(place, "train", "o")
    assert source.class_names == ("2", "10", "30")
    assert source.labels.tolist() == [1, 0, 1, 0, 2, 0]
    source = open_source(place, "val", "o")
    assert source.class_names == ("a", "b", "c")
    assert source.labels.tolist() == [1, 0, 2, 0, 1, 0]


def test_several_labels(tmp_path):
    labels = [[0], [1, 2], [], [2, 0], [1], [1]]
    kind = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    source = open_source(save(tmp_path / "set", train=build(labels=labels, kind=kind)), "train", "")
    assert source.labels.dtype == np.float32
    assert [np.flatnonzero(row).tolist() for row in source.labels] == [sorted(x) for x in labels]


def test_the_label_among_several_columns(tmp_path):
    coarse = ([0] * 6, datasets.ClassLabel(names=["animal"]))
    place = save(tmp_path / "set", train=build(coarse_label=coarse))
    assert open_source(place, "train", "o").class_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns("image"), r"no column of them; its columns are label"),
        (lambda rows: rows.remove_columns("label"), r"no labels; its columns are image"),
        (
            lambda rows: rows.rename_columns({"label": "a"}).add_column("b", [1] * 6),
            None,  # one column of classes is the label's, whatever it is called
        ),
        (
            lambda rows: rows.rename_column("image", "left").map(
                lambda row: {"right": row["left"]}, features=two_images(rows)
            ),
            r"several columns of images \(left, right\)",
        ),
    ],
)
def test_columns(tmp_path, change, message):
    place = save(tmp_path / "set", train=change(build()))
    if message is None:
        assert open_source(place, "train", "o").class_names == tuple(NAMES)
        return
    with pytest.raises(DataError, match=message):
        open_source(place, "train", "o")


def two_images(rows):
    label = rows.features["label"]
    return datasets.Features(left=datasets.Image(), label=label, right=datasets.Image())


@pytest.mark.parametrize("label", [None, -1])
def test_secret_labels(tmp_path, label):
    place = save(tmp_path / "set", train=build(labels=[0, 1, 2, label, label, 1]))
    with pytest.raises(DataError, match=r"2 of 6 images have no label in column 'label'"):
        open_source(place, "train", "o")


def test_images_that_are_paths(tmp_path):
    paths = []
    for number, data in enumerate(photos(3)):
        paths.append(str(tmp_path / f"{number}.jpg"))
        (tmp_path / f"{number}.jpg").write_bytes(data)
    rows = datasets.Dataset.from_dict({"image": [*paths, None], "label": ["a", "b", "a", "b"]})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    (tmp_path / "1.jpg").unlink()
    source = open_dataset(str(tmp_path / "set"), "train", "o")
    assert source.read(2) == photos(3)[2]
    with pytest.raises(ImageError, match="no image in this row"):
        source.read(3)


def test_rows_in_another_order(tmp_path):
    rows = build(6).select([5, 0, 3])
    rows.save_to_disk(tmp_path / "set")
    source = open_source(str(tmp_path / "set"), "train", "o")
    assert [source.read(i) for i in range(3)] == [photos(6)[i] for i in (5, 0, 3)]
    assert source.labels.tolist() == [2, 0, 0]
    part = source.take(np.array([2, 0]))
    assert [part.read(i) for i in range(2)] == [photos(6)[i] for i in (3, 5)]
    assert part.labels.tolist() == [0, 2]
    sizes = [part.images.size(row) for row in part.rows]
    assert sizes == [len(photos(6)[i]) for i in (3, 5)]


def test_many_threads_read_the_same(tmp_path):
    source = open_source(save(tmp_path / "set", train=build(60)), "train", "o")
    expected = photos(60)
    order = np.random.default_rng(0).integers(0, 60, 3000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(
            data == expected[i] for i, data in zip(order, pool.map(source.read, order), strict=True)
        )


def test_kinds_and_splits_are_not_mixed(tmp_path):
    build().to_parquet(tmp_path / "train.parquet")
    build().to_parquet(tmp_path / "more.parquet")
    with pytest.raises(DataError, match=r"more.parquet does not begin with a split"):
        open_source(str(tmp_path), "train", "o")
    (tmp_path / "more.parquet").rename(tmp_path / "test.arrow")
    with pytest.raises(DataError, match="Parquet and Arrow files"):
        open_source(str(tmp_path), "train", "o")


def test_damaged_files(tmp_path):
    build().to_parquet(tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"--o .* cannot be opened: "):
        open_source(str(tmp_path), "train", "o")


def test_without_the_library(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    for place in (str(tmp_path), "hf:owner/name"):
        with pytest.raises(DataError, match=r"pip install 'vitbase\[datasets\]'"):
            open_source(place, "train", "data_path")


def test_twins_stay_together_when_some_are_held_out(config, tmp_path):
    images = [{"bytes": data, "path": None} for data in photos(12) * 2]
    content = {"image": images, "label": [i % 3 for i in range(12)] * 2}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    data = open_train_val(config(data_path=str(tmp_path / "set"), holdout_fraction=0.3))
    train, val = ({s.read(i) for i in range(len(s))} for s in (data.train, data.val))
    assert len(val) == 3
    assert not train & val
    assert any("24 files have a twin" in note for note in data.notes)


def parquet_of(folder, images, labels, label=None):
    """Write a Parquet file whose columns need not be what its description says."""
    table = pyarrow.table({"image": images, "label": labels})
    if label is not None:
        features = {"image": {"_type": "Image"}, "label": label}
        told = {"info": {"features": features}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(told).encode()})
    parquet.write_table(table, folder / "train.parquet")
    return str(folder)


CLASSES = {"names": ["a", "b"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (pyarrow.array([0, 7, 1, 1]), CLASSES, r"the label 7 in column 'label' is out of range"),
        (pyarrow.array([0, -5, 1, 1]), CLASSES, r"the label -5 .*it has 2 class names"),
        (pyarrow.array([[0], [9], [1], []]), {"_type": "List", "feature": CLASSES}, "label 9 in"),
        (pyarrow.array([float("nan")] * 4), None, "the name 'nan' stands there twice"),
    ],
)
def test_labels_that_no_class_has(tmp_path, labels, label, message):
    images = pyarrow.array([{"bytes": data, "path": None} for data in photos(4)])
    with pytest.raises(DataError, match=message):
        open_source(parquet_of(tmp_path, images, labels, label), "train", "o")


def test_images_of_another_kind(tmp_path):
    labels = pyarrow.array([0, 1])
    place = parquet_of(tmp_path, pyarrow.array([{"bytes": 5, "path": 6}] * 2), labels)
    with pytest.raises(DataError, match=r"\(train\) cannot be read: Unsupported cast"):
        open_source(place, "train", "o")
    images = pyarrow.array([{"bytes": None, "path": "a\0b"}, {"bytes": None, "path": "/dev/zero"}])
    source = open_source(parquet_of(tmp_path, images, labels), "train", "o")
    for index in range(2):
        with pytest.raises(ImageError, match=r"no file is called so|it is a device"):
            source.read(index)


def test_a_library_that_would_run_a_program_of_the_data(tmp_path, monkeypatch):
    place = save(tmp_path / "set", train=build())
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(DataError, match=r"datasets 3\.6\.0 would run a program"):
        open_source(place, "train", "o")
