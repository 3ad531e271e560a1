"""What the tables of several origins share."""

from __future__ import annotations

from typing import Any

from vitbase.model.spec import ViTSpec
from vitbase.weights.origins.dialect import Row

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def layer(theirs: str, ours: str) -> tuple[Row, Row]:
    """Rows for the weight and bias of a layer; ` + ` joins several of theirs."""
    parts = theirs.split(" + ")
    return (
        Row(tuple(f"{part}.weight" for part in parts), f"{ours}.weight"),
        Row(tuple(f"{part}.bias" for part in parts), f"{ours}.bias"),
    )


def layers(*pairs: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(row for theirs, ours in pairs for row in layer(theirs, ours))


def needs_head(spec: ViTSpec) -> str | None:
    return None if spec.num_classes else "no classes"


# What a plain classifier is; a dialect that can express more says so.
PLAIN: dict[str, tuple[Any, ...]] = {
    "stem": ("patch",),
    "class_token": (True,),
    "pool": ("token",),
    "num_registers": (0,),
    "representation_size": (None,),
    "layer_scale_init": (None,),
    "pos_embed": ("learned",),
    "qkv_bias": (True,),
}

# Our names of the blocks, which timm and DINOv2 share.
BLOCKS = layers(
    *(
        (f"blocks.{{i}}.{part}", f"blocks.{{i}}.{part}")
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    )
)
# Their names of what makes these DINOv2's, or DeiT III's.
LAYER_SCALES = tuple(Row((f"blocks.{{i}}.ls{n}.gamma",), f"blocks.{{i}}.scale{n}") for n in "12")
