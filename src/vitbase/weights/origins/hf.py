"""Hugging Face's transformers: ViT, DINOv2 with registers or without; a folder with its configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Dialect, Row
from vitbase.weights.origins.dinov2 import reads_both
from vitbase.weights.origins.pretrained import (
    CONFIG,
    PROCESSOR,
    read_labels,
    read_processor,
    write_labels,
    write_processor,
)
from vitbase.weights.origins.rows import HALF, IMAGENET, PLAIN, layers
from vitbase.weights.origins.sidecar import Sidecar, gelu_of
from vitbase.weights.origins.usage import TRANSFORMERS


def _read_sidecar(file: TensorFile) -> Sidecar:
    config = file.config
    if config is None:
        return Sidecar()
    gelu = gelu_of("hidden_act", config.get("hidden_act", "gelu"))
    if config.get("pooler_act", "tanh") != "tanh" and not _is_classifier(config):
        raise WeightsError(f"its config.json has pooler_act {config['pooler_act']!r}, not 'tanh'")
    return Sidecar(
        num_heads=config.get("num_attention_heads"),
        gelu=gelu,
        norm_eps=config.get("layer_norm_eps"),
        image_size=config.get("image_size"),
        preprocess=read_processor(file.processor or {}),
        labels=read_labels(config),
    )


def _is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether no pooler stands before its head."""
    return any("ForImageClassification" in str(name) for name in config.get("architectures") or ())


def _write_sidecar(
    spec: ViTSpec, preprocess: Preprocess | None, labels: tuple[str, ...] | None
) -> dict[str, dict[str, Any]]:
    files = {CONFIG: _config(spec, labels)}
    if preprocess is not None:
        files[PROCESSOR] = write_processor(preprocess)
    return files


def _config(spec: ViTSpec, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Source: transformers' configuration_vit.py, configuration_dinov2.py."""
    height, width = spec.image_size
    config: dict[str, Any] = {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "hidden_act": "gelu_pytorch_tanh" if spec.gelu == "tanh" else "gelu",
        "layer_norm_eps": spec.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": spec.in_channels,
        "qkv_bias": spec.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    if spec.layer_scale_init is None:
        kind = "ViT"
        config |= {"model_type": "vit", "intermediate_size": spec.mlp_dim}
        if spec.representation_size is not None:
            config |= {"pooler_output_size": spec.representation_size, "pooler_act": "tanh"}
    else:
        kind = "Dinov2WithRegisters" if spec.num_registers else "Dinov2"
        config |= {
            "model_type": "dinov2_with_registers" if spec.num_registers else "dinov2",
            "mlp_ratio": spec.mlp_dim // spec.width,
            "layerscale_value": spec.layer_scale_init,
            "use_swiglu_ffn": False,
        }
        if spec.num_registers:
            config["num_register_tokens"] = spec.num_registers
    config["architectures"] = [kind + ("ForImageClassification" if spec.num_classes else "Model")]
    if spec.num_classes:
        config |= write_labels(labels, spec.num_classes)
    return config


_BLOCK = "encoder.layer.{i}"
_QKV = " + ".join(f"{_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value"))
_ENDS = (
    Row(("embeddings.cls_token",), "cls_token"),
    Row(("embeddings.position_embeddings",), "pos_embed"),
    *layers(
        ("embeddings.patch_embeddings.projection", "stem.proj"),
        (_QKV, "blocks.{i}.attn.qkv"),
        (f"{_BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
        ("layernorm", "norm"),
        ("classifier", "head"),
    ),
)
# A classifier has its backbone's name before every name. Version 5 has other names in memory.
_SPELLINGS = (
    (r"^(?:vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1."),
    (r"\.attention\.attention\.q\.", ".attention.attention.query."),
    (r"\.attention\.attention\.k\.", ".attention.attention.key."),
    (r"\.attention\.attention\.v\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_LIMITS: dict[str, tuple[Any, ...]] = {
    k: v for k, v in PLAIN.items() if k not in ("qkv_bias", "representation_size")
}


def _has_pooler_and_head(spec: ViTSpec) -> str | None:
    if spec.representation_size is not None and spec.num_classes:
        return "a representation layer before the head"
    return None


def _is_no_dinov2(spec: ViTSpec) -> str | None:
    if spec.layer_scale_init is None:
        return "layer_scale_init None"
    if spec.mlp_dim % spec.width:
        return f"mlp_dim {spec.mlp_dim}, no multiple of width {spec.width}"
    return reads_both(spec)


# Source: transformers/models/vit/modeling_vit.py.
HF_VIT = Dialect(
    name="hf",
    rows=(
        *_ENDS,
        *layers(
            (f"{_BLOCK}.layernorm_before", "blocks.{i}.norm1"),
            (f"{_BLOCK}.layernorm_after", "blocks.{i}.norm2"),
            (f"{_BLOCK}.intermediate.dense", "blocks.{i}.mlp.fc1"),
            (f"{_BLOCK}.output.dense", "blocks.{i}.mlp.fc2"),
            ("pooler.dense", "pre_logits"),
        ),
    ),
    signature=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layer\.0\.layernorm_before\.weight",
    ),
    spellings=(
        *_SPELLINGS,
        (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    ),
    left_out=r"embeddings\.mask_token",
    norm_eps=1e-12,
    preprocess_of=lambda spec: {**HALF, "crop_mode": "squash", "crop_ratio": 1.0},
    limits=_LIMITS,
    refuses=_has_pooler_and_head,
    suffixes=("",),
    read_sidecar=_read_sidecar,
    write_sidecar=_write_sidecar,
    prefix=lambda spec: "vit.",
    opened_by={"transformers": TRANSFORMERS},
)

# Source: transformers/models/dinov2 and dinov2_with_registers.
HF_DINOV2 = dataclasses.replace(
    HF_VIT,
    rows=(
        *_ENDS,
        Row(("embeddings.register_tokens",), "registers"),
        *layers(
            *(
                (f"{_BLOCK}.{layer}", f"blocks.{{i}}.{layer}")
                for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            )
        ),
        *(Row((f"{_BLOCK}.layer_scale{n}.lambda1",), f"blocks.{{i}}.scale{n}") for n in "12"),
    ),
    signature=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
    ),
    spellings=_SPELLINGS,
    norm_eps=1e-6,
    preprocess_of=lambda spec: {**IMAGENET, "interpolation": "bicubic"},
    limits={
        **{k: v for k, v in _LIMITS.items() if k not in ("num_registers", "layer_scale_init")},
        "representation_size": (None,),
        "pool": ("token", "token_gap"),
    },
    refuses=_is_no_dinov2,
    unused=("embeddings.mask_token",),
    prefix=lambda spec: "dinov2_with_registers." if spec.num_registers else "dinov2.",
)
