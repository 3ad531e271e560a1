"""Runs that stand still: reported with what they did, ended, and started again by a launcher."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import environment_of_commands
from made_runs import TINY, losses_of
from ranks import command, start_ranks, train_on, wait_for

from vitbase.data.augment import TrainTransform
from vitbase.pulse import HUNG
from vitbase.training import hangs
from vitbase.training.saver import Saver
from vitbase.training.step import Learner

HANG_MINUTES = 0.06
PATIENCE = 60 * HANG_MINUTES


def words_for(data: Path, folder: Path, **options: Any) -> list[str]:
    defaults = {**TINY, "num_workers": 1, "hang_minutes": HANG_MINUTES, "log_every_steps": 1}
    every = {**defaults, "data_path": data, "output_dir": folder, **options}
    return ["train", "fashion", *(f"--{name}={value}" for name, value in every.items())]


def wait_until(condition: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)


def text_of(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def never_comes(*_: Any) -> None:
    time.sleep(600)


def keeps_the_lock(*_: Any) -> None:
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)


def patiently(words: list[str]) -> None:
    """A command that may take long to begin: these tests share their machine."""
    hangs.SELDOM = 10.0
    command(words)


def a_reader_that_stands_still(words: list[str]) -> None:
    """Of the last rank, in the second epoch."""
    read, reads = TrainTransform.__call__, itertools.count()
    stands_still = os.environ.get("RANK", "1") == "1"
    last = 65 // int(os.environ.get("WORLD_SIZE", "1"))

    def reading(*args: Any) -> None:
        in_loader = threading.current_thread().name.startswith("vitbase-data")
        if stands_still and in_loader and next(reads) == last:
            never_comes()
        read(*args)

    TrainTransform.__call__ = reading  # type: ignore[method-assign]
    patiently(words)


def _at_update(update: int, call: Callable[[], None]) -> Any:
    step = Learner.step

    def stepping(self: Learner, number: int, *args: Any, **options: Any) -> Any:
        if number == update:
            call()
        return step(self, number, *args, **options)

    return stepping


def a_step_that_stands_still(words: list[str]) -> None:
    Learner.step = _at_update(4, never_comes)  # type: ignore[method-assign]
    patiently(words)


def a_step_that_keeps_the_lock(words: list[str]) -> None:
    os.dup2(sys.stderr.fileno(), 2)  # where it is written without a thread of Python
    Learner.step = _at_update(4, keeps_the_lock)  # type: ignore[method-assign]
    patiently(words)


def a_save_that_takes_long(words: list[str]) -> None:
    save = Saver.save

    def saving(self: Saver, place: Any, *args: Any, **options: Any) -> None:
        time.sleep(1.5 * PATIENCE if place.updates == 6 else 0)
        save(self, place, *args, **options)

    Saver.save = saving  # type: ignore[method-assign]
    patiently(words)


def one_rank(log_dir: Path, target: Callable[..., Any], words: list[str]) -> Any:
    (process,) = start_ranks(log_dir, target, [(words,)])
    return process


def test_what_stands_still_is_named_and_ended_and_what_is_slow_is_not(tiny_idx, tmp_path):
    """Side by side: each of them waits most of its time."""
    targets = {
        target.__name__: target
        for target in (
            a_reader_that_stands_still,
            a_step_that_stands_still,
            a_step_that_keeps_the_lock,
            a_save_that_takes_long,
            patiently,  # which is stopped, and goes on
        )
    }
    runs = {
        name: one_rank(tmp_path / name, target, words_for(tiny_idx, tmp_path / name / "run"))
        for name, target in targets.items()
    }
    said = {name: tmp_path / name / "rank-0.log" for name in runs}
    log = said["patiently"]
    wait_until(lambda: "step 1/6" in text_of(log), lambda: text_of(log))
    os.kill(runs["patiently"].pid, signal.SIGSTOP)
    time.sleep(1.5 * PATIENCE)
    os.kill(runs["patiently"].pid, signal.SIGCONT)
    codes = dict(zip(runs, wait_for(list(runs.values())), strict=True))
    assert codes == {
        "a_reader_that_stands_still": HUNG,
        "a_step_that_stands_still": HUNG,
        "a_step_that_keeps_the_lock": -signal.SIGKILL,
        "a_save_that_takes_long": 0,
        "patiently": 0,
    }
    reader, step, lock, *others = (text_of(path) for path in said.values())
    assert "which waits for its images" in reader
    assert "the batch under way: positions " in reader
    assert "being read: train-images-idx3-ubyte.gz[" in reader
    assert "in never_comes" in reader
    assert "thread vitbase-data_0:" in reader
    assert reader.splitlines()[-1].startswith("vitbase: error: The run stands still in update ")
    assert "The run stands still in update 5 of 12, which begins" in step
    assert "in never_comes" in step
    assert "the run stands still: for 3.6 s none of its threads could run" in lock
    assert "in keeps_the_lock" in lock
    assert not any("the run stands still" in text.lower() for text in others)


def start(words: list[str], *launch: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vitbase", *launch, *words],
        env=environment_of_commands(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rank_one_of(launcher: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (rank,) = [c for c in children if b"\0RANK=1\0" in Path(f"/proc/{c}/environ").read_bytes()]
    return int(rank)


def test_a_rank_that_is_stopped_is_named_and_the_run_goes_on_as_if_nothing_had_been(
    tiny_idx, tmp_path
):
    options = {"epoch_size": 4, "batch_size": 5, "checkpoint_every_steps": 2}
    words = words_for(tiny_idx, tmp_path / "run", **options)
    launcher = start(words, "launch", "--num_devices", "2", "--max_restarts", "1", "--")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: text_of(metrics).count("\n") > 4, lambda: f"code {launcher.poll()}")
    os.kill(rank_one_of(launcher), signal.SIGSTOP)
    whole = {**TINY, **options, "num_workers": 1, "log_every_steps": 1, "data_path": str(tiny_idx)}
    train_on(tmp_path / "whole" / "run", 2, "fashion", **whole)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert "Continuing from" in out
    (restart,) = [line for line in err.splitlines() if "restarting the ranks" in line]
    assert ": rank 1 stands still: no sign of life comes from it. When last heard of" in restart
    assert "Rank 0 waits in " in restart
    assert "the stacks of all threads of rank 0" in err
    ours, theirs = (
        (folder / "checkpoints" / "train_vit_fashion-4_6" / "weights.safetensors").read_bytes()
        for folder in (tmp_path / "run", tmp_path / "whole" / "run")
    )
    assert ours == theirs
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole" / "run")


def test_the_rank_whose_images_do_not_come_is_told_from_those_that_wait_for_it(tiny_idx, tmp_path):
    words = words_for(tiny_idx, tmp_path / "run", batch_size=5)
    ranks = start_ranks(tmp_path, a_reader_that_stands_still, [(words,)] * 2)
    assert wait_for(ranks, 60) == [HUNG, HUNG]
    waiting, reading = (text_of(tmp_path / f"rank-{rank}.log") for rank in (0, 1))
    for said in (waiting, reading):
        assert "vitbase: error: Rank 1 stands still in update " in said
        assert "which waits for its images" in said
    assert "being read: train-images-idx3-ubyte.gz[" in reading


def test_the_launcher_ends_a_stopped_rank_and_names_it_last(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(
        "import os, pathlib, signal, time\n"
        "from vitbase.errors import HungError, tell_launcher\n"
        "if os.environ['RANK'] == '1':\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "tell_launcher(HungError('rank 1', ' stands still: it is stopped.'))\n"
        f"os._exit({HUNG})\n"
    )
    started = time.monotonic()
    launcher = start([str(program)], "launch", "--num_devices", "2", "--max_restarts", "0", "--")
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert err.splitlines()[-1] == "vitbase: error: rank 1 stands still: it is stopped."
    assert "SIGKILL" not in err  # how the others ended is not why
    assert time.monotonic() - started < 25  # torch waits for 30 s where SIGTERM does nothing
