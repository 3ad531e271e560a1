"""Updates without a number: nothing changes, the run knows, and it goes on, back, or ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_bad_updates import spoil
from made_runs import TINY, losses_of, rows_of
from ranks import start_ranks, train, wait_for
from safetensors.torch import load_file

import vitbase
from vitbase.config.config import Config
from vitbase.errors import CheckpointError, WeightsError
from vitbase.runs.checkpoints import list_checkpoints
from vitbase.runs.passed_over import PASSED_OVER_FILE, PassedOver, read_passed_over
from vitbase.runtime import Runtime
from vitbase.training.guard import DivergedError
from vitbase.training.objective import Objective
from vitbase.training.replay import replay
from vitbase.training.step import Learner

OPTIONS: dict[str, Any] = {
    "optimizer": "adamw",
    "clip_norm": 1.0,
    "ema_decay": 0.5,
    "stochastic_depth": 0.2,
    "train_crop": "pad",
    "checkpoint_every_steps": 5,
    "keep_checkpoint_max": 20,
}


@pytest.fixture
def run(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """Train in a folder, with updates that are spoiled; return the folder."""

    def train_in(name: str, bad: Any = (), what: Any = "loss", **options: Any) -> Path:
        config = tiny_config(**{**OPTIONS, **options}, output_dir=str(tmp_path / name))
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, bad, what)
            vitbase.train(config)
        return config.output_dir

    return train_in


@pytest.fixture
def planned(run: Callable[..., Path]) -> Callable[..., Path]:
    """Train in a folder without the updates from one to before another."""

    def train_without(name: str, first: int, to: int, **options: Any) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PassedOver, "beyond", lambda self, n: to if first <= n < to else n)
            return run(name, **options)

    return train_without


def assert_same_end(left: Path, right: Path) -> None:
    ours, theirs = (list_checkpoints(folder / "checkpoints")[-1].path for folder in (left, right))
    assert ours.name == theirs.name
    for file in ("weights.safetensors", "training_state.safetensors"):
        mine, other = load_file(ours / file), load_file(theirs / file)
        assert mine.keys() == other.keys()
        for name in mine:
            assert torch.equal(mine[name], other[name]), name


class InterruptedRunError(Exception):
    """Stands for whatever ends a process between two updates."""


def interrupt_at(patch: pytest.MonkeyPatch, updates: int) -> None:
    step = Learner.step

    def counted(self: Learner, update: int, *arguments: Any, **named: Any) -> Any:
        if update == updates:
            raise InterruptedRunError
        return step(self, update, *arguments, **named)

    patch.setattr(Learner, "step", counted)


@pytest.mark.parametrize(
    ("optimizer", "what", "bad"),
    [
        ("momentum", "gradient", 0),
        ("adamw", "loss", 7),
        ("lamb", "loss", 0),
        ("lamb", "loss", 7),
        ("muon", "loss", 7),
    ],
)
def test_a_bad_update_is_none(run, planned, capsys, optimizer, what, bad):
    with pytest.MonkeyPatch.context() as patch:  # as on devices, of which the host asks later
        patch.setattr(Runtime, "reads_at_once", False)
        found = run("found", {bad}, what, optimizer=optimizer)
    told = capsys.readouterr().out
    assert (
        f"The {what} became NaN or infinite at update {bad + 1}. All outputs are numbers, of"
        in told
    )
    assert f"`vitbase debug replay {found / 'blackbox' / f'update-{bad + 1}'}`" in told
    wanted = planned("wanted", bad, bad + 1, optimizer=optimizer)
    assert_same_end(found, wanted)
    assert read_passed_over(found) == PassedOver((bad,))


def test_log_lines_leave_bad_updates_out(run):
    folder = run("run", {6}, ema_decay=None, log_every_steps=2)
    rows = [row for row in rows_of(folder) if "loss" in row]
    assert all(row["loss"] < 4 for row in rows)
    assert [row.get("passed_over_updates") for row in rows] == [*[None] * 4, 1, None, None]
    alone = run("alone", {6}, ema_decay=None, log_every_steps=1)
    assert [row["loss"] for row in rows_of(alone) if row["step"] == 7] == [None]


def test_a_run_that_has_passed_over_an_update_is_continued_bit_for_bit(run, monkeypatch):
    whole = run("whole", {3, 7})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        with pytest.raises(InterruptedRunError):
            run("stopped", {3, 7})
    assert_same_end(run("stopped", {3, 7}), whole)


def test_the_row_goes_on_where_a_run_does(run, monkeypatch, tmp_path):
    """Stopped between the second and the third of them, at a checkpoint."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(InterruptedRunError):
            run("run", {8, 9, 10}, checkpoint_every_steps=2)
    with pytest.raises(
        DivergedError, match=r"at update 11\..* from update 9 on, 3 in a row; none was"
    ):
        run("run", {8, 9, 10}, checkpoint_every_steps=2)
    (newest,) = (tmp_path / "run" / "checkpoints").glob("*-2_4")
    assert all(torch.isfinite(t).all() for t in load_file(newest / "weights.safetensors").values())


def test_a_run_goes_on_after_fewer_in_a_row_than_it_bears(run):
    folder = run("run", {1, 2, 4, 5, 7, 8, 10, 11})
    assert len(read_passed_over(folder).nonfinite) == 8
    # The first ones are kept: they tell most.
    boxes = sorted(path.name for path in (folder / "blackbox").iterdir())
    assert boxes == ["update-2", "update-3", "update-5"]
    with pytest.raises(DivergedError, match=r"update 2\..* It was not applied\. There is no check"):
        run("other", {1}, max_nonfinite_updates=1)


def test_a_run_goes_back_and_on_without_the_images_since(run, planned, monkeypatch, capsys):
    """Back to the checkpoint after update 7: the row begins with update 9."""
    options = {"on_nonfinite": "rewind", "checkpoint_every_steps": 7, "epoch_size": 3}
    bad = {8, 9, 10}
    found = run("found", bad, **options)
    assert "updates 8 to 11 are passed over" in capsys.readouterr().out
    wanted = planned("wanted", 7, 11, **options)
    assert_same_end(found, wanted)
    assert [row["step"] for row in rows_of(found)] == [row["step"] for row in rows_of(wanted)]
    assert losses_of(found) == losses_of(wanted)
    assert read_passed_over(found).rewinds == ((7, 11),)
    # Killed after that and before the next checkpoint.
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(InterruptedRunError):
            run("stopped", bad, **options)
    stopped = run("stopped", bad, **options)
    assert_same_end(stopped, wanted)
    # With a checkpoint after each update: those inside the row go.
    every = run("every", bad, **{**options, "checkpoint_every_steps": 1})
    assert read_passed_over(every).rewinds == ((8, 11),)
    names = {path.name.removeprefix("train_vit_fashion-") for path in every.glob("checkpoints/t*")}
    assert names == {f"{1 + n // 6}_{1 + n % 6}" for n in range(18) if n not in {8, 9, 10}}


def test_a_way_back_may_end_an_epoch_and_is_not_tried_for_ever(run, planned):
    options = {"on_nonfinite": "rewind", "checkpoint_every_steps": None, "epoch_size": 2}
    found = run("found", {9, 10, 11}, **options)
    assert_same_end(found, planned("wanted", 6, 12, **options))
    assert rows_of(found)[-1]["step"] == 12
    with pytest.raises(DivergedError, match=r"went back to .*-1_6 3 times, and found no way on"):
        run("never", range(8, 99), **{**options, "epoch_size": 4, "log_every_steps": 50})
    with pytest.raises(DivergedError, match="There is no checkpoint"):
        run("early", {1, 2, 3}, **options)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), WeightsError("Full.")])
def test_a_box_that_cannot_be_written_ends_no_run(run, monkeypatch, capsys, error):
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vitbase.training.blackbox.save_weights", full)
    folder = run("run", {3})
    assert "could not be written to" in capsys.readouterr().out
    assert list((folder / "blackbox").iterdir()) == []
    assert read_passed_over(folder).nonfinite == (3,)


def test_a_loss_that_jumps_is_told_of(run, monkeypatch, capsys):
    loss_sum = Objective.loss_sum
    step = Learner.step
    under_way = {"update": 0}

    def noted(self: Learner, update: int, *arguments: Any, **named: Any) -> Any:
        under_way["update"] = update
        return step(self, update, *arguments, **named)

    def spike(self: Objective, *arguments: Any) -> torch.Tensor:
        factor = 2.5 if under_way["update"] in {3, 10} else 1.0
        return factor * loss_sum(self, *arguments)

    monkeypatch.setattr(Learner, "step", noted)
    monkeypatch.setattr(Objective, "loss_sum", spike)
    run("run", log_every_steps=1, ema_decay=None)
    told = [line for line in capsys.readouterr().out.splitlines() if "has jumped" in line]
    assert len(told) == 1  # of the first one nobody can say what is usual
    assert "up to update 11, from 2." in told[0]


def test_a_run_that_begins_anew_has_passed_over_nothing(run, planned, tmp_path):
    (tmp_path / "run").mkdir()
    PassedOver((0, 1), ((0, 4),)).write(tmp_path / "run")
    assert_same_end(run("run"), planned("wanted", 99, 99))


def test_half_precision_finds_its_scale_without_alarm(run, monkeypatch, capsys):
    monkeypatch.setattr("vitbase.runtime._INITIAL_LOSS_SCALE", 4.0)
    options = {"precision": "fp16", "stochastic_depth": None}
    folder = run("scale", {3, 4}, "gradient", **options)
    assert "Warning" not in capsys.readouterr().out
    assert not (folder / PASSED_OVER_FILE).exists()
    assert sum(row.get("passed_over_updates", 0) for row in rows_of(folder)) == 2
    run("loss", {3}, **options)
    assert "The loss became NaN or infinite at update 4" in capsys.readouterr().out
    # The scale is 1 after two of them, and no help from there on.
    with pytest.raises(DivergedError, match="The gradient became NaN or infinite at update 3"):
        run("never", range(99), "gradient", **options)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lamb", "muon"])
def test_nobody_waits_for_the_device_in_an_update(run, monkeypatch, optimizer):
    """What the host reads from a tensor, it reads where it settles the update before."""
    step = Learner.step

    def waits(*_: object) -> None:
        raise AssertionError("the host reads a tensor")

    def watched(self: Learner, *arguments: Any, settle: Callable[[], None], **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:

            def settled() -> None:
                patch.undo()
                settle()
                forbid(patch)

            forbid(patch)
            return step(self, *arguments, settle=settled, **named)

    def forbid(patch: pytest.MonkeyPatch) -> None:
        for name in ("item", "tolist", "__bool__", "__float__"):
            patch.setattr(torch.Tensor, name, waits)

    monkeypatch.setattr(Learner, "step", watched)
    monkeypatch.setattr(Runtime, "reads_at_once", False)
    run("run", {3}, optimizer=optimizer, stochastic_depth=None)


def spoiled_on_rank(rank: int, bad: list[int], what: Any, options: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, bad, what, rank=rank)
        train("fashion", options)


@pytest.mark.parametrize(
    ("parallel", "optimizer", "what"), [("ddp", "adamw", "loss"), ("fsdp", "momentum", "gradient")]
)
def test_ranks_pass_over_the_same_updates(run, tiny_idx, tmp_path, parallel, optimizer, what):
    """Bad on the second rank alone: first one update, then some in a row, and all go back."""
    options = {"optimizer": optimizer, "on_nonfinite": "rewind"}
    bad = [2, 8, 9, 10]
    folder = tmp_path / "ranks"
    shared = {**TINY, **OPTIONS, **options, "batch_size": 5, "parallel": parallel}
    arguments = (1, bad, what, {**shared, "data_path": str(tiny_idx), "output_dir": str(folder)})
    codes = wait_for(start_ranks(tmp_path / "logs", spoiled_on_rank, [arguments] * 2))
    assert codes == [0, 0], (tmp_path / "logs" / "rank-0.log").read_text()
    alone = run("alone", bad, what, **options)
    assert losses_of(folder) == pytest.approx(losses_of(alone), abs=2e-4)  # as of a sound run
    assert read_passed_over(folder) == read_passed_over(alone)
    box = folder / "blackbox" / "update-3"
    facts = json.loads((box / "box.json").read_text())
    assert [seen["rank"] for seen in facts["passes"]] == [0, 1]
    assert load_file(box / "inputs.safetensors")["1/images"].shape == (5, 16, 16, 1)
    assert replay(str(folder), "CPU").verdict.startswith("All is finite here")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"nonfinite_updates": [0], "rewinds": []}', '{"nonfinite_updates": [true]}'],
)
def test_what_was_passed_over_is_read_or_named(tmp_path, text):
    assert read_passed_over(tmp_path) == PassedOver()
    known = PassedOver((3, 4), ((2, 5), (6, 9)))
    known.write(tmp_path)
    assert read_passed_over(tmp_path) == known
    assert [known.beyond(n) for n in (1, 2, 4, 5, 6, 9)] == [1, 5, 5, 5, 9, 9]
    assert known.row_before(5) == ()
    assert PassedOver((1, 3, 4)).row_before(5) == (3, 4)
    assert known.cut_back(4).nonfinite == (3,)
    (tmp_path / PASSED_OVER_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="does not say which updates"):
        read_passed_over(tmp_path)
