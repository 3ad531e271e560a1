"""Updates that the device records: what is recorded here is replayed on a CPU, call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_runs import losses_of
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitbase
from vitbase.errors import ConfigError, DeviceError
from vitbase.runtime import Runtime
from vitbase.training import recorded

OPTIONS: dict[str, Any] = {
    "total_steps": 14,
    "log_every_steps": 1,
    "accumulation_steps": 2,
    "batch_size": 4,
    "schedule": "constant",
    "lr_init": 2**-8,  # and a decay that single precision holds exactly, as the device has them
    "weight_decay": 2**-6,
    "clip_norm": 0.5,
    "head_init_std": 0.02,
}


class Tape(TorchDispatchMode):
    """Records what is computed, and computes it again into the same memory, as a graph does.

    What the host computes meanwhile is not repeated, and what it reads is not allowed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.is_new = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host reads"
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, tensors_in(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        if self.is_new:  # what was recorded was computed, which a device does not do
            self.is_new = False
            return
        for function, args, kwargs, places in self.calls:
            for place, value in zip(places, tensors_in(function(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def tensors_in(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


class TapeRecorder:
    tapes: list[Tape]

    def __init__(self, device: torch.device) -> None:
        pass

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Tape, Any]:
        tape = Tape()
        with tape:
            result = work()
        self.tapes.append(tape)
        return tape, result


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """What a CPU records, if asked to."""
    monkeypatch.setattr(Runtime, "has_graphs", True)
    monkeypatch.setattr(recorded, "Recorder", TapeRecorder)
    monkeypatch.setattr(TapeRecorder, "tapes", [], raising=False)
    return TapeRecorder.tapes


def weights_of(run: Any) -> dict[str, Tensor]:
    newest = max((run / "checkpoints").glob("train_vit_*"), key=lambda path: path.stat().st_mtime)
    return load_file(newest / "weights.safetensors")


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {"total_steps": 6, "precision": "bf16", "activation_checkpointing": True}),
        (
            "momentum",
            {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mix_probability": 0.7, "ema_decay": 0.9}
            | {"stochastic_depth": 0.3, "label_smoothing": 0.1, "pool": "token"},
        ),
    ],
)
def test_replayed_updates_are_the_plain_ones(tiny_config, tmp_path, tapes, optimizer, options):
    plain = tiny_config(
        output_dir=str(tmp_path / "plain"), **OPTIONS | options, optimizer=optimizer
    )
    vitbase.train(plain)
    assert not tapes
    again = plain.replace(device_graph=True, output_dir=str(tmp_path / "again"))
    vitbase.train(again)
    assert len(tapes) == (6 if "mixup_alpha" in options else 2)
    assert any(not tape.is_new for tape in tapes)
    assert losses_of(again.output_dir) == losses_of(plain.output_dir)
    for name, weight in weights_of(again.output_dir).items():
        assert torch.equal(weight, weights_of(plain.output_dir)[name]), name


def test_a_recorded_step_takes_the_rate_of_its_update(tiny_config, tmp_path, tapes):
    options = OPTIONS | {"schedule": "cosine", "optimizer": "adamw", "total_steps": 6}
    plain = tiny_config(output_dir=str(tmp_path / "plain"), **options)
    again = plain.replace(device_graph=True, output_dir=str(tmp_path / "again"))
    for config in (plain, again):
        vitbase.train(config)
    assert losses_of(again.output_dir) == pytest.approx(losses_of(plain.output_dir), rel=1e-6)


def test_a_continued_run_records_anew(tiny_config, tmp_path, tapes):
    options = OPTIONS | {"device_graph": True, "checkpoint_every_steps": 7, "optimizer": "adamw"}
    whole = tiny_config(output_dir=str(tmp_path / "whole"), **options)
    vitbase.train(whole)
    part = whole.replace(output_dir=str(tmp_path / "part"))
    vitbase.train(part)
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        if not path.name.endswith("1_7"):
            path.rename(tmp_path / path.name)
    vitbase.train(part)
    assert losses_of(part.output_dir) == losses_of(whole.output_dir)


def test_an_update_without_a_number_is_passed_over_when_replayed(tiny_config, tapes, monkeypatch):
    from vitbase.training.schedule import Schedule

    rate = Schedule.at
    monkeypatch.setattr(Schedule, "at", lambda self, n: 1e38 if n == 9 else rate(self, n))
    options = OPTIONS | {"optimizer": "momentum", "max_nonfinite_updates": 2}
    config = tiny_config(**options, device_graph=True)
    with pytest.raises(vitbase.VitbaseError, match="NaN or infinite at update 11"):
        vitbase.train(config)
    assert tapes


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"optimizer": "lamb"}, "optimizer lamb"),
        ({"optimizer": "muon"}, "optimizer muon"),
        ({"precision": "fp16"}, "precision fp16"),
        ({"parallel": "fsdp"}, "parallel fsdp"),
        ({"num_devices": 2}, "num_devices 2"),
        ({"activation_checkpointing": True, "dropout": 0.1}, "blocks that are computed again"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tiny_config, options, what):
    with pytest.raises(ConfigError, match=f"device_graph cannot record {what}.*--device_graph"):
        tiny_config(**{"optimizer": "adamw", "device_graph": True, **options})


def test_a_device_that_records_nothing_is_named(tiny_config):
    config = tiny_config(device_graph=True, optimizer="adamw")
    with pytest.raises(DeviceError, match=r"this run computes on cpu.*Leave out --device_graph"):
        vitbase.train(config)
    assert not config.output_dir.exists()
