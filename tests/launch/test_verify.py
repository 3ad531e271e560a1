"""`vitbase verify-resume`: what it does to a run, what it finds, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_runs import TINY
from ranks import command, start_one
from safetensors.torch import load_file, save_file

import vitbase
from vitbase.errors import ConfigError
from vitbase.launch.verify import Verification, verify
from vitbase.runs.checkpoints import find_damage, write_manifest
from vitbase.training.sameness import Finding, compare_runs
from vitbase.training.step import Learner

STEPS = 60
SMALL: dict[str, Any] = {
    **TINY,
    "total_steps": STEPS,
    "log_every_steps": 1,
    "checkpoint_every_steps": 5,
    "keep_checkpoint_max": 2,
    "eval_every_epochs": 5,
}


class Forked:
    """A command in a process that has torch already, as `subprocess.Popen` shows one."""

    def __init__(self, target: Callable[..., None], words: Sequence[str], log: Path) -> None:
        self.process = start_one(log, target, ([*words],))
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join(120)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, sig: int, /) -> None:
        os.kill(self.pid, sig)


def slow(words: list[str]) -> None:
    """A command whose steps take long enough to be killed within."""
    step = Learner.step

    def stepping(self: Learner, *args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return step(self, *args, **options)

    Learner.step = stepping  # type: ignore[method-assign]
    command(words)


def forgetful(words: list[str]) -> None:
    """As `slow`, but what goes on has no momentum."""
    Learner.restore = lambda self, *args, **options: None  # type: ignore[method-assign]
    slow(words)


def words_of(data: Path, **options: Any) -> list[str]:
    every = {**SMALL, "data_path": data, **options}
    return ["fashion", *(f"--{name}={value}" for name, value in every.items())]


def test_a_run_that_goes_on_passes(tiny_idx, tmp_path, capsys):
    words = tuple(words_of(tiny_idx))
    start = partial(Forked, slow)
    assert verify(Verification(words, tmp_path / "runs", kills=2, seed=1, start=start))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        *("uninterrupted", "SIGKILL", "SIGTERM", "went on"),
        *("weights", "training state", "progress", "training rows", "evaluation rows", "PASS"),
    ]
    assert f"{STEPS} updates" in lines[0]
    assert "after update " in lines[1]
    asked, goes_on = lines[2].split("after update ")[1].split("; goes on from ")
    assert asked == goes_on  # SIGTERM loses nothing
    assert "equal bit for bit" in lines[4]
    assert f"{STEPS}, each step once; equal" in lines[7]


def test_a_run_that_is_over_too_soon_is_a_mistake(tiny_idx, tmp_path):
    words = tuple(words_of(tiny_idx, total_steps=4))
    start = partial(Forked, command)
    with pytest.raises(ConfigError, match=r"[0-3] of 9 kills came in time"):
        verify(Verification(words, tmp_path / "runs", kills=9, start=start))


def test_a_run_that_forgets_its_momentum_fails(tiny_idx, tmp_path, capsys):
    words = tuple(words_of(tiny_idx))
    start = partial(Forked, forgetful)
    assert not verify(Verification(words, tmp_path / "runs", kills=1, seed=3, start=start))
    said = capsys.readouterr().out
    assert " tensors differ, by " in said
    assert "<- does not hold" in said
    assert said.splitlines()[-1] == "FAIL (--verify_seed 3 kills at the same updates)"


def test_the_command_ends_with_what_was_found(tiny_idx, tmp_path, vitbase_command, monkeypatch):
    asked: list[Verification] = []
    for holds, code in ((True, 0), (False, 1)):

        def verifying(given: Verification, holds: bool = holds) -> bool:
            asked.append(given)
            return holds

        monkeypatch.setattr("vitbase.launch.verify.verify", verifying)
        options = ("--kills", 5, "--verify_seed=7", "--other_devices", 2, "--output_dir", tmp_path)
        assert vitbase_command("verify-resume", "--seed", 3, *options)[0] == code
    first = asked[0]
    assert (first.kills, first.seed, first.other_devices, first.folder) == (5, 7, 2, tmp_path)
    assert first.words == (
        *("fashion", "--seed", "3", "--log_every_steps", "1", "--checkpoint_every_steps", "5"),
        *("--keep_checkpoint_max", "2", "--total_steps", "40"),
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--kills", 0], "Option 'kills' should be at least 1, but is 0."),
        (["--kills"], "kills"),
        (["--verify_seed", "x"], "'verify_seed' should be"),
        (["--other_devices", 0], "Option 'other_devices' should be at least 1, but is 0."),
        (["--log_every_steps", 2], "Option 'log_every_steps' should be 1"),
        (["--lr_intt", 2], "Unknown option '--lr_intt'. Did you mean"),
        (["no_such"], "no_such"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(words, text, vitbase_command):
    code, _, err = vitbase_command("verify-resume", *words)
    assert code == 2
    assert text in err


def test_a_folder_in_use_and_a_run_that_cannot_be_are_mistakes(tmp_path, vitbase_command):
    (tmp_path / "whole").mkdir()
    code, _, err = vitbase_command("verify-resume", "--output_dir", tmp_path)
    assert code == 2
    assert "whole is there already" in err
    place = tmp_path / "other"
    missing = ("--data_path", tmp_path / "none")
    code, _, err = vitbase_command("verify-resume", *missing, "--output_dir", place)
    assert code == 2
    assert str(tmp_path / "none") in err


@pytest.fixture(scope="module")
def runs(tiny_idx, tmp_path_factory) -> tuple[Path, Path]:
    """A run, and a copy of it."""
    folder = tmp_path_factory.mktemp("runs")
    one = {"data_path": str(tiny_idx), "output_dir": str(folder / "one"), "epoch_size": 1}
    vitbase.train(vitbase.load_config("fashion", **{**TINY, **one}))
    return folder / "one", folder / "two"


def differing(runs: tuple[Path, Path], tolerance: float = 0.0) -> list[Finding]:
    one, two = runs
    return [found for found in compare_runs(two, one, tolerance=tolerance) if not found.holds]


@pytest.fixture
def copied(runs) -> tuple[Path, Path]:
    one, two = runs
    shutil.rmtree(two, ignore_errors=True)
    shutil.copytree(one, two)
    return runs


def change_rows(run: Path, change: Any) -> None:
    path = run / "metrics.jsonl"
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_copy_is_the_same(copied):
    assert differing(copied) == []
    change_rows(copied[1], lambda rows: [{**r, "images_per_second": 1.0} for r in rows])
    assert differing(copied) == []


def test_differences_of_metrics_are_found(copied):
    _, two = copied
    change_rows(two, lambda rows: [{**r, "loss": r["loss"] + 1e-6} for r in rows if "loss" in r])
    found = differing(copied)
    assert [finding.what for finding in found] == ["training rows", "evaluation rows"]
    assert "they differ at steps 1, 2, 4, …" in found[0].outcome
    assert "steps 6 in one of them only" in found[1].outcome
    assert [finding.what for finding in differing(copied, 1e-5)] == ["evaluation rows"]


def test_a_step_that_stands_there_twice_is_found(copied):
    change_rows(copied[1], lambda rows: [*rows[:2], *itertools.islice(rows, 1, None)])
    (found,) = differing(copied)
    assert "steps 2 more than once" in found.outcome


def test_differences_of_weights_are_found_and_at_another_world_size_told(copied):
    _, two = copied
    (place,) = (two / "checkpoints").glob("train_vit*")
    tensors = load_file(place / "weights.safetensors")
    name = next(name for name in tensors if name.endswith("attn.qkv.bias"))
    tensors[name][0] += 0.5
    save_file(tensors, place / "weights.safetensors")
    assert find_damage(place) is not None
    write_manifest(place)
    (found,) = differing(copied)
    assert found.what == "weights"
    assert found.outcome == f"1 of {len(tensors)} tensors differ, by 0.5 at most: {name}"
    assert differing(copied, 1e-5) == []
    told = [f.outcome for f in compare_runs(two, copied[0], tolerance=1e-5) if f.what == "weights"]
    assert told == [f"{len(tensors)} tensors, 0.5 apart at most"]


def test_large_numbers_are_compared_by_their_size(copied):
    _, two = copied
    for change, holds in ((1 + 1e-6, True), (1 + 1e-4, False)):
        change_rows(copied[0], lambda rows: [{**r, "gradient_norm": 100.0} for r in rows])
        change_rows(two, lambda rows, x=change: [{**r, "gradient_norm": 100.0 * x} for r in rows])
        assert (differing(copied, 1e-5) == []) == holds
