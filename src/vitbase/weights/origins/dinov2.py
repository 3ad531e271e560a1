"""DINOv2 under Facebook's own names.

Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py.
"""

from __future__ import annotations

from vitbase.model.spec import ViTSpec
from vitbase.weights.origins.dialect import Dialect, Row
from vitbase.weights.origins.rows import BLOCKS, IMAGENET, LAYER_SCALES, layers
from vitbase.weights.origins.timm import read_sidecar


def reads_both(spec: ViTSpec) -> str | None:
    """DINOv2's heads read the class token and the mean, its backbones give the class token."""
    if bool(spec.num_classes) == (spec.pool == "token_gap"):
        return None
    return f"pool {spec.pool!r} " + ("and classes" if spec.num_classes else "and no classes")


DINOV2 = Dialect(
    name="dinov2",
    rows=(
        Row(("cls_token",), "cls_token"),
        Row(("pos_embed",), "pos_embed"),
        Row(("register_tokens",), "registers"),
        *layers(("patch_embed.proj", "stem.proj")),
        *BLOCKS,
        *LAYER_SCALES,
        *layers(("norm", "norm"), ("linear_head", "head")),
    ),
    signature=(r"patch_embed\.proj\.weight", r"mask_token|register_tokens|linear_head\.weight"),
    spellings=(
        (r"^backbone\.", ""),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # its blocks may stand in chunks
    ),
    left_out=r"mask_token|(dino|ibot)_head\..+",
    fixed=("gelu", "norm_eps"),
    preprocess_of=lambda spec: {**IMAGENET, "interpolation": "bicubic"},
    limits={
        "stem": ("patch",),
        "class_token": (True,),
        "pool": ("token", "token_gap"),
        "representation_size": (None,),
        "pos_embed": ("learned",),
        "gelu": ("erf",),
    },
    refuses=reads_both,
    suffixes=(".pth", ".pt", ".safetensors"),
    unused=("mask_token",),
    read_sidecar=read_sidecar,  # it has none of its own; timm's folders may hold its names
)
