"""Products in FP8: which layers, what is refused, and what is stored. A CPU imitates them."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from imitated import imitate_fp8
from made_runs import losses_of
from safetensors.torch import load_file
from torch import nn

import vitbase
from vitbase.errors import ConfigError, DeviceError
from vitbase.model.zoo import VARIANTS, build_model, variant_spec
from vitbase.runtime import Runtime
from vitbase.training.fp8 import multiply_in_fp8

WIDE = {"width": 32, "num_heads": 2, "mlp_dim": 64, "depth": 2}
BF16: dict[str, Any] = {"precision": "bf16", "total_steps": 4, "log_every_steps": 1}


def test_layers_of_the_blocks_whose_sizes_fit_are_converted():
    model = build_model(variant_spec("testing").replace(**WIDE | {"mlp_dim": 72}))
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    assert multiply_in_fp8(model) == 4
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    linear = [(n, type(m).__name__) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    others = {name for name, kind in linear if kind == "Linear"}
    parts = ("fc1", "fc2")
    assert others == {"head", *(f"blocks.{n}.mlp.{part}" for n in range(2) for part in parts)}
    with pytest.raises(ConfigError, match=r"multiples of 16; .* has none"):
        multiply_in_fp8(build_model(variant_spec("testing")))


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_a_run_in_fp8_follows_bf16_and_its_checkpoint_is_plain(tiny_config, tmp_path, monkeypatch):
    imitate_fp8(monkeypatch.setattr)
    monkeypatch.setitem(VARIANTS, "testing", VARIANTS["testing"].replace(**WIDE))
    plain = tiny_config(output_dir=str(tmp_path / "plain"), **BF16, checkpoint_every_steps=2)
    run = plain.replace(output_dir=str(tmp_path / "fp8"), fp8=True)
    for config in (plain, run):
        vitbase.train(config)
    assert losses_of(run.output_dir) == pytest.approx(losses_of(plain.output_dir), abs=0.05)
    assert losses_of(run.output_dir) != losses_of(plain.output_dir)
    checkpoints = sorted((run.output_dir / "checkpoints").glob("train_vit_*"))
    for file in ("weights.safetensors", "training_state.safetensors"):
        found = load_file(checkpoints[-1] / file)
        wanted = load_file(str(checkpoints[-1] / file).replace("/fp8/", "/plain/"))
        kinds = {name: (value.dtype, value.shape) for name, value in found.items()}
        assert kinds == {name: (value.dtype, value.shape) for name, value in wanted.items()}
    assert type(vitbase.load_model(str(run.output_dir)).model.blocks[0].mlp.fc1) is not nn.Linear
    again = run.replace(output_dir=str(tmp_path / "again"))
    vitbase.train(again)
    for path in sorted((again.output_dir / "checkpoints").glob("train_vit_*"))[1:]:
        path.rename(tmp_path / path.name)
    vitbase.train(again)
    assert losses_of(again.output_dir) == losses_of(run.output_dir)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"precision": "fp32"}, "precision is fp32: give --precision bf16"),
        ({"precision": "fp16"}, "precision is fp16: give --precision bf16"),
        ({"parallel": "fsdp"}, "parallel fsdp"),
        ({"freeze_backbone": True}, "freeze_backbone"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_config, options, what):
    with pytest.raises(ConfigError, match=f"fp8 .*{what}"):
        tiny_config(**{"precision": "bf16", "fp8": True, "optimizer": "adamw", **options})


def test_devices_precisions_and_places_without_it_are_named(tiny_config, monkeypatch):
    config = tiny_config(precision="bf16", fp8=True)
    with pytest.raises(DeviceError, match=r"compute capability 8\.9 or later.*--fp8"):
        vitbase.train(config)
    monkeypatch.setattr(Runtime, "has_fp8", True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs torchao: pip install 'vitbase\[fp8\]'"):
        vitbase.train(config)
    monkeypatch.setattr("vitbase.runtime._fast_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="precision is fp32"):
        vitbase.train(tiny_config(precision="auto", fp8=True))
    assert not config.output_dir.exists()
    assert torch.get_float32_matmul_precision() == "highest"
