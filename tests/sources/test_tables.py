import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitbase.errors import DataError
from vitbase.sources.layouts import recognise
from vitbase.sources.open import open_source, open_train_val
from vitbase.sources.tables import read_table


@pytest.fixture
def table(tmp_path):
    """Write a table, and the files it names."""

    def write(text, files=("i/1.jpg", "i/2.jpg", "i/3.jpg", "4.png"), name="t.csv"):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(file)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def rows(source):
    return {source.name(i): source.class_names[source.labels[i]] for i in range(len(source))}


EXPECTED = {"i/2.jpg": "cat", "4.png": "ant", "i/1.jpg": "cat"}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\ni/2.jpg,cat\n4.png,ant\ni/1.jpg,cat\n",
        "\ufeffFilename, Label \r\ni/2.jpg,cat\r\n4.png , ant\r\ni/1.jpg,cat",
        'class,note,image\ncat,"a, b",./i/2.jpg\nant,,4.png\ncat,,i//1.jpg\n',
        "i/2.jpg,cat\n4.png,ant\ni/1.jpg,cat\n",
        "cat,i/2.jpg\nant,4.png\ncat,i/1.jpg\n\n",
        "image_id,category\ni/2,cat\n4,ant\ni/1,cat\n",
    ],
)
def test_one_label(table, text):
    path = table(text)
    source = open_source(str(path), "train", "data_path")
    assert list(rows(source).items()) == list(EXPECTED.items())  # in the table's order
    assert source.class_names == ("ant", "cat")
    assert source.labels.dtype == np.int64
    assert source.read(1) == b"4.png"
    assert source.describe(0) == str(path.parent / "i/2.jpg")


def test_tabs_and_absolute_paths(table, tmp_path):
    path = table(f"path\tlabel\n{tmp_path}/4.png\ta,b\ni/1.jpg\tc\n", name="t.tsv")
    source = read_table(path, "train", "data_path")
    assert source.class_names == ("a,b", "c")
    assert [source.read(i) for i in range(2)] == [b"4.png", b"i/1.jpg"]


def test_numbers_are_sorted_by_value(table):
    source = read_table(table("path,label\n4.png,10\ni/1.jpg,9\ni/2.jpg,2\n"), "train", "o")
    assert source.class_names == ("2", "9", "10")
    assert source.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize("separator", [";", "|", " ; "])
def test_several_labels(table, separator):
    text = f"path,labels\ni/1.jpg,dog{separator}ant\ni/2.jpg,cat\n4.png,cat{separator}dog\n"
    source = read_table(table(text), "train", "o")
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels.dtype == np.float32
    assert source.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_a_column_for_every_class(table):
    text = "dog,path,split,ant\n1,i/1.jpg,train,0\n0,i/2.jpg,train,0\n1,4.png,val,1\n"
    source = read_table(table(text), "train", "o")
    assert source.class_names == ("ant", "dog")
    assert source.labels.tolist() == [[0, 1], [0, 0]]
    assert source.labels.dtype == np.float32
    assert "1 images are of no class" in source.notes[0]


def test_splits(config, table):
    text = "path,label,split\ni/1.jpg,a,train\ni/2.jpg,b,Train\ni/3.jpg,b,valid\n4.png,c,test\n"
    path = table(text)
    assert rows(read_table(path, "train", "o")) == {"i/1.jpg": "a", "i/2.jpg": "b"}
    assert rows(read_table(path, "val", "o")) == {"i/3.jpg": "b"}
    data = open_train_val(config(data_path=str(path)))
    # The classes are the whole table's, whichever split is asked for.
    assert data.train.class_names == data.val.class_names == ("a", "b", "c")
    assert data.held_out == ()
    table(text.replace("valid", "test"))
    assert list(rows(read_table(path, "val", "o"))) == ["i/3.jpg", "4.png"]
    table(text.replace("valid", "train").replace("test", "train"))
    assert not recognise(str(path), "data_path").has_val()
    with pytest.raises(DataError, match="no row is of split val or"):
        read_table(path, "val", "o")
    table(text.replace("valid", "third"))
    with pytest.raises(DataError, match=r"t.csv:4: 'third' is no split"):
        read_table(path, "train", "o")


def test_several_labels_in_another_split_make_all_multi_hot(table):
    path = table("path,labels,split\ni/1.jpg,a,train\ni/2.jpg,b,train\ni/3.jpg,a;b,val\n")
    assert read_table(path, "train", "o").labels.tolist() == [[1, 0], [0, 1]]


def test_without_a_split_some_are_held_out(config, tmp_path, table):
    files = [f"{label}{i}.jpg" for label in "ab" for i in range(10)]
    text = "path,label\n" + "".join(f"{file},{file[0]}\n" for file in files)
    path = table(text, files)
    data = open_train_val(config(data_path=str(path), holdout_fraction=0.2))
    assert np.bincount(data.val.labels).tolist() == [2, 2]
    assert set(rows(data.train)) | set(data.held_out) == set(files)
    both = open_train_val(config(data_path=str(path), val_data_path=str(path)))
    assert any("accuracies will be those of training images" in note for note in both.notes)


def test_two_tables_in_one_folder(config, table):
    train = table("path,labels\ni/1.jpg,a;b\ni/2.jpg,b\ni/3.jpg,c\n", name="train.csv")
    val = table("path,labels\n4.png,b\ni/3.jpg,a\n", name="val.csv")
    data = open_train_val(config(data_path=str(train), val_data_path=str(val)))
    assert data.val.class_names == ("a", "b", "c")
    assert data.val.labels.tolist() == [[0, 1, 0], [1, 0, 0]]  # multi-hot as in training
    assert data.val.labels.dtype == np.float32
    assert not any("training images themselves" in note for note in data.notes)
    assert any("1 of 3 classes have no evaluation images: c" in note for note in data.notes)
    table("path,labels\n4.png,b\ni/3.jpg,a\ni/1.jpg,c\n", name="val.csv")
    with pytest.raises(DataError, match="several labels each, the training images one"):
        open_train_val(config(data_path=str(val), val_data_path=str(train)))


def test_columns_of_classes_are_renumbered(config, table):
    train = table("path,c,a,b\ni/1.jpg,1,0,0\ni/2.jpg,0,1,1\n", name="train.csv")
    val = table("path,b,c\n4.png,1,0\ni/3.jpg,1,1\n", name="val.csv")
    data = open_train_val(config(data_path=str(train), val_data_path=str(val)))
    assert data.train.class_names == data.val.class_names == ("a", "b", "c")
    assert data.val.labels.tolist() == [[0, 1, 0], [0, 1, 1]]
    table("path,b,x\n4.png,1,0\ni/3.jpg,1,1\n", name="val.csv")
    with pytest.raises(DataError, match="does not know: x"):
        open_train_val(config(data_path=str(train), val_data_path=str(val)))


def test_a_column_passed_over_is_noted(table):
    source = read_table(table("path,label,class\n4.png,1,ant\ni/1.jpg,2,bee\n"), "train", "o")
    assert source.class_names == ("1", "2")
    assert any("'label' is used, 'class' is not" in note for note in source.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a header"),
        ("path,label\n", "a header, but no rows"),
        ("picture,label\n4.png,ant\n", r"no column of images. Its header is 'picture,label'"),
        ("path,kind\n4.png,ant\n", r"no column of labels. Its header is 'path,kind'"),
        ("path\n4.png\n", "no column of labels"),
        ("path,a,b\n4.png,0,2\n", "path,a,b.*, and line 2 has '2', neither 0 nor 1"),
        ("path,a,a\n4.png,0,1\n", "two columns have the same name"),
        ("path,label\n4.png,\n", r"t.csv:2: the label is empty"),
        ("path,label\n4.png,a\ni/1.jpg,a;;b\n", r"t.csv:3: the label is empty"),
        ("path,label\n4.png,a\ni/1.jpg,b\n./4.png,c\n", r"t.csv:4: '4.png' stands in line 2 alr"),
        ("path,label\n4.png,a\ni/1.jpg\n", r"t.csv:3 has 1 columns, the first line 2"),
        (
            "path,label\n" + "".join(f"no{i}.jpg,a\n" for i in range(5)) + "4.png,b\n",
            r"5 of 6 images are not there: no0.jpg, no1.jpg, no2.jpg, …. Paths are relative to /",
        ),
        ("path,label\nnowhere/x.jpg,a\n4.png,b\n", "1 of 2 images are not there: nowhere/x.jpg"),
        ("path,label\ni,a\n4.png,b\n", "1 of 2 images are not there: i"),
    ],
)
def test_faults(table, text, message):
    with pytest.raises(DataError, match=message):
        read_table(table(text), "train", "data_path")


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read --data_path .*none\.csv: .*No such file"):
        open_source(str(tmp_path / "none.csv"), "train", "data_path")
    (tmp_path / "latin.csv").write_bytes(b"path,label\n\xe9.jpg,a\n")
    with pytest.raises(DataError, match="Cannot read"):
        open_source(str(tmp_path / "latin.csv"), "train", "data_path")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(DataError, match=r"is a file; expected a folder, or a table \(.csv, .tsv\)"):
        open_source(str(tmp_path / "x.xlsx"), "train", "data_path")


def test_a_listing_is_compact(table):
    files = [f"photo_{i:05}.jpg" for i in range(2000)]
    text = "path,label\n" + "".join(f"{file},{i % 7}\n" for i, file in enumerate(files))
    source = read_table(table(text, files), "train", "o")
    arrays = (source.images.bounds, source.rows, source.labels)
    assert (len(source.images.paths) + sum(array.nbytes for array in arrays)) / len(source) < 60


NAMES = st.text("abc xyz_.", min_size=1, max_size=8).filter(lambda name: name.strip(" ;|,"))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(labels=st.lists(st.sets(NAMES.map(str.strip), min_size=1, max_size=3), min_size=1))
def test_labels_come_back(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("images")
    lines = ["path,labels"]
    for number, names in enumerate(labels):
        (folder / f"{number}.jpg").touch()
        lines.append(f'{number}.jpg,"{";".join(names)}"')
    (folder / "t.csv").write_text("\n".join(lines))
    source = read_table(folder / "t.csv", "train", "o")
    assert list(source.class_names) == sorted(set().union(*labels))
    for number, names in enumerate(labels):
        row = source.labels[number]
        found = np.flatnonzero(row) if source.labels.ndim == 2 else [row]
        assert {source.class_names[i] for i in found} == names
        assert os.path.basename(source.describe(number)) == f"{number}.jpg"
