"""The specification of a model: everything needed to build it, as plain values.

Source: An Image is Worth 16x16 Words (arXiv 2010.11929).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from vitbase.errors import ConfigError, nearest
from vitbase.model.hybrid import GROUPS, ROOT_CHANNELS, Form, conv_padding, resnet_stride
from vitbase.model.layers import DepthRule, Gelu

Stem = Literal["patch", "conv", "resnet"]
ConvNorm = Literal["group", "layer"]
Pool = Literal["token", "gap", "gap_norm", "token_gap"]
PosEmbed = Literal["learned", "learned_grid", "sincos2d"]
# Far above every network there is: a number read from a damaged file ends here, not in a loop or
# an allocation.
_MOST_TOKENS = 1 << 22
_Size = Annotated[int, Field(ge=1, le=1 << 24)]
_Depth = Annotated[int, Field(ge=1, le=1 << 12)]
_Count = Annotated[int, Field(ge=0)]
_Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
# JSON has lists for tuples.
_LISTS = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
_ConvLayer = Annotated[tuple[_Size, _Size, _Size], _LISTS]


class ViTSpec(BaseModel):
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
    Raises: ConfigError naming the field, if a value is of another type or impossible.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    patch_size: _Size
    width: _Size
    depth: _Depth
    num_heads: _Size
    mlp_dim: _Size
    image_size: Annotated[tuple[_Size, _Size], _LISTS] = (224, 224)
    in_channels: _Size = 3
    num_classes: _Count = 1000
    stem: Stem = "patch"
    conv_layers: Annotated[tuple[_ConvLayer, ...], _LISTS] = ()
    conv_norm: ConvNorm = "group"
    resnet_layers: Annotated[tuple[_Depth, ...], _LISTS] = ()
    resnet_width_factor: Annotated[float, Field(gt=0.0)] = 1.0
    resnet_form: Form = "jax"
    class_token: bool = True
    pool: Pool = "token"
    num_registers: _Count = 0
    representation_size: _Size | None = None
    layer_scale_init: float | None = None
    pos_embed: PosEmbed = "learned"
    gelu: Gelu = "tanh"
    norm_eps: Annotated[float, Field(ge=0.0)] = 1e-6
    qkv_bias: bool = True
    dropout: _Rate = 0.0
    stochastic_depth: _Rate = 0.0
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

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return self.model_dump()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViTSpec:
        """Build a specification from plain values, such as parsed JSON; lists become tuples.

        Raises: ConfigError if a key is unknown or missing, or a value impossible.
        """
        return cls.model_validate(dict(values))

    def replace(self, **changes: Any) -> ViTSpec:
        """Return a specification with other values. Raises: ConfigError as on construction."""
        return ViTSpec.model_validate({**dict(self), **changes})

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            spec = handler(values)
        except ValidationError as error:
            raise ConfigError(_describe(error, values)) from None
        _check_combinations(spec)
        return spec


def describe_problem(error: ValidationError) -> str:
    """Say in a line what the first problem of a validation is."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{field} is missing"
    return f"{field} is {repr(first['input'])[:80]}; {first['msg'][:1].lower()}{first['msg'][1:]}"


def _describe(error: ValidationError, values: Any) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][0])
        return f"Unknown model option '{field}'.{nearest(field, ViTSpec.model_fields)}"
    name = values.get("name") if isinstance(values, Mapping) else None
    return f"{name}: {describe_problem(error)}."


def _check_combinations(spec: ViTSpec) -> None:
    for layer in spec.conv_layers:
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
