"""What is to be written: a model, how, and images to set the ranges of integers by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.data.normalize import normalize
from vitbase.shipping.exporting.facts import Facts
from vitbase.weights.load import LoadedModel

OPSET = 20
"""Of ONNX. It is the first with GELU; later ones have nothing that makes these models faster, and
fewer runtimes read them."""

_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """What is to be written.

    Attributes:
      calibration: pixels of real images, uint8 [N, H, W, C], for int8 with fixed ranges; None:
        every image sets its own ranges while it is computed.
    """

    loaded: LoadedModel
    facts: Facts
    opset: int = OPSET
    calibration: torch.Tensor | None = None

    def feeds(self) -> Iterator[NDArray[Any]]:
        """Yield the images for calibration as the graph takes them, some at a time."""
        assert self.calibration is not None
        for part in self.calibration.split(_AT_ONCE):
            yield as_input(part, self.facts)


def as_input(pixels_BHWC: torch.Tensor, facts: Facts) -> NDArray[Any]:
    """Turn pixels into what a graph takes: themselves, or the model's numbers [B, C, H, W]."""
    if facts.preprocessing == "inside":
        return np.asarray(pixels_BHWC.numpy())
    images_BCHW = normalize(pixels_BHWC, facts.preprocess)
    # Not `contiguous`: with one channel, memory in any order is. A compiled program takes the order
    # from the strides that it was made for, and with others it answers wrongly.
    return np.asarray(images_BCHW.clone(memory_format=torch.contiguous_format).numpy())
