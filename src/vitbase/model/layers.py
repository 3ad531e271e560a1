"""Layers of a Vision Transformer: projections, attention, MLP, block, position embeddings.

Shape legend: B batch, N tokens, D width, F width of the MLP, H heads, K = D / H; in the names of
images and feature maps C channels, H rows, W columns, P patch side.

Initialisation follows the paper's JAX code (google-research/vision_transformer).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitbase.errors import WeightsError

Gelu = Literal["tanh", "erf"]
DepthRule = Literal["linear", "uniform"]


def lecun_normal_(weight: Tensor) -> None:
    """Fill in place with a truncated normal of variance 1 / fan_in (the default kernel of flax)."""
    fan_in = weight[0].numel()
    # 0.8796... is the standard deviation of a unit normal cut at two standard deviations.
    std = math.sqrt(1.0 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class Linear(nn.Linear):
    """Fully connected layer, Xavier-uniform weight and zero bias."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Conv2d(nn.Conv2d):
    """Convolution with the initialisation of flax: LeCun-normal weight and zero bias."""

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PatchStem(nn.Module):
    """Cut an image into non-overlapping patches and project each of them to the width.

    It is a convolution whose stride is its kernel, computed as one matrix product.
    """

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns: tokens [B, N, D], row by row."""
        batch, channels, height, width = images_BCHW.shape
        side = self.patch_size
        rows, columns = height // side, width // side
        patches = images_BCHW.reshape(batch, channels, rows, side, columns, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention; query, key and value are thirds of one projection."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)
        with torch.no_grad():
            # Three square kernels, not one wide one: its fan-out would make the bound smaller.
            for part_DD in self.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part_DD)

    def forward(self, x_BND: Tensor, *, first_row_only: bool = False) -> Tensor:
        """Returns: [B, N, D], or [B, 1, D], the first token's row, with ``first_row_only``."""
        y_BND: Tensor = self.proj(self._first_row(x_BND) if first_row_only else self._rows(x_BND))
        return y_BND

    def _rows(self, x_BND: Tensor) -> Tensor:
        batch, tokens, _ = x_BND.shape
        # Unbinding the third axis, not the first: its gradient is stacked in place, not permuted.
        qkv_BN3HK = self.qkv(x_BND).view(batch, tokens, 3, self.num_heads, -1)
        q_BHNK, k_BHNK, v_BHNK = (part.transpose(1, 2) for part in qkv_BN3HK.unbind(2))
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        return y_BHNK.transpose(1, 2).flatten(2)

    def _first_row(self, x_BND: Tensor) -> Tensor:
        """One query needs no keys and values: its scores q·(W x + b) are (Wᵀq)·x, up to a
        constant that softmax ignores, and its output Σ p (W x + b) is W (Σ p x) + b.

        So each head attends with a query of width D to the tokens themselves, and two projections
        of all tokens become two of B x H rows.
        """
        batch, _, width = x_BND.shape
        q_weight, k_weight, v_weight = self.qkv.weight.chunk(3)
        q_bias, _, v_bias = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        q_B1D = F.linear(x_BND[:, :1], q_weight, q_bias)
        q_HBK = q_B1D.view(batch, self.num_heads, -1).transpose(0, 1)
        head_width = q_HBK.shape[-1]
        q_HBD = q_HBK @ k_weight.view(self.num_heads, head_width, width)
        x_B1ND = x_BND[:, None]
        y_B1HD = F.scaled_dot_product_attention(
            q_HBD.transpose(0, 1)[:, None], x_B1ND, x_B1ND, scale=head_width**-0.5
        )
        y_HBD = y_B1HD[:, 0].transpose(0, 1)
        y_HBK = y_HBD @ v_weight.view(self.num_heads, head_width, width).transpose(1, 2)
        y_B1D = y_HBK.transpose(0, 1).reshape(batch, 1, width)
        return y_B1D if v_bias is None else y_B1D + v_bias


_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_CUBE = 0.044715 * _SLOPE
_CHUNK = 1 << 18  # elements: a megabyte, so that a chunk stays in the cache between passes


class _TanhGelu(torch.autograd.Function):
    """The tanh GELU on a CPU, where torch computes a slow tanh, and another for the gradient.

    0.5 x (1 + tanh u) is x sigmoid(2u), exactly, and a sigmoid costs a third of a tanh. The
    gradient takes the sigmoid from the output, which the next layer keeps in any case.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        slope = x.new_tensor(_SLOPE)
        for x_part, y_part in zip(*_chunks(x, y), strict=True):
            torch.addcmul(slope, x_part, x_part, value=_CUBE, out=y_part)
            y_part.mul_(x_part).sigmoid_().mul_(x_part)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        slope = x.new_tensor(_SLOPE)
        for x_part, y_part, grad_y_part, grad_part in zip(
            *_chunks(x, y, grad_y, grad_x), strict=True
        ):
            gate = torch.div(y_part, x_part).nan_to_num_(nan=0.5)  # 0 / 0 at x = 0
            torch.mul(grad_y_part, gate, out=grad_part)
            # d sigmoid(z) / dx = sigmoid'(z) dz/dx with z = x (slope + cube x²)
            term = torch.mul(grad_y_part, x_part)
            torch.ops.aten.sigmoid_backward.grad_input(term, gate, grad_input=term)
            torch.addcmul(slope, x_part, x_part, value=3 * _CUBE, out=gate)
            grad_part.addcmul_(term, gate)
        return grad_x


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.reshape(-1).split(_CHUNK) for tensor in tensors]


def gelu(x: Tensor, form: Gelu) -> Tensor:
    """Gaussian error linear unit, exact ("erf") or its usual approximation ("tanh").

    Source: arXiv 1606.08415 section 2.
    """
    if (
        form == "tanh"
        and x.is_cpu
        and x.dtype == torch.float32
        and x.is_contiguous()
        and not torch.compiler.is_compiling()
    ):
        y: Tensor = _TanhGelu.apply(x)
        return y
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")


class Mlp(nn.Module):
    """Two fully connected layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, *, gelu_form: Gelu, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.gelu_form = gelu_form
        self.dropout = dropout
        nn.init.normal_(self.fc1.bias, std=1e-6)
        nn.init.normal_(self.fc2.bias, std=1e-6)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BNF = gelu(self.fc1(x_BND), self.gelu_form)
        y_BND: Tensor = self.fc2(F.dropout(x_BNF, self.dropout, self.training))
        return y_BND


class Block(nn.Module):
    """Pre-norm transformer block, with LayerScale and stochastic depth where asked."""

    scale1: nn.Parameter | None
    scale2: nn.Parameter | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        qkv_bias: bool,
        gelu_form: Gelu,
        norm_eps: float,
        dropout: float,
        layer_scale_init: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, gelu_form=gelu_form, dropout=dropout)
        self.dropout = dropout
        if layer_scale_init is None:
            self.scale1 = self.scale2 = None
        else:
            self.scale1 = nn.Parameter(torch.full((width,), layer_scale_init))
            self.scale2 = nn.Parameter(torch.full((width,), layer_scale_init))

    def forward(
        self,
        x_BND: Tensor,
        depth_scales_2B: Tensor | None = None,
        *,
        first_row_only: bool = False,
    ) -> Tensor:
        """Apply the block.

        Args:
          x_BND: tokens.
          depth_scales_2B: stochastic depth, the factor of each sample's two branches.
          first_row_only: compute the first token's row alone, [B, 1, D].
        """
        scales = (None, None) if depth_scales_2B is None else depth_scales_2B.unbind(0)
        y_BND = self.attn(self.norm1(x_BND), first_row_only=first_row_only)
        if first_row_only:
            x_BND = x_BND[:, :1]
        x_BND = x_BND + self._branch(y_BND, self.scale1, scales[0])
        y_BND = self.mlp(self.norm2(x_BND))
        return x_BND + self._branch(y_BND, self.scale2, scales[1])

    def _branch(self, y_BND: Tensor, scale_D: Tensor | None, depth_B: Tensor | None) -> Tensor:
        y_BND = F.dropout(y_BND, self.dropout, self.training)
        if scale_D is not None:
            y_BND = y_BND * scale_D
        if depth_B is not None:
            y_BND = y_BND * depth_B.to(y_BND.dtype)[:, None, None]
        return y_BND


def draw_depth_scales(
    max_rate: float,
    depth: int,
    batch_size: int,
    *,
    rule: DepthRule = "linear",
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Draw stochastic depth for a batch: 0 where a branch is dropped, else 1 / (1 - rate).

    With rule "linear" the rate grows from 0 in the first block to ``max_rate`` in the last; with
    "uniform" it is ``max_rate`` in every block, as in DeiT III. A training loop
    draws for the global batch and gives each rank its slice, so that a run does not depend on
    the number of ranks.

    Args:
      max_rate: rate of the last block.
      rule: of the rates of the others.
      depth: number of blocks, L.
      batch_size: B.
      generator: of ``device``; None uses the default one.
      device: where to draw; None is the CPU.
    Returns: [L, 2, B] float32: block, branch (attention, MLP), sample.
    Source: Deep Networks with Stochastic Depth (arXiv 1603.09382) section 3.
    """
    first = 0.0 if rule == "linear" else max_rate
    rate_L11 = torch.linspace(first, max_rate, depth, device=device)[:, None, None]
    uniform_L2B = torch.rand(depth, 2, batch_size, generator=generator, device=device)
    return (uniform_L2B >= rate_L11).float() / (1.0 - rate_L11)


def sincos_pos_embed(grid_hw: tuple[int, int], width: int) -> Tensor:
    """Fixed position embeddings: a quarter of the width each for sine and cosine of x and of y.

    Args:
      grid_hw: (rows, columns) in patches.
      width: D, a multiple of 4.
    Returns: [1, rows*columns, D] float32.
    Source: MoCo v3 (arXiv 2104.02057) section 5.3; Better plain ViT baselines (arXiv 2205.01580).
    """
    quarter = width // 4
    rows, columns = grid_hw
    # The last frequency is 1 / 10000, as in the baselines' code; a width of 4 has one frequency.
    steps = torch.arange(quarter, dtype=torch.float64) / max(1, quarter - 1)
    frequency = 10_000.0**-steps
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * frequency
    x = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]


def resample_pos_embed(
    pos_1ND: Tensor,
    grid_hw: tuple[int, int],
    *,
    num_prefix: int,
    old_grid_hw: tuple[int, int] | None = None,
) -> Tensor:
    """Resize learned position embeddings to another token grid, bicubic and antialiased.

    Args:
      pos_1ND: [1, num_prefix + h*w, D] float.
      grid_hw: target (rows, columns) in patches.
      num_prefix: leading tokens (class, registers) copied unchanged.
      old_grid_hw: the grid they were learned on; None means square.
    Returns: [1, num_prefix + rows*columns, D], same dtype.
    Raises: WeightsError if the old grid is not h*w for the given prefix.
    Source: ViT (arXiv 2010.11929) section 3.2.
    """
    tokens = pos_1ND.shape[1] - num_prefix
    if old_grid_hw is None:
        side = math.isqrt(max(0, tokens))
        old_grid_hw = (side, side)
    if tokens < 1 or old_grid_hw[0] * old_grid_hw[1] != tokens:
        raise WeightsError(
            f"Position embeddings of {pos_1ND.shape[1]} tokens, {num_prefix} of them class or "
            f"register tokens, do not form a grid of {old_grid_hw[0]}x{old_grid_hw[1]} patches. "
            "Give the number of leading tokens, and the grid if it is not square."
        )
    if tuple(old_grid_hw) == tuple(grid_hw):
        return pos_1ND
    prefix_1ND, grid_1ND = pos_1ND[:, :num_prefix], pos_1ND[:, num_prefix:]
    grid_1HWD = grid_1ND.float().reshape(1, *old_grid_hw, -1)
    grid_1DHW = grid_1HWD.permute(0, 3, 1, 2)
    grid_1DHW = F.interpolate(
        grid_1DHW, size=tuple(grid_hw), mode="bicubic", antialias=True, align_corners=False
    )
    grid_1ND = grid_1DHW.flatten(2).transpose(1, 2).to(pos_1ND.dtype)
    return torch.cat([prefix_1ND, grid_1ND], dim=1)
