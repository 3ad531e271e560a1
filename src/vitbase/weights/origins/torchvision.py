"""torchvision's `vit_b_16` and its family. Source: torchvision/models/vision_transformer.py."""

from __future__ import annotations

from vitbase.model.spec import ViTSpec
from vitbase.weights.origins.dialect import Dialect, Row
from vitbase.weights.origins.rows import IMAGENET, PLAIN, layers, needs_head

_BLOCK = "encoder.layers.encoder_layer_{i}"


def _needs_head_and_square(spec: ViTSpec) -> str | None:
    height, width = spec.image_size
    if spec.num_classes and height != width:
        return f"images of {height}x{width} pixels, which are no square"
    return needs_head(spec)


TORCHVISION = Dialect(
    name="torchvision",
    rows=(
        Row(("class_token",), "cls_token"),
        *layers(("conv_proj", "stem.proj")),
        Row(("encoder.pos_embedding",), "pos_embed"),
        *layers((f"{_BLOCK}.ln_1", "blocks.{i}.norm1")),
        Row((f"{_BLOCK}.self_attention.in_proj_weight",), "blocks.{i}.attn.qkv.weight"),
        Row((f"{_BLOCK}.self_attention.in_proj_bias",), "blocks.{i}.attn.qkv.bias"),
        *layers(
            (f"{_BLOCK}.self_attention.out_proj", "blocks.{i}.attn.proj"),
            (f"{_BLOCK}.ln_2", "blocks.{i}.norm2"),
            (f"{_BLOCK}.mlp.0", "blocks.{i}.mlp.fc1"),
            (f"{_BLOCK}.mlp.3", "blocks.{i}.mlp.fc2"),
            ("encoder.ln", "norm"),
            ("heads.pre_logits", "pre_logits"),
            ("heads.head", "head"),
        ),
    ),
    signature=(r"conv_proj\.weight", r"encoder\.pos_embedding"),
    spellings=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    fixed=("gelu", "norm_eps", "image_size"),  # a square
    preprocess_of=lambda spec: IMAGENET,
    limits={
        **{k: v for k, v in PLAIN.items() if k != "representation_size"},
        "gelu": ("erf",),
    },
    refuses=_needs_head_and_square,
    suffixes=(".pth", ".pt", ".safetensors"),
)
