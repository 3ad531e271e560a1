"""A model as one graph of tensors: what every format is written from.

Shape legend: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitbase.config.preprocess import Preprocess
from vitbase.data.normalize import scale_and_shift
from vitbase.model.hybrid import StdConv2d, pad_same
from vitbase.shipping.exporting.facts import Facts
from vitbase.weights.load import LoadedModel

if TYPE_CHECKING:
    from torch.export import ExportedProgram

INPUT, OUTPUT = "images", "logits"
"""Names of what goes in and comes out, in the formats that have names."""

_EXAMPLES = 2  # of one image a graph would be made that holds for one image alone


class _FixedConv(nn.Module):
    """A convolution whose filters are standardised once, and not for every image."""

    def __init__(self, conv: StdConv2d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.weight = nn.Parameter(conv.standardised().detach(), requires_grad=False)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        padded = pad_same(maps_BCHW, self.kernel, self.stride)
        return F.conv2d(padded, self.weight, stride=self.stride)


class Pixels(nn.Module):
    """The last step of preprocessing, then the model: [B, H, W, C] uint8 -> logits."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        scale_C, shift_C = scale_and_shift(preprocess)
        self.register_buffer("scale", scale_C)
        self.register_buffer("shift", shift_C)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        scaled_BHWC = images_BHWC.to(torch.float32) * self.scale + self.shift
        logits_BC: Tensor = self.model(scaled_BHWC.permute(0, 3, 1, 2))
        return logits_BC


def fixed(model: nn.Module) -> nn.Module:
    """Return a model, on the CPU, in which nothing is computed that no image changes."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, StdConv2d):
                setattr(module, name, _FixedConv(child))
    return model


def trace(loaded: LoadedModel, facts: Facts) -> ExportedProgram:
    """Write a model down as one graph, for any number of images."""
    from torch.export import Dim, export  # as long as all the rest to import

    model = fixed(loaded.model)
    dtype = torch.float32
    if facts.preprocessing == "inside":
        model, dtype = Pixels(model, facts.preprocess).eval(), torch.uint8
    example = torch.zeros(_EXAMPLES, *facts.input_shape, dtype=dtype)
    with torch.no_grad():
        return export(model, (example,), dynamic_shapes=({0: Dim("batch")},))
