"""Convolutional stems: a few small convolutions, or the ResNet of the hybrid models.

The ResNet's padding is that of the JAX code ("SAME"): with stride 2 the odd pixel goes to the
bottom and the right, so that published hybrid weights give the published numbers.

Shape legend: B batch, C channels, H rows, W columns, N tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitbase.errors import ConfigError
from vitbase.model.layers import Conv2d

Form = Literal["jax", "timm"]
GROUPS = 32
ROOT_CHANNELS = 64

# JAX's code divides a filter by (deviation + 1e-5), timm's by sqrt(variance + 1e-8), and their
# group norms have different epsilons; the same weights give slightly different numbers.
_JAX_WEIGHT_EPS, _TIMM_WEIGHT_EPS, _TIMM_NORM_EPS = 1e-5, 1e-8, 1e-5


def resnet_stride(num_layers: tuple[int, ...]) -> int:
    """Pixels of the image for one pixel of the stem's last feature map."""
    return int(2 ** (2 + max(0, len(num_layers) - 1)))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to add before and after, so that ``size`` becomes ``ceil(size / stride)``."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pad_same(maps_BCHW: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad a feature map for a "SAME" convolution or pooling."""
    top, bottom = same_padding(maps_BCHW.shape[2], kernel, stride)
    left, right = same_padding(maps_BCHW.shape[3], kernel, stride)
    if top == bottom == left == right == 0:
        return maps_BCHW
    return F.pad(maps_BCHW, (left, right, top, bottom), value=value)


class ConvStem(nn.Module):
    """A few small convolutions, each followed by a norm and ReLU, then a projection to tokens.

    GroupNorm stands where the paper has BatchNorm: batch statistics would make one rank differ
    from several, and accumulated batches from whole ones.

    Args:
      in_channels: channels of the image.
      width: D, channels of the tokens.
      layers: (channels, kernel, stride) for each convolution.
      norm: "group" (groups of 8 channels) or "layer" (over the channels of each pixel).
      patch_size: side, in pixels of the last feature map, that makes one token.
      norm_eps: epsilon of the norms.
    Source: Early Convolutions Help Transformers See Better (arXiv 2106.14881) section 4.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        layers: tuple[tuple[int, int, int], ...],
        norm: Literal["group", "layer"],
        patch_size: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        norms: list[nn.Module] = []
        for channels, kernel, stride in layers:
            padding = conv_padding(kernel, stride)
            convs.append(
                Conv2d(in_channels, channels, kernel, stride=stride, padding=padding, bias=False)
            )
            norms.append(
                nn.GroupNorm(channels // 8, channels, eps=norm_eps)
                if norm == "group"
                else ChannelNorm(channels, eps=norm_eps)
            )
            in_channels = channels
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(norms)
        self.proj = Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns: tokens [B, N, D], row by row."""
        maps_BCHW = images_BCHW
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps_BCHW = F.relu(norm(conv(maps_BCHW)))
        tokens_BDN: Tensor = self.proj(maps_BCHW).flatten(2)
        return tokens_BDN.transpose(1, 2)


def conv_padding(kernel: int, stride: int) -> int:
    """Padding with which a convolution turns ``n * stride`` pixels into exactly ``n``.

    Raises: ConfigError if no symmetric padding does.
    """
    padding = max(0, -((stride - kernel) // 2))
    if kernel < stride or 2 * padding >= kernel:
        raise ConfigError(
            f"A convolution with kernel {kernel} and stride {stride} cannot stand in a stem: "
            "the kernel must be at least the stride, and odd if the stride is 1."
        )
    return padding


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a feature map."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return super().forward(maps_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StdConv2d(Conv2d):
    """Convolution with "SAME" padding; each filter is standardised before use.

    Source: Weight Standardization (arXiv 1903.10520).
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, form: Form
    ) -> None:
        super().__init__(in_channels, channels, kernel_size=kernel, stride=stride, bias=False)
        self.form = form

    def standardised(self) -> Tensor:
        """Return the filters that images meet."""
        weight = self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        if self.form == "jax":
            scale = 1.0 / (variance.sqrt() + _JAX_WEIGHT_EPS)
        else:
            scale = torch.rsqrt(variance + _TIMM_WEIGHT_EPS)
        return ((weight - mean) * scale).to(self.weight.dtype)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        padded = pad_same(maps_BCHW, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, self.standardised(), stride=self.stride)


class Bottleneck(nn.Module):
    """Residual unit of 1x1, 3x3 and 1x1 convolutions; the last one has four times the channels."""

    conv_proj: StdConv2d | None

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm_eps: float, form: Form
    ) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = StdConv2d(in_channels, channels, 1, 1, form)
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=norm_eps)
        self.conv2 = StdConv2d(channels, channels, 3, stride, form)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=norm_eps)
        self.conv3 = StdConv2d(channels, out_channels, 1, 1, form)
        self.norm3 = nn.GroupNorm(GROUPS, out_channels, eps=norm_eps)
        nn.init.zeros_(self.norm3.weight)  # each unit starts as the identity
        if in_channels != out_channels or stride != 1:
            self.conv_proj = StdConv2d(in_channels, out_channels, 1, stride, form)
            self.norm_proj = nn.GroupNorm(GROUPS, out_channels, eps=norm_eps)
        else:
            self.conv_proj = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.norm2(self.conv2(y_BCHW)))
        y_BCHW = self.norm3(self.conv3(y_BCHW))
        if self.conv_proj is not None:
            x_BCHW = self.norm_proj(self.conv_proj(x_BCHW))
        return F.relu(x_BCHW + y_BCHW)


class ResNetStem(nn.Module):
    """Root block, bottleneck stages, then a projection of the last feature map to tokens.

    Its convolutions are weight-standardised, its norms GroupNorms.

    Args:
      in_channels: channels of the image.
      width: D, channels of the tokens.
      num_layers: bottleneck units in each stage; may be empty.
      width_factor: times 64 channels in the root block.
      patch_size: side, in pixels of the last feature map, that makes one token.
      norm_eps: epsilon of the GroupNorms, in the form "jax".
      form: whose small numbers to compute with.
    Source: ViT (arXiv 2010.11929) section 3.1; Big Transfer (arXiv 1912.11370) section 3.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        num_layers: tuple[int, ...],
        width_factor: float,
        patch_size: int,
        norm_eps: float,
        form: Form,
    ) -> None:
        super().__init__()
        norm_eps = norm_eps if form == "jax" else _TIMM_NORM_EPS
        channels = int(ROOT_CHANNELS * width_factor)
        self.root_conv = StdConv2d(in_channels, channels, 7, 2, form)
        self.root_norm = nn.GroupNorm(GROUPS, channels, eps=norm_eps)
        stages = []
        in_channels = channels
        for index, num_units in enumerate(num_layers):
            units = []
            for unit in range(num_units):
                stride = 2 if index > 0 and unit == 0 else 1
                units.append(Bottleneck(in_channels, channels * 2**index, stride, norm_eps, form))
                in_channels = 4 * channels * 2**index
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.proj = Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns: tokens [B, N, D], row by row."""
        maps_BCHW = F.relu(self.root_norm(self.root_conv(images_BCHW)))
        maps_BCHW = F.max_pool2d(pad_same(maps_BCHW, 3, 2, float("-inf")), 3, stride=2)
        for stage in self.stages:
            maps_BCHW = stage(maps_BCHW)
        tokens_BDN: Tensor = self.proj(maps_BCHW).flatten(2)
        return tokens_BDN.transpose(1, 2)
