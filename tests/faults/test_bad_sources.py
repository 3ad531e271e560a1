"""Data that is damaged, mislabelled, forbidden or out of reach: one clear message, exit code 2.

Each through `vitbase train`, and `vitbase data check` says the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from commands import run_command
from made_images import write_folder
from made_runs import losses_of
from made_server import Server, serving

from vitbase import stores as remote

TINY = [
    *("--model", "testing", "--image_height", "32", "--image_width", "32", "--batch_size", "4"),
    *("--epoch_size", "1", "--warmup_epochs", "0", "--device_target", "CPU"),
    *("--log_every_steps", "1"),
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, tmp_path, cache, monkeypatch) -> Run:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return partial(run_command, capsys)


def refused(run: Run, tmp_path: Path, data: object, *words: object) -> str:
    """Return the message with which training refuses data; the check's has no option for it."""
    output = tmp_path / "run"
    code, _, err = run(
        "train", "finetune", "--data_path", data, *words, *TINY, "--output_dir", output
    )
    assert code == 2
    assert err.startswith("vitbase: error: ")
    assert err.count("\n") == 1
    assert not output.exists()
    checked = err.replace(": --data_path FOLDER.", ".").replace("--data_path ", "")
    assert run("data", "check", data, *words)[::2] == (2, checked)
    return err


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    write_folder(root / "train", {"bag": 8, "boot": 8}, size=(60, 70))
    write_folder(root / "val", {"bag": 2, "boot": 2}, size=(60, 71))
    return root


@pytest.fixture
def shards(run, tmp_path, photos) -> Path:
    assert run("data", "pack", photos, tmp_path / "shards")[0] == 0
    return tmp_path / "shards"


# Shards


def test_a_shard_cut_short(run, tmp_path, shards):
    os.truncate(shards / "train-000000.tar", 20_000)
    message = refused(run, tmp_path, shards)
    assert f"{shards}/train-000000.tar has 20,000 bytes, manifest.json says" in message
    assert "it is cut short, or another file. Fetch it again." in message
    (shards / "manifest.json").unlink()
    (shards / "_info.json").unlink()
    message = refused(run, tmp_path, shards)
    assert f"{shards}/train-000000.tar is cut short: it ends at byte 20,000" in message


def test_a_stale_index_is_made_again(run, tmp_path, photos, shards):
    for name in ("manifest.json", "_info.json"):
        (shards / name).unlink()
    options = ("--data_path", shards, *TINY, "--output_dir")
    assert run("train", "finetune", *options, tmp_path / "before")[0] == 0
    write_folder(tmp_path / "other" / "train", {"bag": 12, "boot": 12}, size=(50, 70))
    assert run("data", "pack", tmp_path / "other", tmp_path / "new")[0] == 0
    os.replace(tmp_path / "new" / "train-000000.tar", shards / "train-000000.tar")
    code, out, _ = run("train", "finetune", *options, tmp_path / "after")
    assert code == 0
    assert "1 of 1 shards have changed since they were indexed" in out
    assert len(losses_of(tmp_path / "before")) == 4
    assert len(losses_of(tmp_path / "after")) == 6


# A remote store


@pytest.fixture
def server(shards, monkeypatch) -> Iterator[Server]:
    """A web server of the shards; the pauses between attempts are left out."""
    patient = partial(remote.Backoff, sleep=lambda seconds: None)
    monkeypatch.setattr(remote, "Backoff", patient)
    with serving(shards) as running:
        yield running


@pytest.mark.parametrize("done", [0, 3, 14])
def test_a_store_that_fails_for_a_while_changes_nothing(run, tmp_path, shards, server, done):
    options = (*TINY, "--output_dir")
    assert run("train", "finetune", "--data_path", shards, *options, tmp_path / "near")[0] == 0
    server.failures = [""] * done + ["503", "reset", "500", "short"]
    code, out, err = run("train", "finetune", "--data_path", server.url, *options, tmp_path / "far")
    assert code == 0, err
    assert server.failures == []
    assert "nreadable" not in out
    assert losses_of(tmp_path / "far") == losses_of(tmp_path / "near")


@pytest.mark.parametrize("done", [0, 3, 14])
def test_a_store_that_stays_away_ends_the_run(run, tmp_path, server, done):
    server.failures = [""] * done + ["503"] * 1000
    words = ("--data_path", server.url, *TINY, "--output_dir", tmp_path / "run")
    code, _, err = run("train", "finetune", *words)
    assert code == 2
    assert f"{server.url}" in err
    assert "no answer after 6 attempts (HTTP status 503" in err
    assert "training continues from its last checkpoint" in err
    assert "Traceback" not in err


# Tables


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("bag/0.JPEG,bag\nbag/99.JPEG,bag\n", "1 of 2 images are not there: bag/99.JPEG"),
        ("bag/0.JPEG,bag\nbag/1.JPEG,\n", "x.csv:3: the label is empty"),
        ("bag/0.JPEG,bag\nbag/0.JPEG,boot\n", "stands in line 2 already"),
        ("bag/0.JPEG,bag,1\n", "has 3 columns, the first line 2"),
        ("", "has a header, but no rows"),
    ],
)
def test_a_table_with_mistakes(run, tmp_path, photos, rows, message):
    table = photos / "train" / "x.csv"
    table.write_text("path,label\n" + rows)
    assert message in refused(run, tmp_path, table)


def test_a_table_with_classes_that_training_does_not_know(run, tmp_path, photos):
    table = photos / "val" / "x.csv"
    table.write_text("path,label\nbag/0.JPEG,bag\nboot/1.JPEG,Boots\n")
    words = ("--data_path", photos / "train", "--val_data_path", table)
    code, _, err = run("train", "finetune", *words, *TINY, "--output_dir", tmp_path / "run")
    assert code == 2
    assert "classes that the model does not know: Boots. It knows bag, boot" in err
    code, out, _ = run("data", "check", photos / "train", *words[2:])
    assert code == 1
    assert "Boots: 1 image" in out


# Evaluation images side by side


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("", "", "and no class folders, so their labels have to be in a file"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n", "no line for ILSVRC2012_val_00000002"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n0\n", "truth.txt:2: '0' is no class num"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 65\n", "no line for 1 of the 2 images"),
        ("my_synsets.txt", "n01751748\nn00000000\n", "synsets.txt:2: 'n00000000' is not a synset"),
    ],
)
def test_a_wrong_label_file(run, tmp_path, photos, name, labels, message):
    flat = tmp_path / "data" / "flat"
    flat.mkdir(parents=True)
    for number in (1, 2):
        path = photos / "val" / "bag" / f"{number - 1}.JPEG"
        shutil.copy(path, flat / f"ILSVRC2012_val_{number:08}.JPEG")
    if name:
        (flat / name).write_text(labels)
    assert message in refused(run, tmp_path, photos / "train", "--val_data_path", flat)


# Hugging Face


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels; its columns are image. Call that of the labels 'label'"),
        ([-1, -1], "2 of 2 images have no label in column 'label'"),
    ],
)
def test_a_data_set_without_labels(run, tmp_path, photos, capsys, labels, message):
    import datasets

    images = [
        {"bytes": (photos / "train" / "bag" / f"{i}.JPEG").read_bytes(), "path": None}
        for i in range(2)
    ]
    columns = {"image": images, **({"label": labels} if labels else {})}
    kinds = {"image": datasets.Image(), **({"label": datasets.Value("int64")} if labels else {})}
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(
        str(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    )
    capsys.readouterr()  # the library's own words
    assert message in refused(run, tmp_path, tmp_path / "parquet")


# Folders


def test_folders_with_nothing_to_learn_from(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "found an empty folder" in refused(run, tmp_path, tmp_path / "empty")
    write_folder(tmp_path / "hollow", {"a": 2, "b": 2, "c": 0})
    message = refused(run, tmp_path, tmp_path / "hollow")
    assert "the class folder 'c' holds no images. Fill it, or take it away." in message
    message = refused(run, tmp_path, tmp_path / "hollow" / "a")
    assert "found 2 images directly in it" in message or "labels have to be in a file" in message


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user without privileges, who then runs the test, whoever started it."""
    folder = Path(tempfile.mkdtemp())
    privileged = os.geteuid() == 0
    if privileged:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if privileged:
        os.seteuid(0)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_forbidden_folders_files_and_shards(run, unprivileged, monkeypatch):
    root = unprivileged
    monkeypatch.setenv("VITBASE_CACHE", str(root / "cache"))
    write_folder(root / "photos", {"a": 4, "b": 4})
    assert run("data", "pack", root / "photos", root / "shards")[0] == 0
    (root / "photos" / "b").chmod(0)
    message = refused(run, root, root / "photos")
    assert f"Cannot list {root}/photos/b: Permission denied" in message
    (root / "photos" / "b").chmod(0o755)
    (root / "photos" / "b" / "0.JPEG").chmod(0)
    code, out, _ = run("data", "check", root / "photos")
    assert code == 1
    assert f"{root}/photos/b/0.JPEG: cannot be read: Permission denied" in out
    (root / "shards" / "train-000000.tar").chmod(0)
    (root / "shards" / "shards-train.index").unlink()
    message = refused(run, root, root / "shards")
    assert f"Cannot read {root}/shards/train-000000.tar: Permission denied" in message
