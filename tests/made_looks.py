"""Small models of every kind that is looked at, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from made_images import encode, photo
from torch import Tensor

import vitbase
from vitbase.model.vit import VisionTransformer
from vitbase.weights.save import save_weights

_SMALL: dict[str, Any] = {
    "patch_size": 8,
    "width": 24,
    "depth": 3,
    "num_heads": 3,
    "mlp_dim": 32,
    "num_classes": 5,
    "image_size": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"num_registers": 4, "layer_scale_init": 0.3, "gelu": "erf"},
    "rectangular": {"image_size": (32, 48)},
    "gap": {"class_token": False, "pool": "gap"},
    "gap_norm": {"class_token": False, "pool": "gap_norm", "num_registers": 2},
    "token_gap": {"pool": "token_gap", "num_registers": 2},
    "no_bias": {"qkv_bias": False},
    "sincos": {"pos_embed": "sincos2d", "representation_size": 16},
    "conv": {"stem": "conv", "conv_layers": ((8, 3, 2), (16, 3, 2), (24, 3, 2))},
    "hybrid": {
        "stem": "resnet",
        "resnet_layers": (1, 1),
        "resnet_width_factor": 0.5,
        "patch_size": 16,
    },
}


def build(name: str = "plain", **changes: Any) -> VisionTransformer:
    """Build a model whose every parameter has a random value, so that nothing cancels out."""
    torch.manual_seed(0)
    model = vitbase.create_model("testing", **{**_SMALL, **MODELS[name], **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images_for(model: VisionTransformer, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    spec = model.spec
    return torch.randn(count, spec.in_channels, *spec.image_size, generator=generator)


def write_weights(folder: Path, name: str = "plain", **changes: Any) -> Path:
    path = folder / f"{name}.safetensors"
    save_weights(build(name, **changes), path)
    return path


def write_photos(folder: Path, count: int = 2) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(photo(40, 56, number), "PNG"))
    return folder
