"""`vitbase data pack` as a user meets it, and training on what it leaves."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_images import encode, photo, write_folder
from made_runs import rows_of
from made_shards import contents_of

from vitbase import console
from vitbase.cli.main import main
from vitbase.curation.packing import files as pack_files
from vitbase.curation.packing.split import verify_shards
from vitbase.data.decode import read_size
from vitbase.sources.shards.source import open_shards

TINY = [
    *("--model", "testing", "--image_height", "32", "--image_width", "32", "--batch_size", "4"),
    *("--epoch_size", "2", "--warmup_epochs", "0", "--device_target", "CPU", "--flip", "False"),
    *("--log_every_steps", "1"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Folders train and val, with class folders; val has no image of the first class."""
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "train", {"bag": 6, "boot": 6, "coat": 6}, size=(60, 70))
    write_folder(root / "val", {"boot": 2, "coat": 3}, size=(60, 71))
    return root


def losses_and_scores(run: Path) -> list[tuple[float, ...]]:
    return [
        (row["loss"],) if "loss" in row else (row["eval_loss"], row["eval_top1"])
        for row in rows_of(run)
    ]


def test_both_splits_are_packed_and_at_once_trained_on(vitbase_command, tmp_path, photos):
    out = tmp_path / "shards"
    code, told, err = vitbase_command("data", "pack", photos, out)
    assert (code, err) == (0, "")
    assert [line.split(" MiB")[0][:34] for line in told.splitlines()] == [
        "train: 18 images in 1 shards, 0.1",
        "val: 5 images in 1 shards, 0.0",
    ]
    assert verify_shards(out) == 2
    assert open_shards(str(out), "val", "x").labels.tolist() == [1, 1, 2, 2, 2]
    for name, path in (("files", photos), ("shards", out)):
        words = ("--data_path", path, "--output_dir", tmp_path / f"run of {name}")
        assert vitbase_command("train", "finetune", *words, *TINY)[0] == 0
    assert losses_and_scores(tmp_path / "run of shards") == losses_and_scores(
        tmp_path / "run of files"
    )
    assert len(losses_and_scores(tmp_path / "run of files")) == 8 + 2


def test_one_split_after_the_other_gets_the_same_class_numbers(vitbase_command, tmp_path, photos):
    out, both = tmp_path / "out", tmp_path / "both"
    assert vitbase_command("data", "pack", photos, both)[0] == 0
    assert vitbase_command("data", "pack", photos, out, "--split", "train")[0] == 0
    words = ("--split", "val", "--val_data_path", photos / "val")
    assert vitbase_command("data", "pack", photos / "train", out, *words)[0] == 0
    assert contents_of(out) == contents_of(both)


def test_short_side_and_quality(vitbase_command, tmp_path, photos):
    sizes = []
    for quality in (50, 95):
        out = tmp_path / str(quality)
        words = ("--short_side", 48, "--quality", quality)
        code, told, _ = vitbase_command("data", "pack", photos, out, *words)
        assert code == 0
        assert "(18 resized)" in told
        source = open_shards(str(out), "train", "x")
        assert {read_size(source.read(index)) for index in range(18)} == {(48, 56)}
        sizes.append((out / "train-000000.tar").stat().st_size)
    assert sizes[0] < sizes[1]


def test_killed_it_continues_to_the_same_shards(vitbase_command, tmp_path):
    write_folder(tmp_path / "photos", {"a": 2, "b": 2}, size=(500, 600))
    for number in range(240):  # many megabytes, of noise that JPEG does not make smaller
        content = (tmp_path / "photos" / "a" / "0.JPEG").read_bytes()
        (tmp_path / "photos" / "a" / f"x{number}.jpg").write_bytes(content + b"%d" % number)
    options = ("--shard_megabytes", "1", "--num_workers", "2")
    assert (
        vitbase_command("data", "pack", tmp_path / "photos", tmp_path / "whole", *options)[0] == 0
    )
    expected = contents_of(tmp_path / "whole")
    assert len(expected) > 4
    out = tmp_path / "out"
    words = [sys.executable, "-m", "vitbase", "data", "pack", str(tmp_path / "photos"), str(out)]
    with subprocess.Popen([*words, *options]) as process:
        while process.poll() is None and not list(out.glob("train-000001.tar*")):
            time.sleep(0.0005)
        process.kill()
    left = contents_of(out)
    assert left["train-000000.tar"] == expected["train-000000.tar"]
    assert set(left) != set(expected)
    code, _, err = vitbase_command("train", "finetune", "--data_path", out, *TINY)
    assert code == 2
    assert "was not finished" in err
    code, told, _ = vitbase_command("data", "pack", tmp_path / "photos", out, *options)
    assert code == 0
    assert "of the shards were there already" in told
    assert contents_of(out) == expected


def test_a_full_disk_is_told_and_packing_continues(vitbase_command, tmp_path, photos, monkeypatch):
    write = pack_files.ShardWriter._write
    left = [20]

    def fill(self, *parts: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *parts)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pack_files.ShardWriter, "_write", fill)
        code, _, err = vitbase_command("data", "pack", photos, out)
    assert code == 2
    assert err == (
        f"vitbase: error: {out}: the disk is full. Free some space and start the same command "
        "again: finished shards are kept.\n"
    )
    assert vitbase_command("data", "pack", photos, out)[0] == 0
    assert verify_shards(out) == 2


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that this process may list, but not write into, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    yield folder
    if privileged:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["", "inside"])
def test_a_folder_that_cannot_be_written(vitbase_command, forbidden, place):
    code, _, err = vitbase_command("data", "pack", "embedded", forbidden / place)
    assert code == 2
    assert f"Cannot write to {forbidden}" in err
    assert "Permission denied. Pack into a folder that can be written." in err
    assert "Traceback" not in err


def test_bad_images_are_named_and_bounded(vitbase_command, tmp_path):
    root = write_folder(tmp_path / "photos", {"a": 4, "b": 4})
    (root / "a" / "x.jpg").write_bytes(encode(photo(60, 60))[:-200])
    code, told, _ = vitbase_command("data", "pack", root, tmp_path / "out")
    assert code == 0
    assert "train: 8 images" in told
    assert "  left out a/x.jpg: the JPEG is truncated" in told
    words = ("--max_bad_images", 0)
    code, _, err = vitbase_command("data", "pack", root, tmp_path / "other", *words)
    assert code == 2
    assert "a/x.jpg: the JPEG is truncated" in err
    assert "more than max_bad_images 0 allows" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short_side", "32"], "packed otherwise: short_side none instead of 32"),
        (["--shard_megabytes", "1"], "packed otherwise: shard_megabytes 256 instead of 1"),
        (["--shuffle", "True"], "packed otherwise: shuffle False instead of True"),
        (["--quality", "80"], "--quality 80 is that of images made smaller"),
        (["--short_side", "0"], "--short_side 0: expected at least 1 pixel"),
        (["--short_side", "9", "--quality", "101"], "--quality 101: expected 1 to 100"),
        (["--shard_megabytes", "0"], "--shard_megabytes 0: expected at least 1"),
        (["--num_workers", "0"], "--num_workers 0: expected at least 1"),
        (["--short_sid", "9"], "Unknown option '--short_sid'. Did you mean 'short_side'"),
    ],
)
def test_other_and_impossible_options(vitbase_command, photos, packed, options, message):
    before = contents_of(packed)
    code, _, err = vitbase_command("data", "pack", photos, packed, *options)
    assert code == 2
    assert message in err
    assert contents_of(packed) == before


@pytest.fixture(scope="module")
def packed(tmp_path_factory, photos) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    main(["data", "pack", str(photos), str(out)])
    return out


@pytest.mark.parametrize("place", ["", "train", "shards"])
def test_not_among_the_images_themselves(vitbase_command, photos, place):
    code, _, err = vitbase_command("data", "pack", photos, photos / place)
    assert code == 2
    assert "Pack into a folder outside" in err
    assert sorted(path.name for path in photos.iterdir()) == ["train", "val"]


def test_other_images_are_refused(vitbase_command, photos, packed, tmp_path):
    write_folder(tmp_path / "other", {"bag": 3, "boot": 3, "coat": 2})
    code, _, err = vitbase_command("data", "pack", tmp_path / "other", packed)
    assert code == 2
    assert "other images (18, now 8)" in err


def test_progress_stands_in_a_log_now_and_then(vitbase_command, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    code, _, err = vitbase_command("data", "pack", photos, tmp_path / "out")
    assert code == 0
    lines = err.splitlines()
    assert "train: 8 of 18 images (44.4%)" in lines
    assert lines[-1] == "val: 5 of 5 images (100.0%)"


def test_in_a_terminal_there_is_a_bar_and_a_table(tmp_path, photos):
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "vitbase", "data", "check", str(photos)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how a terminal says that nobody writes any more
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "18/18" in text
    assert "layout: class folders in train and val" in text
    assert "\x1b[1;32mNothing here would make training wrong." in text


def test_help_reads_well(vitbase_command):
    code, out, _ = vitbase_command("data", "pack", "--help")
    assert code == 0
    text = " ".join(out.replace("│", "").split())
    assert text.startswith("usage: vitbase data pack PATH OUT")
    assert "Interrupted, the same command continues." in text
    assert "size at which a shard ends (default: 256; 1024 of pixels)" in text


# The same images give the same run


def write_csv(root: Path, table: Path) -> None:
    """List class folders in a table, in the order in which they are listed themselves."""
    rows = ["path,label,split\n"]
    for split in ("train", "val"):
        for path in sorted((root / split).rglob("*.JPEG")):
            rows.append(f"{path.relative_to(table.parent)},{path.parent.name},{split}\n")
    table.write_text("".join(rows))


def write_parquet(root: Path, out: Path) -> None:
    import datasets

    out.mkdir()
    names = sorted(path.name for path in (root / "train").iterdir())
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    for split, spelling in (("train", "train"), ("val", "validation")):
        paths = sorted((root / split).rglob("*.JPEG"))
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
            "label": [names.index(path.parent.name) for path in paths],
        }
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.to_parquet(str(out / f"{spelling}-00000-of-00001.parquet"))


@pytest.mark.filterwarnings("ignore")
def test_folders_shards_a_table_and_parquet_give_the_same_losses(
    vitbase_command, tmp_path, photos, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    root = tmp_path / "data"
    shutil.copytree(photos, root)
    write_csv(root, root / "table.csv")
    write_parquet(root, tmp_path / "parquet")
    assert vitbase_command("data", "pack", root, tmp_path / "shards")[0] == 0
    places = {
        "folders": root,
        "shards": tmp_path / "shards",
        "table": root / "table.csv",
        "parquet": tmp_path / "parquet",
    }
    found = {}
    for name, place in places.items():
        run = tmp_path / "runs" / name
        words = ("--data_path", place, "--output_dir", run)
        code, _, err = vitbase_command("train", "finetune", *words, *TINY)
        assert code == 0, err
        found[name] = losses_and_scores(run)
    assert len(found["folders"]) == 10
    for name in places:
        assert found[name] == found["folders"], name


def test_a_single_folder_its_shards_and_its_table_hold_out_the_same_images(
    vitbase_command, tmp_path, photos
):
    root = tmp_path / "data"
    shutil.copytree(photos / "train", root)
    paths = sorted(root.rglob("*.JPEG"))
    rows = [f"{path.relative_to(root)},{path.parent.name}\n" for path in paths]
    (root / "table.csv").write_text("path,label\n" + "".join(rows))
    assert vitbase_command("data", "pack", root, tmp_path / "shards")[0] == 0
    found = []
    for name, place in (("a", root), ("b", tmp_path / "shards"), ("c", root / "table.csv")):
        run = tmp_path / "runs" / name
        words = ("--data_path", place, "--output_dir", run)
        code, _, err = vitbase_command("train", "finetune", *words, *TINY)
        assert code == 0, err
        found.append((losses_and_scores(run), (run / "held_out.txt").read_text()))
    assert found[0] == found[1] == found[2]
