"""Several ranks compute what one computes, and a run may change their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imitated import train_imitating
from made_runs import TINY, losses_of, rows_of
from ranks import command, start_ranks, train, train_on, wait_for

from vitbase import runtime

# Everything that could depend on how a global batch is dealt out, but for plain dropout.
OPTIONS: dict[str, Any] = {
    **TINY,
    "epoch_size": 100,
    "total_steps": 12,
    "log_every_steps": 1,
    "num_workers": 1,
    "global_batch": 16,
    "batch_size": 4,
    "eval_batch_size": 3,
    "optimizer": "adamw",
    "lr_init": 0.003,
    "clip_norm": 0.5,
    "ema_decay": 0.9,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "stochastic_depth": 0.3,
    "label_smoothing": 0.1,
    "eval_every_epochs": 3,
    "keep_checkpoint_max": 100,
    "policy": "randaugment_timm",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train_on(folder, 1, "fashion", data_path=str(tiny_idx), **OPTIONS)
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    found, wanted = rows_of(folder), rows_of(other)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    assert losses_of(folder) == pytest.approx(losses_of(other), abs=1e-5)
    for name in ("eval_top1", "eval_top5", "eval_images"):
        assert found[-1][name] == wanted[-1][name]
    assert found[-1]["eval_loss"] == pytest.approx(wanted[-1]["eval_loss"], abs=1e-5)
    norms = [[row["gradient_norm"] for row in rows if "loss" in row] for rows in (found, wanted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize(
    ("num_ranks", "parallel", "servers"),
    [
        *((2, "ddp", 1), (4, "ddp", 2), (2, "fsdp", 1), (4, "fsdp", 2)),
        pytest.param(4, "fsdp", 1, marks=pytest.mark.slow),
    ],
)
def test_ranks_change_no_loss(alone, tiny_idx, tmp_path, num_ranks, parallel, servers):
    """Of FSDP on two servers: shards within each of two servers, copies on both."""
    folder = tmp_path / "run"
    options = {**OPTIONS, "data_path": str(tiny_idx), "parallel": parallel}
    train_on(folder, num_ranks, "fashion", servers=servers, **options)
    assert_same_run(folder, alone)


@pytest.mark.parametrize(
    ("before", "after"), [((1, "auto"), (2, "fsdp")), ((4, "fsdp"), (2, "ddp"))]
)
def test_a_run_goes_on_with_another_number_of_ranks(alone, tiny_idx, tmp_path, before, after):
    folder = tmp_path / "run"
    options = {**OPTIONS, "data_path": str(tiny_idx), "checkpoint_every_steps": 8}
    train_on(folder, before[0], "fashion", parallel=before[1], **options)
    # As if it had been stopped after update 8: what came later is not there.
    for path in (folder / "checkpoints").iterdir():
        if path.name != "train_vit_fashion-3_2":
            path.rename(tmp_path / path.name)
    train_on(folder, after[0], "fashion", parallel=after[1], **options)
    assert_same_run(folder, alone)
    assert "Continuing from" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_each_optimizer_trains_on_two_ranks(tiny_idx, tmp_path):
    for optimizer, parallel in (("momentum", "fsdp"), ("lamb", "fsdp"), ("muon", "ddp")):
        options = {**OPTIONS, "data_path": str(tiny_idx), "optimizer": optimizer}
        train_on(tmp_path / optimizer / "one", 1, "fashion", **options)
        train_on(tmp_path / optimizer / "two", 2, "fashion", parallel=parallel, **options)
        assert_same_run(tmp_path / optimizer / "two", tmp_path / optimizer / "one")


def test_the_evaluation_of_ranks_counts_every_image_once(alone, tiny_idx, tmp_path):
    words = ["eval", "--checkpoint_path", str(alone), "--data_path", str(tiny_idx), "--json"]
    codes = wait_for(start_ranks(tmp_path, command, [(words,)] * 3))
    assert codes == [0, 0, 0]
    printed = [(tmp_path / f"rank-{rank}.log").read_text() for rank in range(3)]
    assert printed[1:] == ["", ""]
    counted = json.loads(printed[0].splitlines()[-1])
    last = rows_of(alone)[-1]
    for name in ("eval_top1", "eval_top5", "eval_images"):
        assert counted[name] == last[name]


def test_other_options_on_a_rank_are_found_at_the_start(tiny_idx, tmp_path):
    options = {**OPTIONS, "data_path": str(tiny_idx), "output_dir": str(tmp_path / "run")}
    words = [[f"--{name}={value}" for name, value in options.items()] for _ in range(2)]
    words[1].append("--lr_init=0.5")
    arguments = [(["train", "fashion", *own],) for own in words]
    assert wait_for(start_ranks(tmp_path, command, arguments)) == [2, 2]
    told = (tmp_path / "rank-0.log").read_text()
    assert "Rank 1 was started otherwise than rank 0: lr_init is 0.5, on rank 0 0.003" in told
    assert "Traceback" not in told
    assert (tmp_path / "rank-1.log").read_text() == ""
    assert not (tmp_path / "run").exists()


def test_other_images_on_a_rank_are_found_at_the_start(tiny_idx, tmp_path):
    from_embedded = {**OPTIONS, "num_train_images": None, "num_val_images": None}
    arguments = [
        ("fashion", {**from_embedded, "output_dir": str(tmp_path / "run"), "data_path": path})
        for path in (str(tiny_idx), "embedded")
    ]
    assert wait_for(start_ranks(tmp_path, train, arguments)) == [1, 1]
    for rank in range(2):
        told = (tmp_path / f"rank-{rank}.log").read_text()
        assert "Rank 1 finds other images than rank 0: 10000 for training" in told


def test_a_mistake_of_one_rank_ends_all(tiny_idx, tmp_path):
    arguments = [
        ("fashion", {**OPTIONS, "output_dir": str(tmp_path / "run"), "data_path": path})
        for path in (str(tiny_idx), "/nowhere")
    ]
    assert wait_for(start_ranks(tmp_path, train, arguments)) == [1, 1]
    assert "On rank 1: --data_path /nowhere" in (tmp_path / "rank-0.log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 15}, "cannot be dealt evenly"),
        ({"global_batch": 64}, "fewer than one global batch"),
        ({"batch_size": 5, "global_batch": None}, "Give an even --batch_size"),
    ],
)
def test_batches_that_do_not_fit_are_refused(tiny_idx, tmp_path, options, message):
    options = {**OPTIONS, **options, "data_path": str(tiny_idx), "output_dir": str(tmp_path / "r")}
    words = ["train", "fashion", *(f"--{name}={value}" for name, value in options.items())]
    assert wait_for(start_ranks(tmp_path, command, [(words,)] * 2)) == [2, 2]
    assert message in (tmp_path / "rank-0.log").read_text()
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("first_scale", [2.0**16, 2.0**40])
def test_half_precision_on_shards_passes_over_the_same_updates(tiny_idx, tmp_path, first_scale):
    """With the larger first scale every update of some shard overflows: no rank may take it."""
    options = {**OPTIONS, "data_path": str(tiny_idx), "precision": "fp16", "total_steps": 6}
    words = [f"--{name}={value}" for name, value in options.items()]
    for parallel in ("ddp", "fsdp"):
        arguments = [*words, f"--parallel={parallel}", f"--output_dir={tmp_path / parallel}"]
        ranks = start_ranks(tmp_path, with_first_scale, [(first_scale, arguments)] * 2)
        assert wait_for(ranks) == [0, 0], (tmp_path / "rank-0.log").read_text()
    found, wanted = rows_of(tmp_path / "fsdp"), rows_of(tmp_path / "ddp")
    norms = [[row["gradient_norm"] for row in rows if "loss" in row] for rows in (found, wanted)]
    if first_scale > 2.0**20:
        assert norms == [[None] * 6, [None] * 6]
    assert losses_of(tmp_path / "fsdp") == pytest.approx(losses_of(tmp_path / "ddp"), abs=2e-3)


def test_shards_in_half_precision_train_as_copies_do(tiny_idx, tmp_path):
    """What shards gather in bf16 is what autocast computes with; gradients are added in fp32."""
    options = {**OPTIONS, "data_path": str(tiny_idx), "precision": "bf16"}
    options |= {"layer_scale_init": 0.1, "total_steps": 4}
    for parallel in ("ddp", "fsdp"):
        train_on(tmp_path / parallel / "run", 2, "fashion", parallel=parallel, **options)
    found, wanted = (losses_of(tmp_path / parallel / "run") for parallel in ("fsdp", "ddp"))
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("option", "within"),
    [
        pytest.param({"precision": "bf16", "fp8": True}, 1e-3, id="fp8"),
        pytest.param({"activation_checkpointing": True}, 1e-5, id="checkpointing"),
        pytest.param({"compile": True}, 1e-5, id="compile", marks=pytest.mark.slow),
    ],
)
def test_options_of_accelerators_change_no_loss_on_two_ranks(tiny_idx, tmp_path, option, within):
    options = {**OPTIONS, "data_path": str(tiny_idx), "total_steps": 4, **option}
    for number, name in ((1, "one"), (2, "two")):
        folder = tmp_path / name / "run"
        train_on(folder, number, "fashion", target=train_imitating, **options)
    one, two = (losses_of(tmp_path / name / "run") for name in ("one", "two"))
    assert two == pytest.approx(one, abs=within)


def with_first_scale(scale: float, words: list[str]) -> None:
    runtime._INITIAL_LOSS_SCALE = scale
    command(["train", "fashion", *words])
