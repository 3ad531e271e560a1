"""The specification of a model: everything needed to build it, as plain values.

Source: An Image is Worth 16x16 Words (arXiv 2010.11929).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from vitbase.errors import ConfigError, nearest
from vitbase.model.hybrid import GROUPS, ROOT_CHANNELS, Form, conv_padding, resnet_stride
from vitbase.model.layers import DepthRule, Gelu

Stem = Literal["patch", "conv", "resnet"]
ConvNorm = Literal["group", "layer"]
Pool = Literal["token", "gap", "gap_norm", "token_gap"]
PosEmbed = Literal["learned", "learned_grid", "sincos2d"]


@dataclass(frozen=True, kw_only=True)
class ViTSpec:
    """Everything needed to build a model; plain values, so that it can be written as JSON.

    Attributes:
      name: the variant's name in the zoo, or any other.
      image_size: (height, width) in pixels.
      in_channels: channels of the image.
      patch_size: pixels of the image's side that make one token, whatever the stem.
      width: D, width of the tokens.
      depth: number of blocks.
      num_heads: attention heads; divides ``width``.
      mlp_dim: width of the MLP's hidden layer.
      num_classes: outputs of the head; 0 means no head: the model returns its features.
      stem: "patch" (one projection of each patch), "conv" or "resnet".
      conv_layers: (channels, kernel, stride) of each convolution of the "conv" stem.
      conv_norm: norm of the "conv" stem: "group" (groups of 8 channels) or "layer".
      resnet_layers: bottleneck units in each stage of the "resnet" stem.
      resnet_width_factor: times 64 channels at the root of the "resnet" stem.
      resnet_form: whose small numbers the "resnet" stem computes with, "jax" or "timm".
      class_token: whether a class token stands before the patches.
      pool: what the head reads: the class "token"; the mean of the patch tokens ("gap"), or that
        of the tokens before the final norm, which is applied to it ("gap_norm"); or class token
        and mean side by side ("token_gap", DINOv2's linear heads).
      num_registers: register tokens between the class token and the patches.
      representation_size: width of a tanh layer before the head; None for none.
      layer_scale_init: initial LayerScale of the branches; None for none.
      pos_embed: "learned" (for the class token and the patches), "learned_grid" (for the patches
        alone) or "sincos2d" (fixed, for the patches alone). Registers never have positions.
      gelu: "tanh" (JAX, MindSpore) or "erf" (timm, torchvision, Hugging Face).
      norm_eps: epsilon of all norms.
      qkv_bias: whether query, key and value have a bias.
      dropout: after the position embeddings, the attention's projection and both MLP layers.
      stochastic_depth: rate of the last block.
      stochastic_depth_rule: "linear" (growing from 0 in the first block) or "uniform" (in all).
      head_init_std: initial deviation of the head's weights; 0, as in JAX, lets every class start
        with the same probability, but short runs learn faster from about 1 / sqrt(width).
      head_bias_init: initial bias of the head.
    """

    name: str
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    image_size: tuple[int, int] = (224, 224)
    in_channels: int = 3
    num_classes: int = 1000
    stem: Stem = "patch"
    conv_layers: tuple[tuple[int, int, int], ...] = ()
    conv_norm: ConvNorm = "group"
    resnet_layers: tuple[int, ...] = ()
    resnet_width_factor: float = 1.0
    resnet_form: Form = "jax"
    class_token: bool = True
    pool: Pool = "token"
    num_registers: int = 0
    representation_size: int | None = None
    layer_scale_init: float | None = None
    pos_embed: PosEmbed = "learned"
    gelu: Gelu = "tanh"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_rule: DepthRule = "linear"
    head_init_std: float = 0.0
    head_bias_init: float = 0.0

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of patch tokens."""
        rows, columns = (self._stem_pixels(pixels) for pixels in self.image_size)
        patch = self.patch_size // self.stem_stride
        return rows // patch, columns // patch

    def _stem_pixels(self, pixels: int) -> int:
        """Side of the feature map that the stem projects, for a side of the image.

        The convolutions of a "conv" stem are padded, so they take any size, rounding up.
        """
        if self.stem != "conv":
            return pixels // self.stem_stride
        for _, kernel, stride in self.conv_layers:
            pixels = (pixels + 2 * conv_padding(kernel, stride) - kernel) // stride + 1
        return pixels

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.num_registers

    @property
    def num_tokens(self) -> int:
        """Tokens in the blocks."""
        return self.num_prefix + math.prod(self.grid_hw)

    @property
    def pooled_size(self) -> int:
        """Features after pooling."""
        return 2 * self.width if self.pool == "token_gap" else self.width

    @property
    def pos_embed_prefix(self) -> int:
        """Leading tokens that the position embeddings cover beside the patches: 0 or 1."""
        return int(self.class_token and self.pos_embed == "learned")

    @property
    def stem_stride(self) -> int:
        """Pixels of the image for one pixel of the feature map that the stem projects."""
        if self.stem == "conv":
            return math.prod(stride for _, _, stride in self.conv_layers)
        return resnet_stride(self.resnet_layers) if self.stem == "resnet" else 1

    def __post_init__(self) -> None:
        _check_values(self)
        _check_combinations(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViTSpec:
        """Build a specification from plain values, such as parsed JSON; lists become tuples.

        Raises: ConfigError if a key is unknown or missing, or a value impossible.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"Unknown model option '{key}'.{nearest(key, known)}")
        try:
            # Through JSON, so that pydantic takes lists for tuples, but no text for a number.
            return TypeAdapter(cls).validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"Model option '{first['loc'][0]}': {first['msg']}.") from None


_CHOICES: dict[str, tuple[str, ...]] = {
    "stem": get_args(Stem),
    "conv_norm": get_args(ConvNorm),
    "pool": get_args(Pool),
    "resnet_form": get_args(Form),
    "pos_embed": get_args(PosEmbed),
    "gelu": get_args(Gelu),
    "stochastic_depth_rule": get_args(DepthRule),
}
_POSITIVE = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "in_channels")
# Far above every network there is: a number read from a damaged file ends here, not in a loop or
# an allocation.
_LARGEST = {"depth": 4096}
_LARGEST_SIZE = 1 << 24
_MOST_TOKENS = 1 << 22


def _check_values(spec: ViTSpec) -> None:
    for key, choices in _CHOICES.items():
        value = getattr(spec, key)
        if value not in choices:
            raise ConfigError(f"{spec.name}: {key} is {value!r}; it must be one of {choices}.")
    for key in _POSITIVE:
        value = getattr(spec, key)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{spec.name}: {key} is {value!r}; it must be a positive integer.")
        if value > _LARGEST.get(key, _LARGEST_SIZE):
            raise ConfigError(f"{spec.name}: {key} is {value:,}; such sizes are impossible.")
    for key in ("num_classes", "num_registers"):
        value = getattr(spec, key)
        if not isinstance(value, int) or value < 0:
            raise ConfigError(f"{spec.name}: {key} is {value!r}; it must be 0 or more.")
    if spec.representation_size is not None and spec.representation_size < 1:
        raise ConfigError(f"{spec.name}: representation_size must be None or at least 1.")
    for key in ("dropout", "stochastic_depth"):
        value = getattr(spec, key)
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"{spec.name}: {key} is {value!r}; it must be in [0, 1).")
    if len(spec.image_size) != 2 or min(spec.image_size) < 1:
        raise ConfigError(f"{spec.name}: image_size must be (height, width), in pixels.")


def _check_combinations(spec: ViTSpec) -> None:
    for layer in spec.conv_layers:
        if len(layer) != 3 or min(layer) < 1:
            raise ConfigError(f"{spec.name}: a conv layer is (channels, kernel, stride): {layer}.")
        conv_padding(layer[1], layer[2])
        if spec.conv_norm == "group" and layer[0] % 8:
            raise ConfigError(f'{spec.name}: conv_norm "group" needs channels divisible by 8.')
    height, width = spec.image_size
    side = spec.patch_size
    padded = spec.stem == "conv" and side == spec.stem_stride
    if not padded and (height % side or width % side):
        near = [max(1, round(pixels / side)) * side for pixels in spec.image_size]
        raise ConfigError(
            f"{spec.name}: an image of {height}x{width} pixels is not made of {side}x{side} "
            f"patches. The nearest size is {near[0]}x{near[1]}."
        )
    if spec.width % spec.num_heads:
        raise ConfigError(
            f"{spec.name}: width {spec.width} is not divisible by num_heads {spec.num_heads}."
        )
    if spec.pool in ("token", "token_gap") and not spec.class_token:
        raise ConfigError(
            f'{spec.name}: pool "{spec.pool}" needs class_token; else use pool "gap".'
        )
    if spec.pos_embed == "sincos2d" and spec.width % 4:
        raise ConfigError(f'{spec.name}: pos_embed "sincos2d" needs a width divisible by 4.')
    if (spec.stem == "conv") != bool(spec.conv_layers):
        raise ConfigError(f'{spec.name}: conv_layers belong to stem "conv", which needs them.')
    if spec.resnet_layers and spec.stem != "resnet":
        raise ConfigError(f'{spec.name}: resnet_layers belong to stem "resnet".')
    if spec.stem == "resnet" and int(ROOT_CHANNELS * spec.resnet_width_factor) % GROUPS:
        raise ConfigError(
            f"{spec.name}: {ROOT_CHANNELS} times resnet_width_factor {spec.resnet_width_factor} "
            f"must be divisible by {GROUPS}."
        )
    if spec.patch_size % spec.stem_stride:
        raise ConfigError(
            f"{spec.name}: the stem's strides multiply to {spec.stem_stride}, which does not "
            f"divide patch_size {spec.patch_size}."
        )
    if max(spec.num_tokens, spec.num_classes, spec.representation_size or 0) > _MOST_TOKENS:
        raise ConfigError(
            f"{spec.name}: {spec.num_tokens:,} tokens, {spec.num_classes:,} classes and a "
            f"representation of {spec.representation_size or 0:,}: such sizes are impossible."
        )
