"""The log tells what a run waits for: its images, its checkpoints, its other ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import TINY, rows_of
from ranks import start_ranks, wait_for

import vitbase
from vitbase.data.augment import TrainTransform
from vitbase.training.objective import Objective
from vitbase.training.saver import Saver
from vitbase.training.waits import Shares

SHARES = ("data_wait_fraction", "communication_fraction", "checkpoint_fraction")


def shares_of(run: Path) -> dict[str, float]:
    """Means over the log lines after the first, in which the process warms up."""
    rows = [row for row in rows_of(run) if "loss" in row][1:]
    assert rows
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in SHARES if name in row)
        assert sum(row[name] for name in SHARES if name in row) <= 1.001
    return {name: sum(row[name] for row in rows) / len(rows) for name in SHARES if name in rows[0]}


def slow_down(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, seconds: float) -> None:
    plain = getattr(kind, method)

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return plain(*args, **options)

    monkeypatch.setattr(kind, method, slow)


def test_a_slow_loader_is_waiting_for_images(tiny_config, monkeypatch, capsys):
    slow_down(monkeypatch, TrainTransform, "__call__", 0.03)
    config = tiny_config(num_workers=1, epoch_size=1, log_every_steps=1)
    vitbase.train(config)
    shares = shares_of(config.output_dir)
    assert shares.keys() == {"data_wait_fraction", "checkpoint_fraction"}  # there is no other rank
    assert shares["data_wait_fraction"] > 0.5
    assert shares["checkpoint_fraction"] == 0
    assert "  data wait " in capsys.readouterr().out


def test_a_slow_checkpoint_is_seen_as_one(tiny_config, monkeypatch, capsys):
    slow_down(monkeypatch, Saver, "collect", 0.3)
    config = tiny_config(epoch_size=1, log_every_steps=2, checkpoint_every_steps=1)
    vitbase.train(config)
    shares = shares_of(config.output_dir)
    assert shares["checkpoint_fraction"] > 0.4
    assert shares["checkpoint_fraction"] > shares["data_wait_fraction"]
    assert "%  checkpoints " in capsys.readouterr().out


def train_slowly(recipe: str, options: dict[str, Any]) -> None:
    """Train; the last rank needs its time before every update."""
    if os.environ["RANK"] == "1":
        with pytest.MonkeyPatch.context() as patch:
            slow_down(patch, Objective, "draw_mix", 0.2)
            vitbase.train(vitbase.load_config(recipe, **options))
    else:
        vitbase.train(vitbase.load_config(recipe, **options))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_slow_rank_is_waited_for(tiny_idx, tmp_path, parallel):
    options = {
        **{**TINY, "data_path": str(tiny_idx), "output_dir": str(tmp_path / "run")},
        **{"epoch_size": 1, "log_every_steps": 2, "num_workers": 1, "parallel": parallel},
        **{"batch_size": 5, "accumulation_steps": 1},
    }
    started = start_ranks(tmp_path / "logs", train_slowly, [("fashion", options)] * 2)
    assert wait_for(started) == [0, 0], (tmp_path / "logs" / "rank-0.log").read_text()
    shares = shares_of(tmp_path / "run")
    # Of two ranks one waits nearly all the time, and the other one makes it wait.
    assert 0.25 < shares["communication_fraction"] <= 0.6
    assert shares["communication_fraction"] > 2 * shares["data_wait_fraction"]
    assert shares["checkpoint_fraction"] == 0
    assert "%  communication " in (tmp_path / "logs" / "rank-0.log").read_text()


def test_a_log_line_says_what_matters():
    quiet = Shares(0.0, 0.01, 0.02, 0.4, 0.6)
    assert quiet.describe() == "data wait 0%"
    assert quiet.to_row() == {
        **{"data_wait_fraction": 0.0, "communication_fraction": 0.01},
        **{"checkpoint_fraction": 0.02, "launch_fraction": 0.4},
    }
    starving = Shares(0.1, None, 0.05, 0.83, 0.02)
    assert starving.describe() == "data wait 10%  checkpoints 5%  launching 83%"
    assert "communication_fraction" not in starving.to_row()
