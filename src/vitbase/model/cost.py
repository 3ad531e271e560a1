"""What a model costs to compute and to train: arithmetic on its sizes.

FLOPs are those of torch's counter, and values kept are those that autograd keeps, both tested.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vitbase.model.hybrid import GROUPS, ROOT_CHANNELS, conv_padding, same_padding
from vitbase.model.spec import ViTSpec


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one image; a multiply-add counts as two."""

    forward: int
    training: int


@dataclasses.dataclass(frozen=True)
class Kept:
    """Values that a forward pass keeps for the backward pass, beside the weights themselves.

    Attributes:
      each: of every image.
      once: whatever the batch: the standardised filters of a hybrid's stem.
      single: of `each`, those that half precision keeps in fp32: what norms are given between and
        in the blocks, and what they and attention note of each row.
    """

    each: int
    once: int
    single: int = 0

    def bytes_of(self, images: int, *, half: bool) -> int:
        """Return what a batch keeps."""
        if not half:
            return 4 * (images * self.each + self.once)
        return 2 * (images * (self.each + self.single) + self.once)


def count_flops(spec: ViTSpec, *, head_only: bool = False) -> Flops:
    """Count the FLOPs of one image, forward and in training, without building the model.

    It is the work that the model asks for, as others count it: all rows of the last block, of which
    only the class token's is computed here, and nothing that is computed twice to save memory.

    Args:
      head_only: whether training is that of the head alone, which needs no gradient below it.
    Source: as torch's FLOP counter: matrix products, convolutions and attention. The gradient of a
      product is two of its size, but for the first layer, whose input needs none.
    """
    first, *stem = (convolution.products for convolution in _convolutions(spec))
    width, tokens = spec.width, spec.num_tokens
    projections = tokens * width * (4 * width + 2 * spec.mlp_dim)
    blocks = spec.depth * (projections + 2 * tokens * tokens * width)
    features = _features(spec)
    representation = spec.pooled_size * features if spec.representation_size else 0
    head = features * spec.num_classes
    forward = 2 * (first + sum(stem) + blocks + representation + head)
    if head_only:
        return Flops(forward, forward + 2 * head)
    return Flops(forward, 3 * forward - 2 * first)


def count_kept(spec: ViTSpec, *, head_only: bool = False, recomputed: int = 0) -> Kept:
    """Count the values that training keeps between the two passes, without building the model.

    A layer keeps what its gradient needs: a product its input, a norm its input and two numbers for
    each mean, attention its inputs, its output and a number a row, a GELU its input, a ReLU its
    output. What two layers keep is kept once.

    Args:
      head_only: whether the head alone is trained, which keeps what it reads.
      recomputed: the first blocks, so many, keep their input alone and are computed again. Counted
        is the fullest moment: the end of the forward pass, or when the last of these is there
        again, alone.
    """
    if head_only:
        return Kept(_features(spec), 0)
    width, tokens = spec.width, spec.num_tokens
    stem = _kept_in_stem(spec)
    dropped = spec.dropout > 0
    before = Kept(
        stem.each + tokens * width * dropped + 2 * spec.depth * (spec.stochastic_depth > 0),
        stem.once,
    )
    block, last = _kept_in_block(spec), _kept_in_last_block(spec)
    pooled = 1 if spec.pool in {"token", "gap_norm"} else tokens
    norm = pooled * (width + 2)
    head = 0
    if spec.num_classes or spec.representation_size:
        head = spec.pooled_size + (spec.representation_size or 0)
    again = min(recomputed, spec.depth - 1)  # with the last one there would be as much, and more
    inputs = again * tokens * width
    whole = spec.depth - 1 - again
    at_end = Kept(
        before.each + inputs + whole * block.each + last.each + norm + head,
        before.once,
        inputs + whole * block.single + last.single + norm,
    )
    if not again:
        return at_end
    in_between = Kept(
        before.each + inputs - tokens * width + block.each,
        before.once,
        inputs - tokens * width + block.single,
    )
    return max(at_end, in_between, key=lambda kept: kept.each)


def _kept_in_block(spec: ViTSpec) -> Kept:
    # Two norms of the tokens with what they give; queries, keys and values; attention's output.
    tokens, width = spec.num_tokens, spec.width
    each = tokens * (6 * width + 2 + spec.num_heads) + _kept_after_attention(spec, tokens)
    return Kept(each, 0, tokens * (2 * width + 4 + spec.num_heads))


def _kept_in_last_block(spec: ViTSpec) -> Kept:
    if spec.pool != "token":
        return _kept_in_block(spec)
    # Of one row: a query of the whole width a head.
    tokens, width = spec.num_tokens, spec.width
    row = width * (2 * spec.num_heads + 2) + spec.num_heads + _kept_after_attention(spec, 1)
    single = (tokens + 1) * (width + 2) + spec.num_heads
    return Kept(tokens * (2 * width + 2) + row, 0, single)


def _kept_after_attention(spec: ViTSpec, rows: int) -> int:
    """Its projection's input is the caller's. Norm, its output, the MLP, and both branches."""
    dropped = spec.dropout > 0
    branches = 2 * (spec.layer_scale_init is not None) + 2 * dropped
    return rows * (2 * spec.width + 2 + (2 + 2 * dropped) * spec.mlp_dim + branches * spec.width)


def _features(spec: ViTSpec) -> int:
    return spec.representation_size or spec.pooled_size


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A convolution of the stem, or the projection of patches, which is one, too.

    Attributes:
      inputs, outputs: channels.
      before, after: height and width of the feature maps, without padding.
      shortcut: whether it stands beside others, and no ReLU after it.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    before: tuple[int, int]
    after: tuple[int, int]
    shortcut: bool = False

    @property
    def products(self) -> int:
        """Multiply-adds of an image."""
        return math.prod(self.after) * self.outputs * self.inputs * self.kernel**2


def _convolutions(spec: ViTSpec) -> Iterator[_Convolution]:
    """Yield the convolutions of the stem, in order; the last one makes tokens."""
    size, channels = spec.image_size, spec.in_channels
    if spec.stem == "conv":
        for outputs, kernel, stride in spec.conv_layers:
            around = 2 * conv_padding(kernel, stride) - kernel
            after = ((size[0] + around) // stride + 1, (size[1] + around) // stride + 1)
            yield _Convolution(channels, outputs, kernel, stride, size, after)
            size, channels = after, outputs
    elif spec.stem == "resnet":
        root = int(ROOT_CHANNELS * spec.resnet_width_factor)
        after = _strided(size, 2)
        yield _Convolution(channels, root, 7, 2, size, after)
        size, channels = _strided(after, 2), root  # the pooling
        for stage, units in enumerate(spec.resnet_layers):
            inner = root * 2**stage
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                after = _strided(size, stride)
                yield _Convolution(channels, inner, 1, 1, size, size)
                yield _Convolution(inner, inner, 3, stride, size, after)
                yield _Convolution(inner, 4 * inner, 1, 1, after, after)
                if channels != 4 * inner or stride != 1:
                    yield _Convolution(channels, 4 * inner, 1, stride, size, after, shortcut=True)
                size, channels = after, 4 * inner
    side = spec.patch_size // spec.stem_stride
    yield _Convolution(channels, spec.width, side, side, size, spec.grid_hw)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return a feature map's height and width after "SAME" padding and a stride."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


_SCALES = {"jax": 3, "timm": 1}
"""Numbers that are kept for each filter, to standardise it."""


def _kept_in_stem(spec: ViTSpec) -> Kept:
    *convolutions, projection = _convolutions(spec)
    if spec.stem == "patch":
        return Kept(math.prod(spec.grid_hw) * projection.inputs * projection.kernel**2, 0)
    each = once = 0
    for number, convolution in enumerate(convolutions):
        pixels = math.prod(convolution.after)
        # A norm's input, and a ReLU's output, which is the next one's input.
        each += (1 if convolution.shortcut else 2) * pixels * convolution.outputs
        if spec.stem == "conv":
            each += 2 * (convolution.outputs // 8 if spec.conv_norm == "group" else pixels)
            each += convolution.inputs * math.prod(convolution.before) if number == 0 else 0
        else:
            each += 2 * GROUPS + _kept_padded(convolution)
            filters = convolution.inputs * convolution.kernel**2
            once += convolution.outputs * (2 * filters + _SCALES[spec.resnet_form])
    if spec.stem == "resnet":
        channels, size = convolutions[0].outputs, convolutions[0].after
        pooling = _Convolution(channels, channels, 3, 2, size, _strided(size, 2))
        each += _kept_padded(pooling) + 2 * channels * math.prod(pooling.after)  # and their places
    return Kept(each, once)


def _kept_padded(convolution: _Convolution) -> int:
    """Return the values of a copy with "SAME" padding; none where there is no padding."""
    kernel, stride = convolution.kernel, convolution.stride
    around = [sum(same_padding(size, kernel, stride)) for size in convolution.before]
    sides = (size + more for size, more in zip(convolution.before, around, strict=True))
    return convolution.inputs * math.prod(sides) if any(around) else 0
