"""How far apart in the image attention looks, by block and head.

Shape legend: H heads, N tokens, n patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitbase.model.spec import ViTSpec


def patch_distances(spec: ViTSpec) -> Tensor:
    """Return [n, n], the pixels between the centres of two patches."""
    rows, columns = spec.grid_hw
    y_n = torch.arange(rows, dtype=torch.float32).repeat_interleave(columns)
    x_n = torch.arange(columns, dtype=torch.float32).repeat(rows)
    return spec.patch_size * torch.hypot(y_n[:, None] - y_n, x_n[:, None] - x_n)


def mean_distance(p_HNN: Tensor, distances_nn: Tensor, num_prefix: int) -> Tensor:
    """Average the distance from a patch to the patches that it attends to, by its attention.

    Class token and registers stand nowhere in the image: they are left out as queries and as keys,
    and what a patch attends to other patches is made to sum to 1 again.

    Returns: [H], in pixels, the mean over all patches.
    Source: ViT (arXiv 2010.11929) section 4.5 and figure 7, right; figure 11.
    """
    p_Hnn = p_HNN[:, num_prefix:, num_prefix:]
    # A patch that attends to registers alone has nearly nothing to divide by.
    total_Hn = p_Hnn.sum(-1).clamp_min(torch.finfo(p_Hnn.dtype).tiny)
    return ((p_Hnn * distances_nn).sum(-1) / total_Hn).mean(-1)
