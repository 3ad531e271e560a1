"""What a model costs to compute: arithmetic on its sizes, equal to torch's FLOP counter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vitbase.model.hybrid import ROOT_CHANNELS, conv_padding
from vitbase.model.spec import ViTSpec


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one image; a multiply-add counts as two."""

    forward: int
    training: int


def count_flops(spec: ViTSpec, *, head_only: bool = False) -> Flops:
    """Count the FLOPs of one image, forward and in training, without building the model.

    It is the work that the model asks for, as others count it: all rows of the last block, of which
    only the class token's is computed here, and nothing that is computed twice to save memory.

    Args:
      head_only: whether training is that of the head alone, which needs no gradient below it.
    Source: as torch's FLOP counter: matrix products, convolutions and attention. The gradient of a
      product is two of its size, but for the first layer, whose input needs none.
    """
    first, *stem = _stem_products(spec)
    width, tokens = spec.width, spec.num_tokens
    projections = tokens * width * (4 * width + 2 * spec.mlp_dim)
    blocks = spec.depth * (projections + 2 * tokens * tokens * width)
    features = spec.representation_size or spec.pooled_size
    representation = spec.pooled_size * features if spec.representation_size else 0
    head = features * spec.num_classes
    forward = 2 * (first + sum(stem) + blocks + representation + head)
    if head_only:
        return Flops(forward, forward + 2 * head)
    return Flops(forward, 3 * forward - 2 * first)


def _stem_products(spec: ViTSpec) -> Iterator[int]:
    """Yield the multiply-adds of each layer of the stem, in order."""
    height, width = spec.image_size
    channels = spec.in_channels
    if spec.stem == "conv":
        for outputs, kernel, stride in spec.conv_layers:
            around = 2 * conv_padding(kernel, stride) - kernel
            height, width = (height + around) // stride + 1, (width + around) // stride + 1
            yield height * width * outputs * channels * kernel**2
            channels = outputs
    elif spec.stem == "resnet":
        root = int(ROOT_CHANNELS * spec.resnet_width_factor)
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        yield height * width * root * channels * 7**2
        height, width, channels = math.ceil(height / 2), math.ceil(width / 2), root  # the pooling
        for stage, units in enumerate(spec.resnet_layers):
            inner = root * 2**stage
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                before = height * width
                height, width = math.ceil(height / stride), math.ceil(width / stride)
                after = height * width
                yield before * channels * inner + after * inner * (3**2 * inner + 4 * inner)
                if channels != 4 * inner or stride != 1:
                    yield after * channels * 4 * inner
                channels = 4 * inner
    side = spec.patch_size // spec.stem_stride
    yield math.prod(spec.grid_hw) * spec.width * channels * side**2
