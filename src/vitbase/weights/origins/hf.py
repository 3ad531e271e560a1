"""The tables of Hugging Face's transformers, as data, and the list of all tables."""

from __future__ import annotations

from typing import Any

from vitbase.model.spec import ViTSpec
from vitbase.weights.origins.dialect import Dialect, Row
from vitbase.weights.origins.rows import (
    DINOV2,
    GOOGLE,
    HALF,
    IMAGENET,
    MINDSPORE,
    PLAIN,
    TIMM,
    TIMM_BARE_STEM,
    TIMM_POOLED,
    TORCHVISION,
    VITBASE,
    layers,
    reads_both,
)

_HF_ATTENTION = (
    (
        "encoder.layer.{i}.attention.attention.query"
        " + encoder.layer.{i}.attention.attention.key"
        " + encoder.layer.{i}.attention.attention.value",
        "blocks.{i}.attn.qkv",
    ),
    ("encoder.layer.{i}.attention.output.dense", "blocks.{i}.attn.proj"),
)
_HF_ENDS = (
    Row(("embeddings.cls_token",), "cls_token"),
    Row(("embeddings.position_embeddings",), "pos_embed"),
    *layers(
        ("embeddings.patch_embeddings.projection", "stem.proj"),
        *_HF_ATTENTION,
        ("layernorm", "norm"),
        ("classifier", "head"),
    ),
)
# A classifier has its backbone's name before every name. Version 5 has other names in memory.
_HF_SPELLINGS = (
    (r"^(?:vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1."),
    (r"\.attention\.attention\.q\.", ".attention.attention.query."),
    (r"\.attention\.attention\.k\.", ".attention.attention.key."),
    (r"\.attention\.attention\.v\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_HF_LIMITS: dict[str, tuple[Any, ...]] = {
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
        *_HF_ENDS,
        *layers(
            ("encoder.layer.{i}.layernorm_before", "blocks.{i}.norm1"),
            ("encoder.layer.{i}.layernorm_after", "blocks.{i}.norm2"),
            ("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.fc1"),
            ("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.fc2"),
            ("pooler.dense", "pre_logits"),
        ),
    ),
    signature=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layer\.0\.layernorm_before\.weight",
    ),
    spellings=(
        *_HF_SPELLINGS,
        (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    ),
    left_out=r"embeddings\.mask_token",
    norm_eps=1e-12,
    preprocess={**HALF, "crop_mode": "squash", "crop_ratio": 1.0},
    limits=_HF_LIMITS,
    refuses=_has_pooler_and_head,
    suffixes=("",),
    prefix=lambda spec: "vit.",
)

# Source: transformers/models/dinov2 and dinov2_with_registers.
HF_DINOV2 = Dialect(
    name="hf",
    rows=(
        *_HF_ENDS,
        Row(("embeddings.register_tokens",), "registers"),
        *layers(
            *(
                (f"encoder.layer.{{i}}.{layer}", f"blocks.{{i}}.{layer}")
                for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            )
        ),
        Row(("encoder.layer.{i}.layer_scale1.lambda1",), "blocks.{i}.scale1"),
        Row(("encoder.layer.{i}.layer_scale2.lambda1",), "blocks.{i}.scale2"),
    ),
    signature=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
    ),
    spellings=_HF_SPELLINGS,
    left_out=r"embeddings\.mask_token",
    preprocess={**IMAGENET, "interpolation": "bicubic"},
    limits={
        **{k: v for k, v in _HF_LIMITS.items() if k not in ("num_registers", "layer_scale_init")},
        "representation_size": (None,),
        "pool": ("token", "token_gap"),
    },
    refuses=_is_no_dinov2,
    suffixes=("",),
    unused=("embeddings.mask_token",),
    prefix=lambda spec: "dinov2_with_registers." if spec.num_registers else "dinov2.",
)

DIALECTS = (
    VITBASE,
    MINDSPORE,
    GOOGLE,
    DINOV2,
    TIMM_POOLED,
    TIMM_BARE_STEM,
    TIMM,
    TORCHVISION,
    HF_DINOV2,
    HF_VIT,
)
"""In the order in which a file's names are tried."""

DIALECT_NAMES = tuple(dict.fromkeys(dialect.name for dialect in DIALECTS))
