"""Disks that fill and fail: the last checkpoint stays, and so does the run, which says it aloud."""

from __future__ import annotations

import mmap
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import environment_of_commands
from faulty import Plan, failing
from made_runs import TINY, rows_of
from safetensors.torch import load_file, save_file

import vitbase
from vitbase.errors import CheckpointError
from vitbase.runs.checkpoints import find_damage, list_checkpoints
from vitbase.runs.folder import RunFolder
from vitbase.runs.writer import Copies, Job, carry_out

NAME = "train_vit_fashion-{}_6"


def job(run: Path, copies: Copies, epoch: int, best: int) -> Job:
    """Return a checkpoint to be written: two files, and one that stands beside."""
    copies.begin()
    name = NAME.format(epoch)
    parts = [
        copies.add(file, lambda out, epoch=epoch: out.write(bytes([epoch]) * 100_000))
        for file in ("weights.safetensors", "training_state.safetensors", f"{name}.ckpt")
    ]
    progress = {
        **{"updates": 6 * epoch, "global_batch": 10, "loss_scaler": {}, "finished": False},
        "best": {"checkpoint": NAME.format(best), "score": 0.5, "score_name": "eval_top1"},
    }
    folder = run / "checkpoints" / name
    return Job(folder, progress, tuple(parts[:2]), tuple(parts[2:]), 1, run / "metrics.jsonl")


def write(run: Path, copies: Copies, epoch: int, best: int) -> None:
    made = job(run, copies, epoch, best)
    with mmap.mmap(copies.file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        carry_out(made, memory)


def epochs_in(run: Path) -> list[int]:
    return [checkpoint.epoch for checkpoint in list_checkpoints(run / "checkpoints")]


def write_and_fail(
    run: Path, copies: Copies, epoch: int, best: int, plan: Plan
) -> tuple[bool, bool, int]:
    """Write a checkpoint on a failing disk, and look what is whole then.

    Returns: whether the plan came to its touch; whether writing failed; the newest whole epoch.
    """
    failed = False
    with failing(plan) as disk:
        try:
            write(run, copies, epoch, best)
        except OSError:
            failed = True
    whole, warnings = RunFolder(run).newest_whole()
    assert whole is not None
    assert not warnings
    return disk.matched >= plan.at, failed, whole.epoch


@pytest.mark.parametrize(("error", "more"), [("EIO", False), ("ENOSPC", True), ("EROFS", True)])
def test_whichever_touch_fails_a_whole_checkpoint_is_there(tmp_path, error, more):
    copies = Copies()
    run = tmp_path / "run"
    hits = 0
    for at in range(1, 100):
        shutil.rmtree(run, ignore_errors=True)
        (run / "checkpoints").mkdir(parents=True)
        (run / "metrics.jsonl").write_text("{}\n")
        write(run, copies, 1, best=1)
        write(run, copies, 2, best=2)
        assert epochs_in(run) == [2]
        plan = Plan(str(run), error, at, more=more)
        reached, failed, whole = write_and_fail(run, copies, 3, 2, plan)
        hits += failed
        assert whole in ({2, 3} if failed else {3})
        assert find_damage(run / "checkpoints" / NAME.format(2)) is None  # the best one
        # The next one is as if nothing had been, whatever lay around.
        write(run, copies, 4, best=4)
        assert epochs_in(run) == [4]
        assert [path.name for path in run.glob("*.ckpt")] == [f"{NAME.format(4)}.ckpt"]
        if not reached:
            break
    copies.close()
    assert hits > 25


def test_a_whole_checkpoint_that_is_written_again_is_never_lost(tmp_path):
    """As after a stop at the end of an epoch, which is evaluated, and saved once more."""
    copies = Copies()
    run = tmp_path / "run"
    hits = 0
    for at in range(1, 100):
        shutil.rmtree(run, ignore_errors=True)
        (run / "checkpoints").mkdir(parents=True)
        write(run, copies, 1, best=1)
        reached, failed, whole = write_and_fail(run, copies, 1, 1, Plan(str(run), "EIO", at))
        hits += failed
        assert whole == 1
        if not reached:
            break
    copies.close()
    assert hits > 15


def test_retention_counts_neither_damaged_ones_nor_those_to_come(tmp_path):
    copies = Copies()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    write(run, copies, 1, best=1)
    for epoch in (1, 2, 5):
        if epoch > 1:
            made = run / "checkpoints" / NAME.format(1)
            shutil.copytree(made, made.with_name(NAME.format(epoch)))
    (run / "checkpoints" / NAME.format(5) / "weights.safetensors").write_bytes(b"")
    write(run, copies, 3, best=1)  # the run went on from 2, as 5 is damaged
    assert epochs_in(run) == [1, 3, 5]
    write(run, copies, 5, best=3)
    assert epochs_in(run) == [3, 5]
    assert find_damage(run / "checkpoints" / NAME.format(5)) is None
    copies.close()


def test_a_run_goes_on_where_a_checkpoint_cannot_be_written(tiny_config, monkeypatch, capsys):
    config = tiny_config(epoch_size=3)
    whole = vitbase.train(config.replace(output_dir=str(config.output_dir.with_name("whole"))))
    plan = Plan(str(config.output_dir), "ENOSPC", 1, touch="write")  # the first of all
    plan.for_the_writer(monkeypatch)
    result = vitbase.train(config)
    said = capsys.readouterr().out
    assert "WARNING: checkpoint train_vit_fashion-1_6 could not be written: No space left" in said
    assert "There is none before it." in said
    assert result.updates == whole.updates
    assert epochs_in(config.output_dir) == [2, 3]
    ours, theirs = (
        load_file(list_checkpoints(Path(run) / "checkpoints")[-1].path / "weights.safetensors")
        for run in (config.output_dir, config.output_dir.with_name("whole"))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_ends_where_its_last_checkpoint_cannot_be_written(tiny_config, monkeypatch, capsys):
    config = tiny_config(epoch_size=2)
    with monkeypatch.context() as patched:
        plan = Plan(str(config.output_dir), "ENOSPC", 6, touch="write", more=True)
        plan.for_the_writer(patched)
        with pytest.raises(CheckpointError, match=r"2_6 could not be written: No space .* last wh"):
            vitbase.train(config)
    assert epochs_in(config.output_dir) == [1]
    assert vitbase.train(config).updates == 12
    steps = [row["step"] for row in rows_of(config.output_dir) if "eval_loss" in row]
    assert steps == [6, 12]


def test_by_option_a_run_ends_at_the_first_that_cannot_be_written(tiny_config, monkeypatch):
    config = tiny_config(epoch_size=3, on_failed_save="stop")
    plan = Plan(str(config.output_dir), "EROFS", 1, touch="mkdir")
    plan.for_the_writer(monkeypatch)
    with pytest.raises(CheckpointError, match=r"-1_6 could not be written: Read-only file system"):
        vitbase.train(config)
    assert not any("eval_loss" in row and row["step"] > 12 for row in rows_of(config.output_dir))


def test_room_is_looked_for_before_the_first_byte(tmp_path, monkeypatch):
    copies = Copies()
    (tmp_path / "checkpoints").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    with pytest.raises(OSError, match=r"it needs 300,000 bytes, of which 300,000 are free"):
        write(tmp_path, copies, 1, best=1)
    assert not list((tmp_path / "checkpoints").iterdir())
    copies.close()


def test_a_writer_that_is_killed_is_started_again(tiny_config, monkeypatch, capsys, tmp_path):
    killer = tmp_path / "shim"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os, signal, sys, pathlib\n"
        f"once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "if 'vitbase.runs.writer' in sys.orig_argv and not once.exists():\n"
        "    once.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(killer)
    config = tiny_config(epoch_size=2)
    assert vitbase.train(config).updates == 12
    said = capsys.readouterr().out
    assert "1_6 could not be written: the process that writes it was killed by SIGKILL" in said
    assert epochs_in(config.output_dir) == [2]


def test_a_file_that_may_not_grow_ends_no_run(tiny_config, capsys):
    """The kernel itself refuses: here by a limit, as it does by a quota."""
    config = tiny_config(epoch_size=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The copy in memory is under the same limit, so that the writer never gets it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written: no memory for a copy"):
            vitbase.train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in capsys.readouterr().out
    assert vitbase.train(config).updates == 6


def may_mount() -> bool:
    """Whether this user may mount a file system that only its own processes see."""
    unshare = shutil.which("unshare")
    words = [unshare or "", "-rm", "true"]
    return unshare is not None and subprocess.run(words, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no user namespaces with mounts here")
def test_a_disk_that_is_full_and_then_read_only(tiny_idx, tmp_path):
    """A real one: a file system in memory, enlarged, then mounted read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    options = {**TINY, "epoch_size": 4, "data_path": tiny_idx, "output_dir": place / "run"}
    words = [f"--{name}={value}" for name, value in options.items()]
    train = shlex.join([sys.executable, "-m", "vitbase", "train", "fashion", *words])
    script = (
        f"mount -t tmpfs -o size=1200k none {place}\n{train}\necho code $?\n"
        f"mount -o remount,size=10m {place}\n{train}\necho code $?\n"
        f"mount -o remount,ro {place}\n{train}\necho code $?\n"
        f"{train} --seed=1 --output_dir={place / 'other'}\necho code $?\n"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment_of_commands(OMP_NUM_THREADS="1"),
    )
    said = done.stdout + done.stderr
    assert re.findall(r"^code (\d+)$", done.stdout, re.MULTILINE) == ["2", "0", "0", "2"], said
    assert re.search(
        r"WARNING: checkpoint train_vit_fashion-4_6 could not be written: it needs", said
    )
    assert "Continuing from" in said
    assert "Traceback" not in said
    assert "Read-only file system" in done.stderr


def test_the_state_of_a_run_needs_no_pickle(tiny_config, monkeypatch):
    import pickle

    def refused(*args: object, **options: object) -> None:
        raise AssertionError("a pickle on the way of a checkpoint")

    config = tiny_config(epoch_size=1)
    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "save", refused)
    monkeypatch.setattr(torch, "load", refused)
    vitbase.train(config)
    vitbase.train(config.replace(epoch_size=1))


def test_what_is_written_is_what_the_library_writes(tmp_path):
    from vitbase.weights.files.safetensors import _DTYPES, write_safetensors

    tensors = {
        f'n{number} é"{k}': torch.arange(6).to(dtype).reshape(3, 2).contiguous()
        for k in (2, 1)
        for number, dtype in enumerate(_DTYPES.values())
    }
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.0)}
    for metadata in ({}, {"x": 'q"é\u2028\x7f\x01/'}):
        save_file(tensors, tmp_path / "theirs", metadata or None)
        write_safetensors(tmp_path / "ours", tensors, metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert os.stat(tmp_path / "ours").st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
