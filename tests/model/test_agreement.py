"""The same weights give the same logits in timm."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from vitbase.model import VisionTransformer, create_model


def load_from_timm(model: VisionTransformer, peer: Any) -> None:
    """Copy plain timm weights; the general reader is vitbase.weights."""
    state = {}
    for name, value in peer.state_dict().items():
        mine = name.replace("patch_embed.proj", "stem.proj").replace("reg_token", "registers")
        state[mine.replace("ls1.gamma", "scale1").replace("ls2.gamma", "scale2")] = value
    model.load_state_dict(state)


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Ti/16": ("vit_tiny_patch16_224", 16, {}),
    "S/32": ("vit_small_patch32_224", 32, {}),
    "S/16": ("vit_small_patch16_224", 16, {}),
    "DINOv2-S_14": ("vit_small_patch14_dinov2", 14, {}),
    "DINOv2-S_14-reg4": ("vit_small_patch14_reg4_dinov2", 14, {"pos_embed": "learned_grid"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(2, 2), (2, 4)], ids=["square", "rectangular"])
def test_logits_agree_with_timm(name: str, size: tuple[int, int]) -> None:
    peer_name, patch, overrides = CASES[name]
    image_size = (size[0] * patch, size[1] * patch)
    torch.manual_seed(0)
    peer = timm.create_model(peer_name, num_classes=10, img_size=image_size).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model = create_model(name, num_classes=10, image_size=image_size, gelu="erf", **overrides)
    load_from_timm(model.eval(), peer)
    images = torch.randn(2, 3, *image_size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), peer(images), atol=1e-5, rtol=0)
