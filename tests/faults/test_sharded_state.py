"""Training state that ranks shard: each writes its rows, and any number of ranks opens them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import PLAN, Plan
from made_runs import TINY
from ranks import start_ranks, train, train_on, wait_for
from safetensors.torch import load_file, save_file

from vitbase.errors import CheckpointError
from vitbase.runs import writer
from vitbase.runs.checkpoints import find_damage, list_checkpoints, state_files
from vitbase.runs.writer import Copies
from vitbase.training.state import SLICES, stored_tensors

OPTIONS: dict[str, Any] = {
    **TINY,
    **{"batch_size": 5, "num_workers": 1, "keep_checkpoint_max": 1, "optimizer": "adamw"},
}


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1].path


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: get() for name, get in stored_tensors(checkpoint)().items()}


def unshared(recipe: str, options: dict[str, Any]) -> None:
    """Train where the second rank does not see the first one's files."""
    is_dir = Path.is_dir
    if os.environ["RANK"] == "1":
        Path.is_dir = lambda path: ".writing-" not in path.name and is_dir(path)
    train(recipe, options)


def with_a_full_disk(recipe: str, options: dict[str, Any]) -> None:
    """Train where the second rank's first part finds no room."""
    if os.environ["RANK"] == "1":
        plan = Plan(str(options["output_dir"]), "ENOSPC", 1, touch="write")
        plan.for_the_writer(pytest.MonkeyPatch())
    train(recipe, options)


def with_a_lost_writer(recipe: str, options: dict[str, Any]) -> None:
    """Train where the second rank's first writer is killed."""
    if os.environ["RANK"] == "1":
        plan = Plan(str(options["output_dir"]), "kill-self", 1, touch="write")
        plan.for_the_writer(pytest.MonkeyPatch())
        start = writer._started

        def start_once(memory: int) -> Any:
            process = start(memory)
            os.environ.pop(PLAN, None)  # the writer after it lives
            return process

        writer._started = start_once
    train(recipe, options)


def without_memory(recipe: str, options: dict[str, Any]) -> None:
    """Train where the second rank has no memory for its first copy."""
    if os.environ["RANK"] == "1":
        add, calls = Copies.add, []

        def adding(self: Copies, *given: Any) -> Any:
            calls.append(given)
            if len(calls) == 1:
                raise MemoryError("no memory")
            return add(self, *given)

        Copies.add = adding
    train(recipe, options)


@pytest.mark.parametrize("target", [with_a_lost_writer, without_memory])
def test_the_first_rank_waits_for_no_part_that_never_comes(tiny_idx, tmp_path, target):
    run = tmp_path / "run"
    options = {**OPTIONS, "data_path": str(tiny_idx), "output_dir": str(run), "parallel": "fsdp"}
    assert wait_for(start_ranks(tmp_path, target, [("fashion", options)] * 2)) == [0, 0]
    first = (tmp_path / "rank-0.log").read_text()
    assert "-1_6 could not be written: another rank could not write its part" in first
    assert [checkpoint.epoch for checkpoint in list_checkpoints(run / "checkpoints")] == [2]


def test_each_rank_writes_its_rows(tiny_idx, tmp_path):
    options = {**OPTIONS, "data_path": str(tiny_idx)}
    train_on(tmp_path / "fsdp", 2, "fashion", parallel="fsdp", **options)
    train_on(tmp_path / "ddp", 2, "fashion", parallel="ddp", **options)
    checkpoint = newest(tmp_path / "fsdp")
    files = state_files(checkpoint)
    assert [path.name for path in files] == [
        f"training_state-0000{rank}-of-00002.safetensors" for rank in (1, 2)
    ]
    assert find_damage(checkpoint) is None
    assert not list(checkpoint.glob("*.sha256"))
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 0.7 * sum(sizes)
    ours, theirs = tensors_of(checkpoint), tensors_of(newest(tmp_path / "ddp"))
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, atol=1e-5, rtol=1e-3)


def test_where_ranks_share_no_files_the_first_writes_all(tiny_idx, tmp_path):
    run = tmp_path / "run"
    options = {**OPTIONS, "data_path": str(tiny_idx), "output_dir": str(run), "parallel": "fsdp"}
    assert wait_for(start_ranks(tmp_path, unshared, [("fashion", options)] * 2)) == [0, 0]
    assert [path.name for path in state_files(newest(run))] == ["training_state.safetensors"]
    assert not list(run.glob("checkpoints/.writing-*"))


def test_a_part_that_cannot_be_written_is_said_by_both(tiny_idx, tmp_path):
    run = tmp_path / "run"
    options = {**OPTIONS, "data_path": str(tiny_idx), "output_dir": str(run), "parallel": "fsdp"}
    assert wait_for(start_ranks(tmp_path, with_a_full_disk, [("fashion", options)] * 2)) == [0, 0]
    first, second = ((tmp_path / f"rank-{rank}.log").read_text() for rank in (0, 1))
    assert "-1_6 could not be written: another rank could not write its part" in first
    assert "[rank 1] WARNING: checkpoint train_vit_fashion-1_6" in second
    assert "No space left" in second
    assert [checkpoint.epoch for checkpoint in list_checkpoints(run / "checkpoints")] == [2]
    assert find_damage(newest(run)) is None


@pytest.mark.parametrize("kind", ["missing", "twice", "no rows", "other shape", "nonsense"])
def test_rows_that_do_not_fit_are_named(tmp_path, kind):
    def put(number: int, start: int, tensor: torch.Tensor, slices: str | None = None) -> None:
        path = tmp_path / f"training_state-0000{number}-of-00002.safetensors"
        save_file({"exp_avg/w": tensor}, path, {SLICES: slices or f'{{"exp_avg/w": [{start}, 4]}}'})

    put(1, 0, torch.zeros(2, 3))
    put(2, 2, torch.ones(2, 3))
    assert torch.equal(tensors_of(tmp_path)["exp_avg/w"].sum(1), torch.tensor([0.0, 0, 3, 3]))
    if kind == "missing":
        put(2, 3, torch.ones(1, 3))
    elif kind == "twice":
        put(2, 1, torch.ones(3, 3))
    elif kind == "no rows":
        put(2, -1, torch.ones(2, 3), slices="{}")
    elif kind == "other shape":
        put(2, 2, torch.ones(2, 4))
    else:
        put(2, 2, torch.ones(2, 3), slices="[1]")
    with pytest.raises(CheckpointError, match=r"rows"):
        tensors_of(tmp_path)


def test_no_part_is_more_than_its_rows(tiny_idx, tmp_path):
    train_on(tmp_path / "run", 2, "fashion", parallel="fsdp", data_path=str(tiny_idx), **OPTIONS)
    for path in state_files(newest(tmp_path / "run")):
        for name, tensor in load_file(path).items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
