"""An update that gave no number is repeated from its box, and its first bad layer named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_bad_updates import before_update, spoil
from safetensors.torch import load_file, save_file

import vitbase
from vitbase.runs.checkpoints import write_manifest
from vitbase.training.guard import DivergedError
from vitbase.training.replay import replay
from vitbase.training.step import Learner


def scale(name: str, factor: float) -> Callable[[Learner], None]:
    """Return what multiplies a weight."""

    def change(learner: Learner) -> None:
        dict(learner.model.named_parameters())[name].mul_(factor)

    return change


@pytest.fixture
def box_of(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train until an update gives no number, after a change of the weights; return its box."""

    def train(change: Callable[[Learner], None] = lambda _: None, **options: Any) -> Path:
        config = tiny_config(**{"max_nonfinite_updates": 1, **options})
        with monkeypatch.context() as patch:
            before_update(patch, 7, change)
            with pytest.raises(DivergedError, match="at update 8"):
                vitbase.train(config)
        return config.output_dir / "blackbox" / "update-8"

    return train


@pytest.mark.parametrize(
    ("weight", "factor", "found"),
    [
        ("blocks.0.mlp.fc1.bias", math.inf, "the weight 'blocks.0.mlp.fc1.bias' is not finite"),
        ("blocks.0.mlp.fc1.weight", 3e38, "the first output that is not finite is that of 'blocks"),
        ("head.weight", 1e33, "the norm of the gradient overflows, though each of its numbers is"),
    ],
)
def test_the_first_layer_is_named(box_of, vitbase_command, weight, factor, found):
    options = {"mixup_alpha": 0.8, "stochastic_depth": 0.3, "accumulation_steps": 2}
    box = box_of(scale(weight, factor), batch_size=4, **options)
    code, told, _ = vitbase_command("debug", "replay", box, "--device_target", "cpu")
    assert code == 0
    assert f"In fp32 too, {found}" in told
    assert "update 8 (epoch 2, step 1), fp32 on cpu, 2 forward passes of 8 images" in told
    assert "largest absolute values: stem " in told
    code, text, _ = vitbase_command("debug", "replay", box.parent.parent, "--json")
    seen = json.loads(text)
    assert seen["update"] == 8
    assert seen["verdict"] in told
    if factor == 3e38:
        assert "'blocks.0.mlp.fc1'" in seen["verdict"]
        assert len(seen["passes"]["fp32"][0]["images"]) > 0


def test_half_precision_is_named_as_the_cause(box_of):
    box = box_of(scale("blocks.0.mlp.fc1.weight", 1e6), precision="fp16")
    verdict = replay(str(box), "CPU").verdict
    assert verdict.startswith("In fp32 all is finite; in fp16, the first output that is not finite")
    assert "'blocks.0.mlp.fc1'" in verdict


def test_a_gradient_alone_is_named(box_of, monkeypatch):
    forward = torch.nn.LayerNorm.forward

    def spoiled(self: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        if y.requires_grad and under_way["bad"]:
            y.register_hook(lambda gradient: gradient * math.nan)
        return y

    under_way = {"bad": False}
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", spoiled)
    box = box_of(lambda _: under_way.update(bad=True))
    verdict = replay(str(box), "CPU").verdict
    assert "all outputs are finite, and the first gradient that is not is that of 'norm." in verdict


def test_a_box_gives_the_very_loss_and_gradient_of_the_run(box_of, monkeypatch):
    """With all that changes an update: mixing, stochastic depth, class weights, smoothing."""
    norms: list[float] = []
    clip = "vitbase.training.parallel.Replicas.clip"

    def measured(self: Any, largest: float | None) -> torch.Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return torch.tensor(math.nan if len(norms) == 8 else norms[-1])

    monkeypatch.setattr(clip, measured)
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "stochastic_depth": 0.3}
    box = box_of(**options, class_weights="balanced", label_smoothing=0.1)
    (seen,) = replay(str(box), "CPU").passes["fp32"]
    assert seen.first_bad is None
    assert seen.gradient_norm == pytest.approx(norms[7], rel=1e-5)


def test_on_features(photo_config, monkeypatch):
    config = photo_config(freeze_backbone=True, max_nonfinite_updates=1, epoch_size=9)
    spoil(monkeypatch, {7})
    with pytest.raises(DivergedError, match="at update 8"):
        vitbase.train(config)
    found = replay(str(config.output_dir), "CPU")
    assert found.verdict.startswith("All is finite here")
    assert found.passes["fp32"][0].largest.keys() == {"head"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nothing", "no black box, and no run that has one"),
        ("flip", "is damaged: inputs.safetensors"),
        ("version", "is of version 2"),
        ("facts", "is damaged: KeyError"),
        ("images", "is damaged: ValueError"),
    ],
)
def test_what_is_no_box_is_named(made_box, tmp_path, vitbase_command, damage, message):
    box = tmp_path / "update-8"
    shutil.copytree(made_box, box)
    facts = json.loads((box / "box.json").read_text())
    if damage == "nothing":
        (box / "box.json").unlink()
    elif damage == "flip":
        data = bytearray((box / "inputs.safetensors").read_bytes())
        data[-1] ^= 1
        (box / "inputs.safetensors").write_bytes(data)
    elif damage == "images":
        tensors = load_file(box / "inputs.safetensors")
        save_file({**tensors, "0/labels": tensors["0/labels"][1:]}, box / "inputs.safetensors")
    else:
        del facts["mix" if damage == "facts" else "lr"]
        facts["version"] = 2 if damage == "version" else 1
        (box / "box.json").write_text(json.dumps(facts))
    if damage in {"version", "facts", "images"}:
        write_manifest(box)
    code, _, told = vitbase_command("debug", "replay", box)
    assert code == 2
    assert message in told


@pytest.fixture(scope="module")
def made_box(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    from made_runs import TINY

    folder = tmp_path_factory.mktemp("made") / "run"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {7})
        vitbase.train(vitbase.load_config("fashion", **options))
    return folder / "blackbox" / "update-8"
