"""Runs that are killed at any moment, and asked to stop at any: they end as if nothing had been.

A few moments here; `make test-slow` takes hundreds, and prints which points were hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import TOUCHES, Plan
from forks import Forks
from made_runs import TINY, losses_of, rows_of
from processes import descendants

from vitbase.runs.checkpoints import list_checkpoints
from vitbase.stopping import STOPPED

EPOCHS, STEPS = 5, 6
WORDS = {
    **{**TINY, "epoch_size": EPOCHS, "log_every_steps": 1, "num_workers": 1},
    **{"keep_checkpoint_max": 2, "checkpoint_every_steps": 2, "eval_batch_size": 4},
}
MOST_STARTS = 60
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


def words_for(data: Path, run: Path, ranks: int) -> list[str]:
    options = {**WORDS, "data_path": data, "output_dir": run}
    # The same images for an update, dealt to the ranks.
    options["batch_size"] = WORDS["batch_size"] // ranks
    if ranks > 1:
        options["num_devices"] = ranks
    return ["train", "fashion", *(f"--{name}={value}" for name, value in options.items())]


def final_bytes(run: Path) -> dict[str, bytes]:
    newest = list_checkpoints(run / "checkpoints")[-1].path
    assert newest.name.endswith(f"-{EPOCHS}_{STEPS}")
    names = ("weights.safetensors", "training_state.safetensors")
    return {name: (newest / name).read_bytes() for name in names}


class Proof:
    """Runs that are disturbed until they end, against one that was not."""

    def __init__(self, forks: Forks, data: Path, folder: Path, ranks: int = 1) -> None:
        self.forks, self.data, self.folder, self.ranks = forks, data, folder, ranks
        self.hits: Counter[str] = Counter()
        self.starts = self.runs = self.told = 0
        self.unsaved: list[str] = []
        folder.mkdir(exist_ok=True)
        self.whole = folder / "whole"
        assert self.end_of(self.start(self.whole)) == 0, self.said(self.whole)

    def start(self, place: Path, **plans: Plan | None) -> int:
        self.starts += 1
        log = place.with_suffix(".log")
        self.told = log.stat().st_size if log.exists() else 0
        return self.forks.start(words_for(self.data, place, self.ranks), log, **plans)

    def end_of(self, process: int) -> int:
        return self.forks.wait(process)

    def said(self, run: Path) -> str:
        return run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")

    def disturb_until(self, enough: int, disturb: Callable[[Path], str | None]) -> None:
        """Begin runs, disturb and go on with them, until there were enough disturbances.

        Args:
          disturb: starts the run once and disturbs it; says how, or None where it ended first.
        """
        while sum(self.hits.values()) < enough:
            self.runs += 1
            run = self.folder / f"run{self.runs}"
            for _ in range(MOST_STARTS):
                hit = disturb(run)
                if hit is None or sum(self.hits.values()) >= enough:
                    break
                self.hits[hit] += 1
            assert self.end_of(self.start(run)) == 0, self.said(run)
            self.compare(run)

    def compare(self, run: Path) -> None:
        said = self.said(run)
        assert "Traceback" not in said, said
        assert "is damaged" not in said, said
        ours, theirs = final_bytes(run), final_bytes(self.whole)
        assert ours == theirs
        assert losses_of(run) == losses_of(self.whole)
        rows = rows_of(run)
        assert [row["step"] for row in rows if "loss" in row] == [*range(1, EPOCHS * STEPS + 1)]
        evaluated = [row["step"] for row in rows if "eval_loss" in row]
        assert evaluated == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
        if "run folder" in said[self.told :]:  # it was not finished, so that it was cleaned up
            assert not list(run.glob("**/.writing-*"))

    def kill_at_point(self, random: random.Random) -> Callable[[Path], str | None]:
        """Return what kills run and writer together at a named point of one of them."""
        points = [
            (who, touch, side)
            for who, touches in (("run", ("open", "write", "fsync", "rename")), ("writer", TOUCHES))
            for touch in touches
            for side in ("before", "after")
        ]

        def disturb(run: Path) -> str | None:
            who, touch, side = random.choice(points)
            log = run.with_suffix(".hits")
            log.unlink(missing_ok=True)
            at = random.randint(1, 12 if touch in {"open", "write", "fsync"} else 4)
            plan = Plan(str(run), "kill", at, touch, side, log=str(log))
            code = self.end_of(self.start(run, **{who: plan}))
            # Of several ranks one is killed, with its writer: the launcher lives, and tells.
            assert code in {0, -signal.SIGKILL if self.ranks == 1 else 2}, self.said(run)
            return f"{who}, {side} {touch}" if log.exists() else None

        return disturb

    def kill_anywhen(self, random: random.Random, longest: float) -> Callable[[Path], str | None]:
        """Return what kills a run, its ranks and writers after some time."""

        def disturb(run: Path) -> str | None:
            process = self.start(run)
            time.sleep(random.uniform(0, longest))
            for member in descendants(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            code = self.end_of(process)
            assert code in {0, -signal.SIGKILL}, self.said(run)
            return None if code == 0 else "at a random time"

        return disturb

    def signal_anywhen(self, random: random.Random, longest: float) -> Callable[[Path], str | None]:
        """Return what asks a run to stop after some time, and looks whether it has saved."""

        def disturb(run: Path) -> str | None:
            name = random.choice(SIGNALS)
            process = self.start(run)
            time.sleep(random.uniform(0, longest))
            os.kill(process, getattr(signal, name))
            return self.stopped(run, self.end_of(process), name, "at a random time")

        return disturb

    def signal_at_point(self, random: random.Random) -> Callable[[Path], str | None]:
        """Return what asks a run to stop while it evaluates, or touches its folder."""

        def disturb(run: Path) -> str | None:
            name = random.choice(SIGNALS)
            touch = random.choice(("evaluate", "open", "write", "rename", "fsync", "mkdir"))
            log = run.with_suffix(".hits")
            log.unlink(missing_ok=True)
            plan = Plan(str(run), name, random.randint(1, 8), touch, log=str(log))
            code = self.end_of(self.start(run, run=plan))
            assert log.exists() or code == 0, self.said(run)
            where = "in an evaluation" if touch == "evaluate" else f"in the run's {touch}"
            return self.stopped(run, code, name, where)

        return disturb

    def stopped(self, run: Path, code: int, name: str, where: str) -> str | None:
        if code == 0:
            return None
        said = self.said(run)[self.told :]
        if code in {-getattr(signal, name), 128 + signal.SIGINT} and "run folder" not in said:
            return "before the program listened"  # Python itself was starting
        assert code == STOPPED, (code, said)
        taken = [row["step"] for row in rows_of(run)] if (run / "metrics.jsonl").exists() else []
        if taken:
            found = list_checkpoints(run / "checkpoints")
            progress = [json.loads((c.path / "progress.json").read_text()) for c in found]
            if max((p["updates"] for p in progress), default=0) < max(taken):
                self.unsaved.append(f"{name} {where}: {self.said(run)[-400:]}")
        return where

    def report(self, what: str) -> str:
        lines = [
            f"{sum(self.hits.values())} {what}, {self.ranks} rank(s), {self.runs} runs, "
            f"{self.starts} starts; not saved after the first update: {len(self.unsaved)}",
            *(f"  {number:4} {point}" for point, number in sorted(self.hits.items())),
        ]
        return "\n".join(lines)


def test_killed_at_any_point_a_run_ends_the_same(forks, tiny_idx, tmp_path):
    proof = Proof(forks, tiny_idx, tmp_path)
    proof.disturb_until(5, proof.kill_at_point(random.Random(1)))
    proof.disturb_until(7, proof.kill_anywhen(random.Random(1), 2.0))


def test_asked_to_stop_at_any_point_a_run_saves(forks, tiny_idx, tmp_path):
    proof = Proof(forks, tiny_idx, tmp_path)
    proof.disturb_until(4, proof.signal_at_point(random.Random(1)))
    proof.disturb_until(6, proof.signal_anywhen(random.Random(1), 2.0))
    assert not proof.unsaved


def show(capsys: pytest.CaptureFixture[str], what: str, *proofs: Proof) -> None:
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *(proof.report(what) for proof in proofs), ""]))


@pytest.mark.slow
def test_two_hundred_kills(forks, tiny_idx, tmp_path, capsys):
    one = Proof(forks, tiny_idx, tmp_path / "one")
    one.disturb_until(130, one.kill_at_point(random.Random(2)))
    one.disturb_until(170, one.kill_anywhen(random.Random(3), 2.5))
    two = Proof(forks, tiny_idx, tmp_path / "two", ranks=2)
    two.disturb_until(15, two.kill_at_point(random.Random(4)))
    two.disturb_until(30, two.kill_anywhen(random.Random(5), 15.0))
    show(capsys, "kills", one, two)


@pytest.mark.slow
def test_a_hundred_signals(forks, tiny_idx, tmp_path, capsys):
    one = Proof(forks, tiny_idx, tmp_path / "one")
    one.disturb_until(30, one.signal_at_point(random.Random(6)))
    one.disturb_until(80, one.signal_anywhen(random.Random(7), 2.5))
    two = Proof(forks, tiny_idx, tmp_path / "two", ranks=2)
    two.disturb_until(20, two.signal_anywhen(random.Random(8), 15.0))
    show(capsys, "signals", one, two)
    assert len(one.unsaved) + len(two.unsaved) <= 1
