"""Whose a checkpoint is, what a run leaves half-written, and what a disk does to it under way."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from killed_runs import CHECKPOINT, EARLIER, NEWEST, STEPS, goes_on, options_of
from made_runs import rows_of

import vitbase
from vitbase.errors import CheckpointError, ConfigError
from vitbase.files import remove
from vitbase.runs import journal, lock
from vitbase.runs.checkpoints import find_damage, list_checkpoints, write_manifest
from vitbase.runs.folder import RunFolder
from vitbase.training.step import Learner

# What is written, and was not to its end


def unfinished(run: Path, *, whole: bool) -> Path:
    """Put a checkpoint there that a killed writer left: all of it, or the first of its files."""
    left = run / "checkpoints" / f".writing-0123abcd-train_vit_finetune-9_{STEPS}"
    shutil.copytree(run / CHECKPOINT, left)
    if not whole:
        (left / "manifest.json").unlink()
    return left


@pytest.mark.parametrize("whole", [True, False])
def test_what_was_not_written_to_its_end_is_no_checkpoint(
    run, config, monkeypatch, tmp_path, vitbase_command, whole
):
    left = unfinished(run, whole=whole)
    shutil.copy(
        run / f"{NEWEST}.ckpt", run / f".writing-0123abcd-train_vit_finetune-9_{STEPS}.ckpt"
    )
    assert [c.path.name for c in list_checkpoints(run / "checkpoints")] == [EARLIER, NEWEST]
    for place in (run, run / "checkpoints"):
        assert vitbase.load_model(place).path.parent.name == NEWEST
    for place in (left, left / "weights.safetensors"):
        for words in (
            ("weights", "show", place),
            ("predict", tmp_path / "x.jpg", "--checkpoint_path", place),
            ("eval", "--checkpoint_path", place),
        ):
            (tmp_path / "x.jpg").touch()
            code, _, err = vitbase_command(*words)
            assert (code, "was not written to its end" in err) == (2, True), err
            assert NEWEST in err
    assert goes_on(config, monkeypatch) == "newest"
    assert not left.exists()


# Manifests


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.clear(),
        lambda files: files.pop("weights.safetensors"),
        lambda files: files.pop("training_state.safetensors"),
        lambda files: files.pop("progress.json"),
        lambda files: files.update({"../../config.toml": files["progress.json"]}),
        lambda files: files.update({"/etc/hostname": files["progress.json"]}),
        lambda files: files.update({"x": None}),
        lambda files: files.update({"x": {"bytes": True, "sha256": "0"}}),
    ],
)
def test_a_manifest_names_every_file_and_nothing_else(run, config, monkeypatch, capsys, change):
    path = run / CHECKPOINT / "manifest.json"
    content = json.loads(path.read_text())
    change(content["files"])
    path.write_text(json.dumps(content))
    assert goes_on(config, monkeypatch) == "earlier"
    assert f"{NEWEST} is damaged (manifest.json is not a manifest: " in capsys.readouterr().out


# Whose a checkpoint is


def without_ids(run: Path) -> None:
    """Make it a run of before there were ids."""
    (run / "run.id").unlink()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        path = checkpoint.path / "progress.json"
        numbers = json.loads(path.read_text())
        del numbers["run"]
        path.write_text(json.dumps(numbers))
        write_manifest(checkpoint.path)


def test_a_run_of_before_there_were_ids_goes_on_and_gets_one(run, config, monkeypatch):
    without_ids(run)
    assert vitbase.load_model(run).path.parent.name == NEWEST
    assert goes_on(config, monkeypatch) == "newest"
    assert re.fullmatch(r"[0-9a-f]{16} [0-9a-f]{8}\n", (run / "run.id").read_text())


def test_of_those_another_model_is_noticed_all_the_same(runs, run, config, monkeypatch):
    without_ids(run)
    shutil.rmtree(run / CHECKPOINT)
    other = Path(shutil.copytree(runs["other_model"], run.with_name("other")))
    without_ids(other)
    shutil.copytree(other / CHECKPOINT, run / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"of another run: image_size is .* not "):
        goes_on(config, monkeypatch)


def test_checkpoints_of_two_runs_without_an_id_are_nobodys(runs, run, config, monkeypatch):
    (run / "run.id").unlink()
    shutil.rmtree(run / CHECKPOINT)
    shutil.copytree(runs["other_run"] / CHECKPOINT, run / CHECKPOINT)
    for act in (lambda: goes_on(config, monkeypatch), lambda: vitbase.load_model(run)):
        with pytest.raises(CheckpointError, match="holds checkpoints of 2 runs"):
            act()


def test_one_that_names_a_run_is_not_taken_for_one_of_before_there_were_ids(
    runs, run, config, monkeypatch
):
    without_ids(run)
    shutil.rmtree(run / CHECKPOINT)
    shutil.copytree(runs["other_run"] / CHECKPOINT, run / CHECKPOINT)
    with pytest.raises(CheckpointError, match="holds checkpoints of 2 runs"):
        goes_on(config, monkeypatch)
    shutil.rmtree(run / CHECKPOINT)
    assert goes_on(config, monkeypatch) == "earlier"
    shutil.copytree(runs["other_run"] / CHECKPOINT, run / CHECKPOINT)
    assert goes_on(config, monkeypatch) == "earlier"


def test_a_checkpoint_of_a_run_of_another_name_is_passed_over(run, config, monkeypatch, capsys):
    without_ids(run)
    shutil.copytree(run / CHECKPOINT, run / "checkpoints" / f"train_vit_other-3_{STEPS}")
    assert goes_on(config, monkeypatch) == "newest"
    assert "passed over (it is of another run, not of finetune)" in capsys.readouterr().out


def test_the_id_is_in_no_weights(runs, photo_folder, tmp_path):
    for name in ("first", "second"):
        vitbase.train(options_of(photo_folder, tmp_path / name, epoch_size=1))
    (first, second) = (tmp_path / name / "checkpoints" / EARLIER for name in ("first", "second"))
    for name in ("weights.safetensors", "training_state.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    progress = [json.loads((place / "progress.json").read_text()) for place in (first, second)]
    assert progress[0].pop("run") != progress[1].pop("run")
    assert progress[0] == progress[1]


# metrics.jsonl


def test_rows_that_are_none_are_dropped_and_counted(run, config, monkeypatch, capsys):
    before = [row for row in rows_of(run) if row["step"] <= 2 * STEPS]
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n[1]\n" + b"[" * 5000 + b"\n" + b"x" * 200_000 + b'\n{"step": "a"}\n')
        file.write(b'{"step": 8, "loss": 1.')
    assert goes_on(config, monkeypatch) == "newest"
    assert rows_of(run) == before
    assert "metrics.jsonl: 6 lines dropped that hold no row, the first is line" in (
        capsys.readouterr().out
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    vitbase.train(options_of(photo_folder, folder, epoch_size=2))
    return folder


@pytest.mark.parametrize("damage", ["cut", "none", "text", "bytes"])
def test_a_finished_run_never_tells_the_result_of_another_epoch(
    finished, tmp_path, photo_folder, vitbase_command, damage
):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    row = json.loads(whole.splitlines()[-1])
    odd = {"none": None, "text": "high", "bytes": 0.5}[damage] if damage != "cut" else 0
    rest = whole[: whole.rstrip(b"\n").rindex(b"\n") + 1]
    last = json.dumps(row | {"eval_loss": odd}).encode() + b"\n"
    path.write_bytes(whole[:-5] if damage == "cut" else rest + last)
    if damage == "bytes":
        path.write_bytes(b"\xff\n" + path.read_bytes())
    config = options_of(photo_folder, run, epoch_size=2)
    if damage in {"cut", "text"}:
        with pytest.raises(CheckpointError, match=rf"no evaluation after update {2 * STEPS}, its"):
            vitbase.train(config)
    else:
        result = vitbase.train(config)
        assert result.metrics["eval_images"] == 6
        assert (result.eval_loss == 0.5) == (damage == "bytes")


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_finished_run_never_tells_the_result_of_another_run(
    finished, tmp_path, photo_folder, score
):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = options_of(photo_folder, run, epoch_size=2)
    rows = rows_of(run)
    best = json.loads((run / CHECKPOINT / "progress.json").read_text())["best"]
    if score == 0 and best["checkpoint"] != NEWEST:
        score = 1.0  # a worse last evaluation than the best is nothing strange
    assert 0 < best["score"] < 1
    rows[-1]["eval_top1"] = score
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match=r"does not fit its best score, \d.*another run"):
        vitbase.train(config)


def test_rows_of_a_start_that_left_no_checkpoint_are_dropped_and_counted(
    run, config, monkeypatch, capsys
):
    shutil.rmtree(run / "checkpoints")
    number = len(rows_of(run))
    assert goes_on(config, monkeypatch) == "anew"
    assert f"{number} rows dropped, of a start that left no checkpoint." in capsys.readouterr().out
    assert rows_of(run) == []


# A disk that does not take what is written

REFUSED = r"(^Cannot write .*|could not be written)"


@pytest.mark.parametrize("place", ["metrics.jsonl", "config.toml", "run.id", "held_out.txt"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_the_disk_refuses_is_one_error(photo_folder, tmp_path, monkeypatch, place, number):
    """At whatever file it begins to refuse; checkpoints are in test_failing_disk.py."""
    run = tmp_path / "run"

    def refuse(path: Any) -> None:
        if str(path).endswith(place) and str(path).startswith(str(run)):
            raise OSError(number, os.strerror(number))  # as of a write: no file is named

    write_bytes, open_journal = Path.write_bytes, journal.open_regular
    monkeypatch.setattr(Path, "write_bytes", lambda p, data: (refuse(p), write_bytes(p, data))[1])
    monkeypatch.setattr(journal, "open_regular", lambda p, f: (refuse(p), open_journal(p, f))[1])
    with pytest.raises(CheckpointError, match=rf"{REFUSED}: {os.strerror(number)}\."):
        vitbase.train(options_of(photo_folder, run, epoch_size=1))
    assert not (run / lock.LOCK_FILE).exists()


def test_rows_that_the_disk_refuses_for_a_while_are_not_lost(
    photo_folder, tmp_path, monkeypatch, capsys
):
    vitbase.train(options_of(photo_folder, tmp_path / "whole", epoch_size=2))
    open_journal, calls = journal.open_regular, []

    def refuse(path: Any, flags: int) -> int:
        calls.append(path)
        if 2 <= len(calls) <= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_journal(path, flags)

    monkeypatch.setattr(journal, "open_regular", refuse)
    vitbase.train(options_of(photo_folder, tmp_path / "run", epoch_size=2))
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl cannot be written: No space left on device") == 1
    found, wanted = (
        [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows_of(tmp_path / name)]
        for name in ("run", "whole")
    )
    assert found == wanted


@pytest.mark.parametrize("gone", ["", "checkpoints", "metrics.jsonl"])
def test_a_run_folder_that_goes_under_way_is_one_error(photo_folder, tmp_path, monkeypatch, gone):
    run, step = tmp_path / "run", Learner.step

    def remove_it(self: Learner, update: int, *given: Any, **named: Any) -> Any:
        if update == 1:
            remove(run / gone)
            if gone == "metrics.jsonl":
                (run / gone).mkdir()
        return step(self, update, *given, **named)

    monkeypatch.setattr(Learner, "step", remove_it)
    with pytest.raises(CheckpointError, match=rf"{REFUSED}: (No such file|Is a directory|it)"):
        vitbase.train(options_of(photo_folder, run))


def test_a_folder_where_the_best_is_named_is_one_error(run, config):
    (run / "checkpoints" / "best.json").unlink()
    (run / "checkpoints" / "best.json").mkdir()
    with pytest.raises(CheckpointError, match=rf"{REFUSED}: Is a directory"):
        vitbase.train(config)


# Where a run cannot be


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("x" * 300, "Option 'output_dir' is too long"),
        ("/".join(["x" * 200] * 25), "File name too long"),
        ("a\0b", "null"),
        ("\ud800", "surrogates"),
        ("file", "Not a directory"),
        ("file/run", "Not a directory"),
        ("loop", "symbolic links"),
        ("fifo", "Not a directory"),
        ("dangling", "File exists"),
    ],
)
def test_a_place_that_cannot_be_is_named(photo_folder, tmp_path, place, told):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    os.mkfifo(tmp_path / "fifo")
    given = options_of(photo_folder, Path(f"{tmp_path}/{place}"))
    with pytest.raises((ConfigError, CheckpointError), match=told) as error:
        vitbase.train(given)
    assert "output_dir" in str(error.value)


def test_a_name_of_a_run_that_is_too_long_is_named(photo_folder, tmp_path):
    with pytest.raises(ConfigError, match="Option 'name' is too long"):
        vitbase.train(options_of(photo_folder, tmp_path / "run", name="x" * 230))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "\ud800", "x/" * 3000])
def test_weights_that_cannot_be_are_named(tmp_path, vitbase_command, place):
    given = f"{tmp_path}/{place}"
    for words in (
        ("eval", "--checkpoint_path", given),
        ("weights", "show", given),
        ("predict", tmp_path, "--checkpoint_path", given),
    ):
        (tmp_path / "x.jpg").touch()
        assert vitbase_command(*words)[0] == 2


def test_what_a_rank_meets_all_ranks_can_hear_of(run, tmp_path, monkeypatch):
    """Of the first rank's errors those of a user's reach the others."""
    folder = RunFolder(run)

    def refused(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(CheckpointError, match="Free some space"):
        folder.write_held_out(["x"])
    with pytest.raises(OSError, match="x"), folder.naming_faults():
        raise OSError(errno.ENOSPC, "x", str(tmp_path))  # of another place


def test_a_file_of_mindspore_that_no_manifest_names_is_not_opened(run, config, monkeypatch):
    shutil.copy(run / f"{NEWEST}.ckpt", run / CHECKPOINT / f"{NEWEST}.ckpt")
    assert goes_on(config, monkeypatch) == "earlier"
    with pytest.raises(CheckpointError, match=rf"does not name {NEWEST}.ckpt"):
        vitbase.load_model(run)


def test_a_folder_with_no_run_is_told_nothing_of(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.read_config() is None
    assert folder.newest_whole() == (None, [])
    assert folder.read_last_evaluation(1) is None
    assert folder.cut_metrics_back(0) == []


def test_a_checkpoint_of_mindspore_needs_its_file_and_its_progress(tmp_path):
    checkpoint = tmp_path / EARLIER
    checkpoint.mkdir()
    for name in (f"{EARLIER}.ckpt", "progress.json"):
        (checkpoint / name).write_text("{}")
    write_manifest(checkpoint)
    assert find_damage(checkpoint) is None
    assert find_damage(checkpoint, only=f"{EARLIER}.ckpt") is None
    for name in (f"{EARLIER}.ckpt", "progress.json"):
        content = (checkpoint / name).read_text()
        (checkpoint / name).unlink()
        assert find_damage(checkpoint) == f"{name} is missing"
        write_manifest(checkpoint)
        assert "is not a manifest: it does not name" in (find_damage(checkpoint) or "")
        (checkpoint / name).write_text(content)
        write_manifest(checkpoint)
