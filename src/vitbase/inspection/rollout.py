"""Attention through all blocks: how much of each patch arrives in what the head reads.

Shape legend: H heads, N tokens, n patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitbase.model.spec import ViTSpec


def roll(rolled_NN: Tensor | None, p_HNN: Tensor) -> Tensor:
    """Follow attention through one more block.

    Heads are averaged; half of each token goes past the attention, by the residual connection.

    Args:
      rolled_NN: through the blocks before; None before the first.
      p_HNN: the block's attention.
    Returns: [N, N], rows sum to 1: of a token now, the shares of the tokens at the beginning.
    Source: Quantifying Attention Flow in Transformers (arXiv 2005.00928) section 3.
    """
    step_NN = p_HNN.mean(0)
    step_NN = 0.5 * step_NN + 0.5 * torch.eye(len(step_NN), device=step_NN.device)
    step_NN = step_NN / step_NN.sum(-1, keepdim=True)
    return step_NN if rolled_NN is None else step_NN @ rolled_NN


def read_by_head(rolled_NN: Tensor, spec: ViTSpec) -> Tensor:
    """Return [n], the share of each patch in what the head reads.

    That is the class token, or with pool "gap" and "gap_norm" the mean of the patches. Shares of
    the class token and of registers themselves are left out, so the sum is less than 1.
    """
    patches = slice(spec.num_prefix, None)
    by_token = spec.pool in ("token", "token_gap")
    row_N = rolled_NN[0] if by_token else rolled_NN[patches].mean(0)
    return row_N[patches]
