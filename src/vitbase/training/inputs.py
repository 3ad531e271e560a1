"""From pixels on the device to what the model is given: normalised, and mixed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.data.mix import Mix
from vitbase.data.normalize import normalize, normalize_traceably, scale_and_shift_of_a_row
from vitbase.runtime import Runtime

Inputs = Callable[[Tensor, Tensor, Mix], Tensor]
"""What makes the input of a forward pass from uint8 images [B, H, W, C], labels and the mix."""


def build_inputs(preprocess: Preprocess, runtime: Runtime, *, compiled: bool) -> Inputs:
    """Return what makes the model's input.

    Args:
      compiled: in one graph for each kind of mix, which ends in what products are computed in.
    """
    if not compiled:
        return lambda images, labels, mix: mix.images(normalize(images, preprocess), labels)
    made = torch.compile(_made, fullgraph=True)
    table = scale_and_shift_of_a_row(preprocess, preprocess.width, runtime.device)

    def inputs(images: Tensor, labels: Tensor, mix: Mix) -> Tensor:
        on_device: Tensor = made(
            images, labels, mix.on_device(runtime.device), *table, runtime.half
        )
        return on_device

    return inputs


def _made(
    images: Tensor,
    labels: Tensor,
    mix: Mix,
    scale: Tensor,
    shift: Tensor,
    half: torch.dtype | None,
) -> Tensor:
    mixed = mix.images(normalize_traceably(images, scale, shift), labels)
    return mixed if half is None else mixed.to(half)  # the stem would cast it, a pass later
