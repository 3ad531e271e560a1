"""A run folder has one writer at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from made_runs import TINY, rows_of

import vitbase
from vitbase.errors import CheckpointError
from vitbase.runs import lock
from vitbase.runs.folder import RunFolder
from vitbase.runs.lock import LOCK_FILE, RunLock, _this_process


def command(tiny_idx, run, **options):
    every = {**TINY, "data_path": tiny_idx, "output_dir": run, "epoch_size": 300, **options}
    words = [f"--{name}={value}" for name, value in every.items()]
    return [sys.executable, "-m", "vitbase", "train", "fashion", *words]


def test_the_second_command_is_refused_and_names_the_first(tiny_idx, tmp_path, vitbase_command):
    run = tmp_path / "run"
    words = command(tiny_idx, run)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
        next(line for line in first.stdout if "epoch   1/300" in line)
        code, _, err = vitbase_command(*words[3:])
        assert code == 2
        assert f"{run} is being written by process {first.pid} on " in err
        assert "or give another --output_dir." in err
        first.send_signal(signal.SIGTERM)
        first.stdout.read()
        assert first.wait(timeout=60) == 75
    steps = [row["step"] for row in rows_of(run) if "loss" in row]
    assert steps == sorted(set(steps))
    assert not (run / LOCK_FILE).exists()


def test_a_writer_that_was_killed_is_no_writer(tiny_idx, tmp_path):
    run = tmp_path / "run"
    words = command(tiny_idx, run)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
        next(line for line in first.stdout if "epoch   2/300" in line)
        first.kill()
    assert (run / LOCK_FILE).exists()
    held = RunLock(run)
    held.take()
    held.release()
    assert not (run / LOCK_FILE).exists()


def test_a_run_gives_the_right_back(tiny_config):
    config = tiny_config()
    vitbase.train(config)
    assert not (config.output_dir / LOCK_FILE).exists()
    with pytest.raises(vitbase.VitbaseError):
        vitbase.train(config.replace(epoch_size=9))
    assert not (config.output_dir / LOCK_FILE).exists()


def write(folder, **facts):
    content = {**_this_process(), **facts}
    (folder / LOCK_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "facts", [{"process": 2**22 + 7}, {"started": "1"}, {"process": -1}, {"process": "x"}]
)
def test_a_process_that_is_gone_or_another_by_now_is_no_writer(tmp_path, facts):
    other = {"process": os.getppid(), **facts}
    write(tmp_path, **other)
    held = RunLock(tmp_path)
    held.take()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    held.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null"])
def test_a_writer_elsewhere_lives_while_it_touches_its_file(tmp_path, content):
    if content is None:
        write(tmp_path, machine="elsewhere", host="node07", process=12, since="today")
    else:
        (tmp_path / LOCK_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="wait 60 s if that machine is gone") as told:
        RunLock(tmp_path).take()
    if content is None:
        assert "process 12 on node07, since today" in str(told.value)
    long_ago = time.time() - 61
    os.utime(tmp_path / LOCK_FILE, (long_ago, long_ago))
    held = RunLock(tmp_path)
    held.take()
    held.release()


def _try(folder, together, taken):
    together.wait()
    held = RunLock(folder)
    try:
        held.take()
    except CheckpointError:
        pass
    else:
        with taken.get_lock():
            taken.value += 1
    together.wait()  # who has it holds it until all have tried


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path, dead):
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if dead:
            write(folder, process=2**22 + 7)
        together, taken = context.Barrier(6), context.Value("i", 0)
        others = [context.Process(target=_try, args=(folder, together, taken)) for _ in range(6)]
        for process in others:
            process.start()
        for process in others:
            process.join()
        assert taken.value == 1
        assert [found.name for found in folder.iterdir()] == [LOCK_FILE]


def test_who_found_it_dead_does_not_remove_the_new_one_of_a_faster_one(tmp_path, monkeypatch):
    write(tmp_path, process=2**22 + 7)
    slow, fast = RunLock(tmp_path), RunLock(tmp_path)
    read = lock._read
    faster_one = iter([fast.take])

    def read_and_wait(path):
        content = read(path)
        for take in faster_one:
            take()
        return content

    monkeypatch.setattr(lock, "_read", read_and_wait)
    with pytest.raises(CheckpointError, match=f"written by process {os.getpid()} "):
        slow.take()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"]
    fast.release()
    assert list(tmp_path.iterdir()) == []


def test_who_died_while_removing_a_dead_one_is_no_writer_either(tmp_path, monkeypatch):
    write(tmp_path, process=2**22 + 7)
    dead = RunLock(tmp_path)

    def die(path):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(lock.RunLock, "release", lambda self: None)
        patched.setattr(lock.Path, "unlink", die)
        with pytest.raises(SystemExit):
            dead.take()
    (remover,) = (found for found in tmp_path.iterdir() if found.name != LOCK_FILE)
    remover.write_text(json.dumps({**_this_process(), "process": 2**22 + 9}))
    taken = RunLock(tmp_path)
    taken.take()
    assert [found.name for found in tmp_path.iterdir()] == [LOCK_FILE]
    taken.release()


def test_who_was_taken_for_dead_leaves_the_next_one_its_file(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    (tmp_path / LOCK_FILE).unlink()
    second.take()
    first.release()
    assert (tmp_path / LOCK_FILE).exists()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_moved_on_meanwhile_is_not_started_from_where_it_was(tiny_config):
    config = tiny_config()
    folder = RunFolder(config.output_dir)
    folder.newest_whole()  # looked at before another command
    vitbase.train(config)
    with pytest.raises(CheckpointError, match="Another command has gone on with the run"):
        folder.start(config)
    assert not (config.output_dir / LOCK_FILE).exists()
