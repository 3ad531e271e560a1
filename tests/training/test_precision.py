"""Half precision where it is fast, single precision's accuracy everywhere."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_runs import losses_of, rows_of
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import vitbase
from vitbase.training.step import Learner


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


class CountedCasts(TorchDispatchMode):
    """Counts how often each weight is cast to another type."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        places = ((p.untyped_storage().data_ptr(), name) for name, p in model.named_parameters())
        self.names, self.counts = dict(places), Counter[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.counts.update({self.names.get(args[0].untyped_storage().data_ptr(), ""): 1})
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize("options", [{}, {"activation_checkpointing": True}, {"pool": "token"}])
def test_weights_are_cast_once_an_update(tiny_config, monkeypatch, options):
    step: Callable[..., Any] = Learner.step
    counts = []

    def counted(learner: Learner, *args: Any, **kwargs: Any) -> Any:
        with CountedCasts(learner.model) as casts:
            taken = step(learner, *args, **kwargs)
        counts.append({name: casts.counts[name] for name in casts.names.values()})
        return taken

    monkeypatch.setattr(Learner, "step", counted)
    options = {"accumulation_steps": 3, "batch_size": 4, "total_steps": 2, **options}
    vitbase.train(tiny_config(precision="bf16", **options))
    for update in counts:
        assert {n for name, n in update.items() if "norm" not in name and "." in name} == {1}
        assert update["norm.weight"] == 0
    assert len(counts) == 2


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_blocks_take_weights_that_were_cast_before(tiny_config, tmp_path, monkeypatch):
    """Compiled, a cast of a block's weight would be done anew in each of its runs."""
    from torch._dynamo.backends.common import aot_autograd

    seen: list[torch.dtype] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        seen.extend(v.dtype for v in values if getattr(v, "ndim", 0) == 2)
        return graph.forward

    backend = aot_autograd(fw_compiler=look, inference_compiler=lambda graph, _: graph.forward)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    options: dict[str, Any] = {"total_steps": 2, "accumulation_steps": 2, "batch_size": 4}
    options |= {"precision": "bf16", "log_every_steps": 1}
    for name, compiled in (("eager", False), ("compiled", True)):
        vitbase.train(tiny_config(output_dir=str(tmp_path / name), compile=compiled, **options))
    assert set(seen) == {torch.bfloat16}
    assert losses_of(tmp_path / "compiled") == pytest.approx(
        losses_of(tmp_path / "eager"), abs=1e-3
    )


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
