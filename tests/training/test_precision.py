"""Half precision where it is fast, single precision's accuracy everywhere."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from made_runs import losses_of, rows_of
from safetensors.torch import load_file

import vitbase


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.005)])
def test_a_few_steps_in_half_precision_follow_those_in_single(
    tiny_config, tmp_path, precision, tolerance
):
    options: dict[str, Any] = {"log_every_steps": 1, "total_steps": 6, "lr_init": 0.003}
    single = tiny_config(output_dir=str(tmp_path / "single"), precision="fp32", **options)
    vitbase.train(single)
    half = single.replace(output_dir=str(tmp_path / "half"), precision=precision)
    vitbase.train(half)
    assert losses_of(half.output_dir) == pytest.approx(losses_of(single.output_dir), abs=tolerance)
    assert losses_of(half.output_dir) != losses_of(single.output_dir)
    (checkpoint,) = (half.output_dir / "checkpoints").glob("train_vit_*")
    for file in ("weights.safetensors", "training_state.safetensors"):
        kinds = {tensor.dtype for tensor in load_file(checkpoint / file).values()}
        assert kinds == {torch.float32}, file


def test_an_update_that_overflows_is_passed_over(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("vitbase.runtime._INITIAL_LOSS_SCALE", 2.0**40)
    config = tiny_config(precision="fp16", total_steps=3, log_every_steps=1, ema_decay=0.5)
    vitbase.train(config)
    rows = [row for row in rows_of(config.output_dir) if "loss" in row]
    assert [row["gradient_norm"] for row in rows] == [None] * 3
    (checkpoint,) = (config.output_dir / "checkpoints").glob("train_vit_*")
    head = load_file(checkpoint / "weights.safetensors")["head.weight"]
    assert (head == 0).all()  # as it was initialised


@pytest.mark.slow
def test_mixed_precision_reaches_the_accuracy_of_single(tmp_path):
    """Two epochs on 10,000 photographs: half precision is within three deviations of the seeds."""

    def top1(**options: Any) -> float:
        name = "-".join(str(value) for value in options.values())
        config = vitbase.load_config(
            "fashion", output_dir=str(tmp_path / name), epoch_size=2, warmup_epochs=0.5, **options
        )
        return vitbase.train(config).eval_top1

    singles = [top1(precision="fp32", seed=seed) for seed in range(5)]
    mean, deviation = statistics.mean(singles), statistics.stdev(singles)
    for precision in ("bf16", "fp16"):
        found = top1(precision=precision, seed=0)
        assert abs(found - mean) < 3 * max(deviation, 0.005), (precision, found, singles)
