"""`vitbase predict`: what it takes for images, what it keeps of them, and what it goes on from."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import encode, photo, write_idx
from made_looks import build, write_photos
from made_shards import write_tar

import vitbase
from vitbase.errors import ConfigError, DataError, WeightsError
from vitbase.evaluation.classifier import Classifier
from vitbase.shipping.opened import open_classifier
from vitbase.shipping.outputs import PART
from vitbase.shipping.predict import Prediction
from vitbase.sources.named import in_memory, open_named
from vitbase.weights.save import save_weights

LABELS = ("cat", "dog", "../x", "a/b", "a_b")
BAD = b"no image"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_weights(build(), path, labels=LABELS)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos", 6)


@pytest.fixture
def predict(vitbase_command, weights):
    """Run `vitbase predict` with these words and the weights."""
    return lambda *words: vitbase_command("predict", *words, "--checkpoint_path", weights)


@pytest.fixture
def give_input(monkeypatch):
    """Put bytes on the standard input."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def rows_of(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def named(out: str) -> list[str]:
    return [row["image"] for row in rows_of(out)]


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# The classifier


def test_a_classifier_says_what_the_model_does(weights, photos):
    loaded = vitbase.load_model(weights)
    classifier = open_classifier(weights, device_target="CPU")
    source = open_named([photos])
    found = [*classifier.classify(source, top=2, batch_size=4, num_workers=2)]
    assert [answer.index for answer in found] == [*range(6)]
    alone = [*classifier.classify(source, top=2, batch_size=1)]
    seen = vitbase.inspect(loaded, photos, figures=["gradcam"], device_target="CPU")
    for answer, other, image in zip(found, alone, seen.images, strict=True):
        assert answer.classes == other.classes
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert classifier.class_names[answer.classes[0]] == image.target[0]
        assert answer.probabilities[0] == pytest.approx(image.target[1], abs=1e-5)


def test_any_network_classifies_and_sees_what_the_loader_gives(weights):
    preprocess = vitbase.load_model(weights).preprocess
    seen: list[torch.Tensor] = []

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.clone())
        return torch.arange(3.0).repeat(len(pixels), 1)

    classifier = Classifier(network, preprocess, ["a"], path=weights, num_classes=3, temperature=2)
    jpeg = encode(photo(40, 40))
    found = classifier.classify_bytes([jpeg, BAD, b"", jpeg], top=9)
    assert classifier.class_names == ("a", "1", "2")
    assert classifier.num_classes == 3
    assert [answer.classes for answer in found] == [(2, 1, 0), (), (), (2, 1, 0)]
    expected = torch.tensor([1.0, 0.5, 0.0]).softmax(0).tolist()
    assert found[0].probabilities == pytest.approx(expected)
    assert "not a readable image" in found[1].error
    assert "it is empty" in found[2].error
    (pixels,) = seen
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (4, preprocess.height, preprocess.width, 3)
    assert classifier.classify_bytes([]) == []
    nothing = Classifier(lambda p: torch.full((len(p), 3), torch.nan), preprocess, [], path=weights)
    with pytest.raises(WeightsError, match="NaN or infinity"):
        nothing.classify_bytes([jpeg])


@pytest.mark.parametrize("streams", [2, 3])
def test_several_batches_computed_at_once_come_in_order(weights, photos, streams):
    (photos / "4.png").write_bytes(BAD)
    source = open_named([photos] * 7)
    classifier = open_classifier(weights, device_target="CPU")
    expected = [*classifier.classify(source, batch_size=4)]
    threads, sizes, compute = set(), [], classifier.network

    def network(pixels: torch.Tensor) -> torch.Tensor:
        threads.add((threading.get_ident(), torch.get_num_threads()))
        sizes.append(len(pixels))
        return compute(pixels)

    classifier.streams, classifier.network = streams, network
    before = torch.get_num_threads()
    found = [*classifier.classify(source, batch_size=4)]
    assert (max(sizes), sum(sizes)) == (4, 42)
    assert len(threads) > 1
    assert {number for _, number in threads} == {1}
    assert torch.get_num_threads() == before
    for answer, other in zip(found, expected, strict=True):
        assert (answer.index, answer.classes) == (other.index, other.classes)
        assert (answer.error is None) == (other.error is None)
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    few = source.take(np.arange(2 * streams * 4 - 1))
    threads.clear()
    assert len([*classifier.classify(few, batch_size=4)]) == len(few)
    assert threads == {(threading.get_ident(), before)}  # with all cores for one batch
    for number, _ in enumerate(classifier.classify(source, batch_size=4)):
        if number == 5:
            break

    def failing(pixels: torch.Tensor) -> torch.Tensor:
        raise WeightsError("it does not compute")

    classifier.network = failing
    with pytest.raises(WeightsError, match="does not compute"):
        next(classifier.classify(source, batch_size=4))


def test_what_computes_is_chosen_by_name(weights, predict, photos, tmp_path):
    code, _, err = predict(photos, "--runtime", "eagre")
    assert code == 2
    assert "There is no runtime 'eagre'; there are auto, eager" in err
    assert predict(photos, "--runtime", "eager")[0] == 0
    features = tmp_path / "features.safetensors"
    save_weights(build(num_classes=0), features)
    with pytest.raises(WeightsError, match="has no head"):
        open_classifier(features)


# What is named


def test_words_may_stand_anywhere_among_options(predict, photos, vitbase_command, tmp_path):
    first, second = photos / "0.png", photos / "1.png"
    for words in (
        (first, "--top", 3, second, "--json"),
        (first, "--json", second, "--top=3"),
        ("--top", 3, first, second, "--json"),
    ):
        code, out, err = predict(*words)
        assert code == 0, err
        assert named(out) == [str(first), str(second)]
        assert all(len(row["classes"]) == 3 for row in rows_of(out))
    code, _, err = predict(first, "--top", "many", second)
    assert "Option 'top' should be a valid integer (got 'many')" in err
    save_weights(build(), tmp_path / "w.safetensors")
    words = (tmp_path / "w.safetensors", "--out", tmp_path / "o", first, "--limit", 1, second)
    code, out, err = vitbase_command("inspect", *words, "--figures", "rollout", "--json")
    assert code == 0, err
    assert rows_of(out)[0]["left_out"] == 1


def test_folders_patterns_and_lists(predict, photos, tmp_path, give_input, monkeypatch):
    (photos / "deep").mkdir()
    (photos / "0.png").rename(photos / "deep" / "x.jpg")
    (photos / "notes.txt").write_text("no image")
    assert named(predict(photos, "--json")[1]) == [str(photos / f"{n}.png") for n in range(1, 6)]
    assert str(photos / "deep" / "x.jpg") in named(predict(photos, "--json", "--recursive")[1])
    assert named(predict(photos / "[12].png", "--json")[1]) == [
        str(photos / "1.png"),
        str(photos / "2.png"),
    ]
    _, out, err = predict(photos / "**", "--json")
    assert len(named(out)) == 6
    assert "1 passed over, not called like an image" in err
    assert named(predict(tmp_path / "phot*", "--json")[1])[0] == str(photos / "1.png")
    (photos / "[12].png").write_bytes((photos / "1.png").read_bytes())
    assert named(predict(photos / "[12].png", "--json")[1]) == [str(photos / "[12].png")]
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "list.txt"
    listed.write_text('photos/1.png\n\n  photos/[12].png\n"photos/2.png"\n')
    assert predict("--list", listed, "--json")[0] == 2  # one that is called so, with its quotes
    listed.write_text("photos/1.png\n\n  photos/[12].png  \n")
    assert named(predict("--list", listed, "--json")[1]) == ["photos/1.png", "photos/[12].png"]
    give_input(b"photos/2.png\0photos/3.png\0")
    out = predict("photos/1.png", "--list", "-", "--json")[1]
    assert named(out) == ["photos/1.png", "photos/2.png", "photos/3.png"]
    give_input((photos / "1.png").read_bytes())
    out = predict("-", photos / "1.png", "--json")[1]
    first, second = rows_of(out)
    assert first["image"] == "standard input"
    assert first["classes"] == second["classes"]


def test_nothing_named_or_nothing_there(predict, photos, tmp_path, give_input):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "stale.txt").write_text(f"{photos / '1.png'}\n{photos / 'gone.png'}\n")
    (tmp_path / "x.tar").write_bytes(b"")
    give_input(b"")
    for words, told in (
        ((tmp_path / "empty",), f"There are no images in the folder {tmp_path / 'empty'}."),
        ((photos / "9*.png",), f"Nothing matches {photos / '9*.png'}."),
        ((photos / "[1-.png",), "Nothing matches"),
        ((f"{photos}/\udce9*",), "Nothing matches"),
        ((tmp_path / "*.txt",), "not called like one"),
        ((photos / "gone.png",), "gone.png does not exist"),
        (("--list", tmp_path / "empty.txt"), "empty.txt names no image"),
        (("--list", "-"), "The list on the standard input names no image"),
        (("--list", tmp_path / "none.txt"), "Cannot read the list"),
        (("--list", photos), "it is a folder"),
        (("--list", tmp_path / "stale.txt"), "1 of 2 paths in the list"),
        (("-", "--list", "-"), "not both"),
        (("-", "-"), "give '-' once"),
        ((tmp_path / "x.tar",), "is a file of many images: give its folder"),
        ((photos / "1.png", "--split", "val"), "no data set is named"),
        ((photos, "--link"), "--link is of --sort_into"),
        ((photos, "--unsure", "2"), "Option 'unsure' is a probability"),
        ((photos, "--top", "0"), "Option 'top' should be at least 1"),
        ((photos, "--batch_size", "0"), "Option 'batch_size' should be at least 1"),
        ((photos, "--num_workers", "0"), "num_workers 0: expected at least 1"),
        ((photos, "--recursive", "--sort_into", photos / "x"), "lies in"),
        ((), "Usage: vitbase predict"),
    ):
        code, out, err = predict(*words)
        assert (code, out) == (2, ""), words
        assert told in err, words
        assert len(err.splitlines()) == 1, words


def test_data_sets_need_no_labels(predict, tmp_path):
    jpegs = [encode(photo(30, 40, seed)) for seed in range(4)]
    members = [(f"{number}.jpg", jpeg) for number, jpeg in enumerate(jpegs)]
    write_tar(tmp_path / "shards" / "new-000000.tar", members)
    code, out, err = predict(tmp_path / "shards", "--json")
    assert code == 0, err
    shard = tmp_path / "shards" / "new-000000.tar"
    assert named(out) == [f"{shard}: {number}.jpg" for number in range(4)]
    with pytest.raises(DataError, match="has no label"):  # who trains on them is told so still
        vitbase.train(
            vitbase.load_config(
                "finetune", data_path=str(tmp_path / "shards"), output_dir=str(tmp_path / "run")
            )
        )
    (tmp_path / "shards" / "new-000000.tar").rename(tmp_path / "shards" / "train-0.tar")
    (tmp_path / "split" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train-0.tar").rename(tmp_path / "split" / "train" / "0.tar")
    for words in ((tmp_path / "split",), (tmp_path / "split", "--recursive", "--split", "train")):
        assert len(named(predict(*words, "--json")[1])) == 4
    (tmp_path / "split" / "deeper").mkdir()  # images, beside which shards are strays
    (tmp_path / "split" / "deeper" / "x.jpg").write_bytes(jpegs[0])
    assert "Those in 'deeper' and the like" in predict(tmp_path / "split")[2]
    assert len(named(predict(tmp_path / "split", "--recursive", "--json")[1])) == 1
    (tmp_path / "table.csv").write_text("path,note\na.jpg,x\nb.jpg,y\na.jpg,z\n")
    for name, jpeg in zip(("a.jpg", "b.jpg"), jpegs, strict=False):
        (tmp_path / name).write_bytes(jpeg)
    code, table, err = predict(tmp_path / "table.csv", tmp_path / "a.jpg", "--json")
    assert code == 0, err
    assert named(table) == [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "a.jpg", "a.jpg")]
    assert rows_of(table)[0]["classes"] == rows_of(out)[0]["classes"]


def test_data_sets_have_splits(predict, tmp_path, photo_folder):
    write_idx(tmp_path / "idx", train=4, val=3)
    everything = named(predict(tmp_path / "idx", "--json")[1])
    assert len(everything) == len({*everything}) == 7
    assert named(predict(tmp_path / "idx", "--json", "--split", "val")[1]) == everything[4:]
    for path in (tmp_path / "idx").glob("train*"):
        path.unlink()
    assert named(predict(tmp_path / "idx", "--json")[1]) == everything[4:]
    code, _, err = predict(photo_folder, "--json")
    assert code == 2
    assert "Those in 'bag' and the like: --recursive" in err
    code, out, err = predict(photo_folder, "--layout", "classes", "--json")
    assert code == 0, err
    assert {*named(out)} == {str(path) for path in photo_folder.rglob("*.*")}
    code, _, err = predict(tmp_path / "none", "--split", "val")
    assert (code, "option" in err) == (2, False)


def test_images_of_a_data_set_of_hugging_face_are_named(predict, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    images = [{"bytes": encode(photo(30, 30, seed)), "path": None} for seed in range(2)]
    (tmp_path / "table").mkdir()
    for name in ("train", "test"):
        table = pyarrow.table({"image": images})
        parquet.write_table(table, tmp_path / "table" / f"{name}-00000.parquet")
    code, out, err = predict(
        tmp_path / "table", "--sort_into", tmp_path / "sorted", "--json", "--top", 1
    )
    assert code == 0, err
    told = rows_of(out)[0]
    assert (told["images"], sum(told["classes"].values())) == (4, 4)
    assert {Path(name).name for name in below(tmp_path / "sorted")} >= {"0.jpg", "1.jpg"}
    assert len(below(tmp_path / "sorted")) == 4


# What is kept


def test_one_unreadable_image_costs_the_code_and_nothing_else(predict, photos, tmp_path):
    (photos / "3.png").write_bytes(BAD)
    code, out, err = predict(photos, "--json")
    assert code == 3
    assert "1 of 6 images could not be read" in err
    assert [row["image"] for row in rows_of(out) if "error" in row] == [str(photos / "3.png")]
    out_file, folder = tmp_path / "out.csv", tmp_path / "sorted"
    code, out, err = predict(photos, "--out", out_file, "--sort_into", folder)
    assert code == 3
    assert f"{photos / '3.png'}: not a readable image" in err
    assert "5 of 6 images. " in out
    with out_file.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 6
    assert rows[3]["class"] == rows[3]["p1"] == ""
    assert "not a readable image" in rows[3]["error"]
    assert len(below(folder)) == 5


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_row_for_each_image(predict, photos, tmp_path, suffix):
    shown = rows_of(predict(photos, "--json", "--top", 2, "--unsure", 0.3)[1])
    out = tmp_path / f"out.{suffix}"
    words = (photos, "--out", out, "--top", 2, "--unsure", 0.3)
    code, said, err = predict(*words)
    assert code == 0, err
    assert f"a row for each image: {out}" in said
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == [out.name]
    if suffix == "jsonl":
        assert rows_of(out.read_text()) == shown
        return
    if suffix == "csv":
        with out.open(newline="") as file:
            rows = [*csv.DictReader(file)]
        assert {row["unsure"] for row in rows} <= {"True", "False"}
        for row in rows:
            row |= {n: float(row[n]) for n in ("probability", "p1", "p2")}
            row |= {"unsure": row["unsure"] == "True", "error": row["error"] or None}
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        rows = table.to_pylist()
        assert json.loads(table.schema.metadata[b"vitbase"])["count"] == 6
    assert [*rows[0]] == [
        *("image", "class", "probability", "unsure", "error"),
        *("class1", "p1", "class2", "p2"),
    ]
    for row, other in zip(rows, shown, strict=True):
        assert row["error"] is None
        assert {n: row[n] for n in ("image", "class", "unsure")} == {
            n: other[n] for n in ("image", "class", "unsure")
        }
        for place, found in enumerate(other["classes"], 1):
            assert row[f"class{place}"] == found["class"]
            assert row[f"p{place}"] == pytest.approx(found["probability"], rel=1e-6)
    code, _, err = predict(*words)
    assert code == 2
    assert f"--out {out} is there already" in err


def test_below_a_threshold_an_image_is_unsure(predict, photos, tmp_path):
    every = rows_of(predict(photos, "--json")[1])
    between = sorted(row["probability"] for row in every)[2] + 1e-5
    code, out, _ = predict(photos, "--json", "--unsure", between)
    assert code == 0
    for row, before in zip(rows_of(out), every, strict=True):
        unsure = before["probability"] < between
        assert row["unsure"] == unsure
        assert row["class"] == ("unsure" if unsure else before["class"])
        assert row["classes"] == before["classes"]
    assert predict(photos, "--unsure", between)[1].count(": unsure\n") == 3
    folder = tmp_path / "sorted"
    _, out, _ = predict(photos, "--unsure", between, "--sort_into", folder)
    assert f"unsure (below {between:g}): 3" in out
    assert sum(name.startswith("unsure/") for name in below(folder)) == 3
    assert len(below(folder)) == 6


# Half a file


@pytest.fixture
def half(predict, photos, tmp_path):
    """Predict into a file, and leave it as a kill after some rows would."""

    def leave(rows: int, *words: object, torn: bytes = b"") -> tuple[Path, list[dict]]:
        out = tmp_path / "out.jsonl"
        code, _, err = predict(photos, "--out", out, *words)
        assert code == 0, err
        kept = rows_of(out.read_text())
        lines = out.read_bytes().splitlines(keepends=True)
        out.unlink()
        facts = tmp_path / "facts"  # the first line: what the rows are of
        beside = out.with_name(out.name + PART)
        beside.write_bytes(facts.read_bytes() + b"".join(lines[:rows]) + torn)
        return out, kept

    return leave


@pytest.fixture(autouse=True)
def keep_facts(monkeypatch, tmp_path):
    """Keep the first line of what is written beside."""
    from vitbase.shipping import keeping

    facts_of = keeping.facts_of

    def kept(*args, **options):
        facts = facts_of(*args, **options)
        (tmp_path / "facts").write_text(json.dumps(facts) + "\n")
        return facts

    monkeypatch.setattr(keeping, "facts_of", kept)


@pytest.mark.parametrize("torn", [b"", b'{"image": "x', b'{"image": 3}\n{}\n', b"\0" * 100, b"\n"])
def test_half_a_file_is_gone_on_from(predict, photos, half, monkeypatch, torn):
    out, rows = half(3, torn=torn)
    looked_at: list[int] = []
    classify = Classifier.classify

    def watched(self, source, **options):
        looked_at.append(len(source))
        return classify(self, source, **options)

    monkeypatch.setattr(Classifier, "classify", watched)
    code, said, err = predict(photos, "--out", out)
    assert code == 0, err
    assert looked_at == [3]
    assert "3 of them were done before" in said
    found = rows_of(out.read_text())
    for row, other in zip(found, rows, strict=True):
        assert row["image"] == other["image"]
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert found[:3] == rows[:3]
    assert not out.with_name(out.name + PART).exists()


def test_an_interruption_leaves_what_goes_on(predict, photos, tmp_path, monkeypatch):
    from vitbase.shipping import outputs

    add, out = outputs.Output.add, tmp_path / "out.csv"

    def interrupted(self, found):
        add(self, found)
        if self.done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Output, "add", interrupted)
        assert predict(photos, "--out", out, "--sort_into", tmp_path / "s")[0] == 130
    assert not out.exists()
    code, said, err = predict(photos, "--out", out, "--sort_into", tmp_path / "s", "--json")
    assert code == 0, err
    assert (rows_of(said)[0]["done_before"], rows_of(said)[0]["images"]) == (4, 6)
    assert len(below(tmp_path / "s")) == 6
    assert len(out.read_text().splitlines()) == 7


def test_half_of_another_file_is_left_alone(
    predict, photos, half, vitbase_command, tmp_path, monkeypatch
):
    out, _ = half(3)
    beside = out.with_name(out.name + PART)
    before = beside.read_bytes()
    other = tmp_path / "other.safetensors"
    save_weights(build(gelu="erf"), other, labels=LABELS)
    refused = "out.jsonl.part is half of another output: "
    for words, told in (
        ((photos, "--top", 3), "top 5 instead of 3"),
        ((photos, "--unsure", 0.5), "unsure none instead of 0.5"),
        ((photos / "1.png",), "other images, 6 images instead of 1"),
        ((photos, "--image_size", 48), "other image sizes"),
    ):
        code, _, err = predict(*words, "--out", out)
        assert code == 2
        assert f"{refused}{told}" in err
    words = ("predict", photos, "--checkpoint_path", other, "--out", out)
    assert f"{refused}other weights" in vitbase_command(*words)[2]
    assert beside.read_bytes() == before
    (photos / "5.png").write_bytes(encode(photo(9, 9), "PNG"))
    assert f"{refused}other images." in predict(photos, "--out", out)[2]
    for content in (b"mine", b"mine\n", b'{"version": 7}\n', b"[]\n"):
        beside.write_bytes(content)
        code, _, err = predict(photos, "--out", out)
        assert code == 2
        assert "out.jsonl.part is no beginning of out.jsonl: move it away" in err
        assert beside.read_bytes() == content
    beside.unlink()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    beside.symlink_to(tmp_path / "elsewhere")
    assert predict(photos, "--out", out)[0] == 2
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_two_do_not_write_one_file(predict, photos, half):
    import fcntl

    out, _ = half(2)
    with out.with_name(out.name + PART).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = predict(photos, "--out", out)
    assert code == 2
    assert "is being written by another process" in err
    assert predict(photos, "--out", out)[0] == 0


def test_a_file_that_cannot_be_written(predict, photos, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    for out, told in (
        (tmp_path / "out.xls", "call the file .csv, .jsonl, .parquet"),
        (tmp_path / "folder.csv", "is a folder"),
        (tmp_path / "none" / "out.csv", "there is no folder"),
        (tmp_path / "file" / "out.csv", "there is no folder"),
    ):
        code, _, err = predict(photos, "--out", out)
        assert code == 2
        assert told in err
    assert {p.name for p in tmp_path.iterdir()} == {"folder.csv", "file", "photos"}
    os.mkfifo(tmp_path / f"pipe.csv{PART}")
    code, _, err = predict(photos, "--out", tmp_path / "pipe.csv")
    assert (code, "Cannot write" in err) == (2, True)


# Sorted


@pytest.fixture
def sure(monkeypatch):
    """Let every image be of a class that the test names, whatever the model says."""

    def choose(name: str) -> None:
        def answer(self, source, **options):
            from vitbase.evaluation.classifier import Answer

            for index in range(len(source)):
                yield Answer(index, (self.class_names.index(name),), (0.9,))

        monkeypatch.setattr(Classifier, "classify", answer)

    return choose


def labelled(folder: Path, labels: tuple[str, ...]) -> Path:
    path = folder / "labelled.safetensors"
    save_weights(build(num_classes=len(labels)), path, labels=labels)
    return path


@pytest.mark.parametrize(
    ("labels", "folders"),
    [
        (("../x", "a/b", "a_b"), ("_x", "a_b-2", "a_b")),
        (("..", "/etc/passwd", "."), ("_", "_etc_passwd", "_-2")),
        (("unsure", "Unsure", "un\x00sure"), ("unsure-2", "Unsure-3", "un_sure")),
        (("\x1b[2J", "two\nlines", "\u202eb"), ("_[2J", "two_lines", "_b")),
        (("CON", "nul.txt", "Thumbs.db"), ("_CON", "_nul.txt", "_Thumbs.db")),
        (("Cat", "cat", "cat."), ("Cat", "cat-2", "cat-3")),
        (("-rf", ".hidden", " a "), ("rf", "hidden", "a")),
        (("x" * 300, "é" * 200, "C:\\x"), ("x" * 180, "é" * 90, "C__x")),
    ],
)
def test_folders_of_classes_are_safe_and_different(
    labels, folders, vitbase_command, photos, tmp_path, sure
):
    weights, folder = labelled(tmp_path, labels), tmp_path / "sorted"
    for label in labels:
        sure(label)
        words = ("--checkpoint_path", weights, "--sort_into", folder)
        code, _, err = vitbase_command("predict", photos / "0.png", *words)
        assert code == 0, err
    assert below(folder) == {f"{name}/0.png" for name in folders}
    assert {p.name for p in tmp_path.iterdir()} <= {
        *("photos", "sorted", "labelled.safetensors", "facts", "cache")
    }


def test_files_keep_their_names_and_nothing_is_overwritten(predict, tmp_path, sure):
    for number, name in enumerate(("a", "b", "c", "d")):
        (tmp_path / name).mkdir()
        content = encode(photo(30, 30, 1 if name == "d" else number))
        (tmp_path / name / "x.jpg").write_bytes(content)
    (tmp_path / "a" / "\x1b[2J.jpg").write_bytes(encode(photo(30, 30, 9)))
    sure("dog")
    folder = tmp_path / "sorted"
    (folder / "dog").mkdir(parents=True)
    (folder / "dog" / "x.jpg").write_bytes(b"somebody's")
    words = (*(tmp_path / name for name in "abcd"), "--sort_into", folder)
    assert predict(*words)[0] == 0
    expected = {"x.jpg", "x-2.jpg", "x-3.jpg", "x-4.jpg", "x-5.jpg", "_[2J.jpg"}
    assert below(folder) == {f"dog/{name}" for name in expected}
    assert (folder / "dog" / "x.jpg").read_bytes() == b"somebody's"
    assert (folder / "dog" / "x-3.jpg").read_bytes() == (tmp_path / "b" / "x.jpg").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert predict(*words)[0] == 0  # a second time changes nothing
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert times[folder / "dog" / "x-2.jpg"] == (tmp_path / "a" / "x.jpg").stat().st_mtime_ns


def test_links_instead_of_copies(predict, photos, tmp_path, sure, monkeypatch, give_input):
    sure("cat")
    hard, soft = tmp_path / "hard", tmp_path / "soft"
    (tmp_path / "link.png").symlink_to(photos / "0.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert predict("photos", "link.png", "--sort_into", hard, "--link")[0] == 0
    assert (hard / "cat" / "0.png").samefile(photos / "0.png")
    assert not (hard / "cat" / "0.png").is_symlink()
    assert (hard / "cat" / "link.png").samefile(photos / "0.png")
    assert len(below(hard)) == 7

    def refused(*args, **options):
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refused)
        for _ in range(2):
            assert predict("photos", "--sort_into", soft, "--link")[0] == 0
        assert predict("photos/1.png", "--sort_into", tmp_path / "copy")[0] == 0
    assert os.readlink(soft / "cat" / "0.png") == str(photos / "0.png")
    assert below(tmp_path / "copy") == {"cat/1.png"}
    give_input((photos / "0.png").read_bytes())
    code, _, err = predict("-", "--sort_into", tmp_path / "x", "--link")
    assert (code, "is no file that a link could lead to" in err) == (2, True)
    give_input((photos / "0.png").read_bytes())
    assert predict("-", "--sort_into", tmp_path / "x")[0] == 0
    assert below(tmp_path / "x") == {"cat/standard input.png"}


def test_nothing_is_made_outside_the_folder(predict, photos, tmp_path, sure):
    sure("cat")
    (tmp_path / "outside").mkdir()
    (tmp_path / "sorted").mkdir()
    (tmp_path / "sorted" / "cat").symlink_to(tmp_path / "outside")
    code, _, err = predict(photos, "--sort_into", tmp_path / "sorted")
    assert code == 2
    assert "is a link to another place" in err
    assert [*(tmp_path / "outside").iterdir()] == []
    (tmp_path / "file").write_text("")
    code, _, err = predict(photos, "--sort_into", tmp_path / "file")
    assert (code, "Cannot sort" in err) == (2, True)
    jpeg = encode(photo(20, 20))
    names = [("../../../up.jpg", jpeg), ("/etc/abs.jpg", jpeg), ("a/..jpg.jpg", jpeg)]
    write_tar(tmp_path / "shards" / "x-000.tar", names)
    code, _, err = predict(tmp_path / "shards", "--sort_into", tmp_path / "s")
    assert code == 0, err
    assert all(name.startswith("cat/") and name.count("/") == 1 for name in below(tmp_path / "s"))
    assert not {*tmp_path.parent.rglob("up.jpg")} - {*(tmp_path / "s").rglob("up.jpg")}


def test_pixels_are_sorted_as_png(predict, tmp_path):
    write_idx(tmp_path / "idx", train=3, val=2)
    folder = tmp_path / "sorted"
    assert predict(tmp_path / "idx", "--sort_into", folder)[0] == 0
    assert len(below(folder)) == 5
    assert all(Path(name).suffix == ".png" for name in below(folder))
    (path,) = folder.rglob("t10k*0].png")
    source = in_memory([path.read_bytes()])
    assert source.describe(0) == "image 1"


# From Python


def test_from_python(weights, photos):
    (photos / "1.png").write_bytes(BAD)
    found = vitbase.predict([photos], weights, top=2, unsure=1.0)
    assert [row.unsure for row in found] == [True, False, True, True, True, True]
    assert found[0].chosen == "unsure"
    assert found[1].chosen is None
    assert all(Prediction.from_dict(row.to_dict()) == row for row in found)
    assert np.mean([len(row.classes) for row in found]) == pytest.approx(10 / 6)
    for options in ({"top": 0}, {"unsure": 0.0}, {"unsure": float("nan")}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="Option"):
            vitbase.predict([photos], weights, **options)
