"""Ranks that die, hang, or never meet: the others end soon, and say what happened."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from made_runs import TINY
from ranks import command, free_port, start_ranks, train_on, wait_for

from vitbase import runtime


def words_for(data: Path, folder: Path, **options: Any) -> list[str]:
    options = {**TINY, "num_workers": 1, "data_path": data, "output_dir": folder, **options}
    return ["train", "fashion", *(f"--{name}={value}" for name, value in options.items())]


def wait_until(condition: Any, ranks: Sequence[BaseProcess], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(rank.is_alive() for rank in ranks), "a rank has ended by itself"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(("victim", "parallel"), [(0, "ddp"), (1, "fsdp")])
def test_when_a_rank_is_killed_the_other_ends_and_says_so(tiny_idx, tmp_path, victim, parallel):
    folder = tmp_path / "run"
    options = {"epoch_size": 2000, "log_every_steps": 1, "batch_size": 5, "parallel": parallel}
    words = words_for(tiny_idx, folder, **options, checkpoint_every_steps=2)
    ranks = start_ranks(tmp_path, command, [(words,)] * 2)
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 12, ranks)
    assert ranks[victim].pid is not None
    os.kill(ranks[victim].pid, signal.SIGKILL)
    survivor = 1 - victim
    assert wait_for([ranks[survivor]], 60) == [2]
    told = (tmp_path / f"rank-{survivor}.log").read_text()
    assert f"Rank {survivor} of 2 lost another rank" in told
    assert "the same command continues the run from its last checkpoint" in told
    assert "Traceback" not in told


def test_a_run_whose_rank_was_killed_ends_as_one_that_was_not(tiny_idx, tmp_path):
    options: dict[str, Any] = {
        **TINY,
        "num_workers": 1,
        "data_path": str(tiny_idx),
        "batch_size": 5,
        "epoch_size": 8,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "keep_checkpoint_max": 100,
    }
    train_on(tmp_path / "whole" / "run", 2, "fashion", **options)
    folder = tmp_path / "killed" / "run"
    words = words_for(tiny_idx, folder, **{k: v for k, v in options.items() if k != "data_path"})
    ranks = start_ranks(tmp_path, command, [(words,)] * 2)
    wait_until(lambda: len(list(folder.glob("checkpoints/train*"))) > 3, ranks)
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGKILL)
    wait_for(ranks, 60)
    train_on(folder, 2, "fashion", **options)
    assert (folder / "metrics.jsonl").read_text().count('"loss"') == 48
    ours, theirs = (
        (where / "checkpoints" / "train_vit_fashion-8_6" / "weights.safetensors").read_bytes()
        for where in (folder, tmp_path / "whole" / "run")
    )
    assert ours == theirs


def _impatient(words: list[str]) -> None:
    runtime._JOIN_TIMEOUT = timedelta(seconds=1)
    command(words)


def test_ranks_that_do_not_meet_say_where_they_waited(tiny_idx, tmp_path):
    words = words_for(tiny_idx, tmp_path / "run")
    (only, _) = start_ranks(tmp_path, _impatient, [(words,), (["recipes"],)])
    assert wait_for([only], 60) == [2]
    told = (tmp_path / "rank-0.log").read_text()
    assert "Rank 0 of 2 did not find the others at 127.0.0.1:" in told
    assert "MASTER_ADDR:MASTER_PORT" in told
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named(tiny_idx, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("ranks.free_port", lambda: port)
        words = words_for(tiny_idx, tmp_path / "run")
        (first, _) = start_ranks(tmp_path, _impatient, [(words,), (["recipes"],)])
        assert wait_for([first], 60) == [2]
    told = (tmp_path / "rank-0.log").read_text()
    assert f"did not find the others at 127.0.0.1:{port}" in told
    assert "in use" in told
