"""What a model said of each image: written, and read again the same; other files are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from vitbase.errors import ConfigError, DataError
from vitbase.evaluation import parquet
from vitbase.evaluation.predictions import (
    COLUMNS,
    Predictions,
    check_place,
    read_predictions,
    write_predictions,
)

CLASSES = ("cat", "a\r\ndog, 'big'", "emu", "Füchse", "gnu", "5", "owl")


def made(images: int = 40, *, width: int | None = None, several: bool = False) -> Predictions:
    rng = np.random.default_rng(0)
    readable = rng.random(images) < 0.9
    top = np.where(readable[:, None], np.argsort(rng.random((images, 7)), axis=1)[:, :5], -1)
    p = np.sort(rng.random((images, 5)).astype(np.float32))[:, ::-1]
    return Predictions(
        ids=[f'sub/"{number}",\r\n\x1b é\udcff.jpg' for number in range(images)],
        labels=np.full(images, -1) if several else rng.integers(0, 7, images),
        predictions=top[:, 0],
        top_K=top,
        p_K=np.where(readable[:, None], p, np.nan).astype(np.float32),
        p_label=np.full(images, np.nan, np.float32) if several else p[:, 2],
        loss=rng.random(images).astype(np.float32),
        readable=readable,
        classes=CLASSES,
        meta={"weights": "w.safetensors", "data": "d", "preprocess": {"height": 3}},
        features=None if width is None else rng.random((images, width)).astype(np.float32),
        label_sets=[tuple(range(n % 4)) for n in range(images)] if several else None,
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("suffix", "width"), [("csv", None), ("parquet", None), ("parquet", 3)])
def test_what_is_written_is_read_again(tmp_path, monkeypatch, suffix, width, several):
    monkeypatch.setattr(parquet, "_BATCH", 7)
    path = tmp_path / f"p.{suffix}"
    before = made(width=width, several=several)
    write_predictions(path, before)
    after = read_predictions(path)
    for name in ("labels", "predictions", "top_K", "p_K", "p_label", "loss", "readable"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), name)
        assert getattr(after, name).dtype == getattr(before, name).dtype, name
    assert after.ids == [name.replace("\udcff", "\\udcff") for name in before.ids]
    assert (after.classes, after.label_sets) == (before.classes, before.label_sets)
    assert after.meta == {**before.meta, "images": 40}
    assert (after.features is None) == (width is None)
    if width is not None:
        np.testing.assert_array_equal(after.features, before.features)
    beside = {path.name, f"{path.name}.json"} if suffix == "csv" else {path.name}
    assert set(os.listdir(tmp_path)) == beside


def test_the_columns_are_as_promised(tmp_path):
    from pyarrow import parquet as pq

    write_predictions(tmp_path / "p.parquet", made(width=2))
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.schema.names == [*COLUMNS, "features"]
    kinds = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert kinds["id"] == kinds["label_name"] == "string"
    assert kinds["label"] == kinds["top5"] == "int64"
    assert kinds["p1"] == kinds["p_label"] == kinds["loss"] == "float"
    assert (kinds["readable"], kinds["features"]) == ("bool", "list<element: float>")
    facts = json.loads(table.schema.metadata[b"vitbase"])
    assert facts["classes"] == [*CLASSES]
    assert facts["images"] == 40
    write_predictions(tmp_path / "p.csv", made())
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert json.loads((tmp_path / "p.csv.json").read_text())["classes"] == [*CLASSES]


def test_none_at_all(tmp_path):
    for name in ("p.csv", "p.parquet"):
        write_predictions(tmp_path / name, made(0))
        assert len(read_predictions(tmp_path / name)) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("p_label", "other"), "no column 'p_label'"),
        (lambda text: text.replace(",True", ",perhaps"), "something else than True and False"),
        (lambda text: text + "1,2\r\n", "row 41 has 2 columns, not 18"),
        (lambda text: text[: text.index(",cat") - 1], "row|columns|images"),
        (lambda text: text.rsplit("sub", 1)[0].rstrip('"'), "39 images, and should have 40"),
        (lambda text: text.replace(",True", ",9" * 40_000 + ",True", 1), "columns|cell"),
        (lambda text: "\0" * 300_000, "no column 'id'"),
        (lambda text: text.replace("emu", "e" * 20_000), "more than 16,384 letters"),
    ],
)
def test_a_csv_that_is_none_of_predictions(tmp_path, change, told):
    path = tmp_path / "p.csv"
    write_predictions(path, made())
    path.write_bytes(change(path.read_bytes().decode()).encode())
    with pytest.raises(DataError, match=told):
        read_predictions(path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"labels": np.full(40, 7)}, "column 'label' names a class that there is not"),
        ({"predictions": np.full(40, 2**62)}, "column 'prediction' names a class"),
        ({"p_label": np.full(40, 1.5, np.float32)}, "column 'p_label' holds what is no prob"),
        ({"label_sets": [(0, 9)] * 40}, "column 'label' names a class"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_that_cannot_be(tmp_path, wrong, told, suffix):
    write_predictions(tmp_path / f"p.{suffix}", dataclasses.replace(made(), **wrong))
    with pytest.raises(DataError, match=told):
        read_predictions(tmp_path / f"p.{suffix}")


def test_facts_that_are_none(tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(path, made())
    for facts, told in (
        ("[1]", "no object"),
        ('{"classes": [1]}', "no list of names"),
        ("{", "Cannot read"),
    ):
        (tmp_path / "p.csv.json").write_text(facts)
        with pytest.raises(DataError, match=told):
            read_predictions(path)
    (tmp_path / "p.csv.json").unlink()
    alone = read_predictions(path)
    assert (alone.classes, len(alone)) == ((), 40)
    assert alone.class_name(int(alone.top_K.max())) == str(alone.top_K.max())


def test_parquet_that_is_none_of_predictions(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    path = tmp_path / "p.parquet"
    write_predictions(path, made(width=2))
    whole, table = path.read_bytes(), pq.read_table(path)
    for cut in (0, 3, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="Cannot read predictions"):
            read_predictions(path)
    for name, values, told in (
        ("id", list(range(40)), "holds no names"),
        ("id", ["x" * 20_000] * 40, "more than 16,384 letters"),
        ("label", [[1]] * 40, "'label' holds no numbers"),
        ("readable", [1] * 40, "true and false"),
        ("features", [[1.0]] * 39 + [[1.0, 2.0]], "several widths"),
        ("features", [1.0] * 40, "Cannot read"),
    ):
        other = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        pq.write_table(other, path)
        with pytest.raises(DataError, match=told):
            read_predictions(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "f.csv")
    (tmp_path / "g.parquet").mkdir()
    for name in ("f.csv", "g.parquet", "h.csv", "i.txt"):
        with pytest.raises(DataError, match=name):
            read_predictions(tmp_path / name)


def test_places_are_checked_before(tmp_path, monkeypatch):
    for name, told in (("a.json", "call the file"), ("b/c.csv", "no folder"), ("d.csv", "no room")):
        with pytest.raises(ConfigError, match=told):
            check_place(tmp_path / name, features=name == "d.csv")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitbase\[tables\]'"):
        check_place(tmp_path / "e.parquet", features=False)


def test_reading_needs_no_torch(tmp_path):
    write_predictions(tmp_path / "p.csv", made())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vitbase.evaluation.predictions import read_predictions as read\n"
        f"assert len(read({str(tmp_path / 'p.csv')!r})) == 40"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
