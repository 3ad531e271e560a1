"""What is computed: Vision Transformers, their stems, and the table of variants."""

from vitbase.model.layers import draw_depth_scales, resample_pos_embed
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import (
    DEFAULT_VARIANT,
    VARIANTS,
    build_model,
    create_model,
    find_variant,
    list_variants,
    variant_spec,
)

__all__ = [
    "DEFAULT_VARIANT",
    "VARIANTS",
    "ViTSpec",
    "VisionTransformer",
    "build_model",
    "create_model",
    "draw_depth_scales",
    "find_variant",
    "list_variants",
    "resample_pos_embed",
    "variant_spec",
]
