"""What a model costs to compute, counted rather than estimated."""

from __future__ import annotations

import dataclasses

import torch

from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import build_unfilled


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one image; a multiply-add counts as two."""

    forward: int
    training: int


def count_flops(spec: ViTSpec, *, head_only: bool = False) -> Flops:
    """Count the FLOPs of one image, forward and in training, without computing anything.

    It is the work that the model asks for, as others count it: all rows of the last block, of which
    only the class token's is computed here, and nothing that is computed twice to save memory.

    Args:
      head_only: whether training is that of the head alone, which needs no gradient below it.
    Source: torch's FLOP counter, over matrix products, convolutions and attention.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second to load

    if spec.pool == "token":
        spec = spec.replace(pool="gap")  # as large a head, on the mean of all rows
    model = build_unfilled(spec).train()
    if head_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    image = torch.empty(1, spec.in_channels, *spec.image_size, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(image)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return Flops(forward, counter.get_total_flops())
