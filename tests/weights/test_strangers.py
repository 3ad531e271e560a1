"""Tensors that belong to no part of ours: left out where no output depends on them, else named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_weights import State, read_state, write_whole_network
from safetensors.torch import save_file

import vitbase
from vitbase.errors import WeightsError

SMALL: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "beit": ("beit_base_patch16_224", SMALL, "BEiT"),
    "relative": ("vit_relpos_small_patch16_224", SMALL, "relative positions"),
    "sam": ("samvit_base_patch16", SMALL, "relative positions"),
    "dinov3": ("vit_small_patch16_dinov3", SMALL, "DINOv3"),
    "rope": ("vit_small_patch16_rope_mixed_224", SMALL, "rotary"),
    "eva": ("eva02_small_patch14_224", SMALL, "EVA"),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", SMALL, "shape"),
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "num_classes": 0}, "SigLIP"),
    "clip": ("vit_base_patch16_clip_224", SMALL, "CLIP"),
    "deit": ("deit_tiny_distilled_patch16_224", SMALL, "distilled DeiT"),
    "cait": ("cait_xxs24_224", SMALL, "class attention"),
    "parallel": ("vit_small_patch16_18x2_224", SMALL, "parallel"),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (1, 1)}, "Swin"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_named_for_what_they_are(tmp_path, kind):
    name, arguments, whose = OTHERS[kind]
    model = timm.create_model(name, **arguments)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for number, prefix in enumerate(("", "model.")):
        path = tmp_path / f"w{number}.safetensors"
        save_file({f"{prefix}{key}": value for key, value in state.items()}, path)
        for image_size in (None, (224, 224)):  # a run always has one
            with pytest.raises(WeightsError, match=whose) as caught:
                vitbase.load_model(path, num_heads=2, image_size=image_size)
            assert str(caught.value).startswith(f"{path}: tensor '")
            assert "ignore" not in str(caught.value)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return read_state(write_whole_network(tmp_path_factory.mktemp("whole") / "w.safetensors"))


ADDED = {
    "blocks.0.attn.qkv.lora_A.default.weight": "LoRA.*merge_and_unload",
    "blocks.0.attn.qkv.base_layer.weight": "LoRA",
    "blocks.0.attn.qkv.SCB": "quantised",
    "blocks.0.attn.qkv.weight.quant_map": "quantised",
    "blocks.0.attn.qkv.zero_point": "quantised",
    "blocks.0.attn.qkv.weight_g": "computed from others",
    "blocks.0.attn.qkv.parametrizations.weight.original0": "computed from others",
    "blocks.0.mlp.w12.weight": r"gated MLP \(SwiGLU\)",
    "rope_embed.periods": "DINOv3",
    "storage_tokens": "DINOv3",
    "blocks.0.gamma_1": "BEiT, EVA",
    "logit_bias": "SigLIP",
    "text_projection": "images and texts",
}


@pytest.mark.parametrize("name", ADDED)
def test_all_unknown_tensors_are_looked_at_and_not_the_first(state, tmp_path, name):
    path = tmp_path / "w.safetensors"
    save_file({"a_first.weight": torch.ones(2), **state, name: torch.ones(3)}, path)
    with pytest.raises(WeightsError, match=f"'{name}' is of .*{ADDED[name]}") as caught:
        vitbase.load_model(path)
    assert "(2 such tensors)" in str(caught.value)
    assert "ignore" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "whose"),
    [
        (("embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight"), "DINOv3"),
        (("visual.class_embedding", "visual.ln_pre.weight"), "CLIP"),
        (("swin.encoder.layers.0.blocks.0.mlp.fc1.bias",), "Swin"),
        (("vision_model.embeddings.weight", "vision_model.head.probe"), "SigLIP"),
    ],
)
def test_files_that_no_dialect_knows_are_named_too(tmp_path, names, whose):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=f"not those of a Vision Transformer.*{whose}"):
        vitbase.load_model(tmp_path / "w.safetensors")


def test_what_nobody_knows_is_not_called_harmless(state, tmp_path):
    save_file({**state, "odd.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"'odd\.weight' .*If you know that they do not, ignore"):
        vitbase.load_model(tmp_path / "w.safetensors")


HARMLESS = (
    "n_averaged",
    "optimizer.state.exp_avg",
    "decoder.weight",
    "projector.0.weight",
    "dino_head.mlp.0.weight",
    "head.last_layer.weight_g",
    "predictor.weight",
    "queue",
    "queue_ptr",
)


def test_what_no_output_depends_on_is_left_out_and_said(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**state, **{name: torch.ones(2) for name in HARMLESS}}, path)
    report = vitbase.load_model(path).report
    assert set(report.dropped) == set(HARMLESS)
    assert len(report.mapped) == len(state)


def write_jit(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))


def write_export(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize("write", [write_jit, write_export])
def test_programs_are_named_and_not_run(tmp_path, write):
    write(tmp_path / "w.pt2")
    with pytest.raises(WeightsError, match=r"w\.pt2 is a program with its weights.*state_dict"):
        vitbase.load_model(tmp_path / "w.pt2")
