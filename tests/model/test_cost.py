"""The cost of a model is what torch's FLOP counter counts, for every variant."""

from __future__ import annotations

import pytest
import torch
from made_looks import MODELS
from torch.utils.flop_counter import FlopCounterMode

from vitbase.model.cost import Flops, count_flops
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import build_unfilled, list_variants, variant_spec

OTHERS = {
    **MODELS,
    "all rows and the class token": {"pool": "token_gap"},
    "a representation": {"representation_size": 24},
    "sizes that strides do not divide": {"image_size": (45, 75), "patch_size": 15},
    "a stem whose last map makes a token of several pixels": {
        "stem": "conv",
        "conv_layers": ((8, 3, 2), (16, 3, 1)),
        "patch_size": 16,
    },
    "a stem of a root alone": {"stem": "resnet", "resnet_width_factor": 0.5, "patch_size": 16},
    "features": {"num_classes": 0},
}


def counted(spec: ViTSpec, *, head_only: bool = False) -> Flops:
    if spec.pool == "token":
        spec = spec.replace(pool="gap")  # as large a head, on the mean of all rows
    model = build_unfilled(spec).train()
    if head_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    image = torch.empty(1, spec.in_channels, *spec.image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(image)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return Flops(forward, counter.get_total_flops())


@pytest.mark.parametrize("name", list_variants())
def test_every_variant(name):
    spec = variant_spec(name)
    if spec.depth > 2:  # every block is like the others
        assert count_flops(spec).forward - count_flops(spec.replace(depth=2)).forward == (
            spec.depth - 2
        ) * (
            count_flops(spec.replace(depth=2)).forward - count_flops(spec.replace(depth=1)).forward
        )
        spec = spec.replace(depth=2)
    assert count_flops(spec) == counted(spec)
    assert count_flops(spec, head_only=True) == counted(spec, head_only=True)


@pytest.mark.parametrize("name", OTHERS)
def test_every_family(name):
    spec = variant_spec(
        "testing", **{"image_size": 48, "depth": 2, "width": 16, "num_heads": 2, **OTHERS[name]}
    )
    assert count_flops(spec) == counted(spec)


def test_what_others_publish():
    # By hand: projection, twelve blocks, head. Others count 17.58, with the norms' own sums.
    assert count_flops(variant_spec("ViT-B_16")).forward == pytest.approx(35.13e9, rel=0.01)
