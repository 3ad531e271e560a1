"""Attention, recomputed from queries and keys, which the fused model never writes down.

Hooks see what each block's attention receives; the model itself stays as it is.

Shape legend: B batch, N tokens (class token, registers, patches), D width, H heads, K = D / H;
n patches, h rows and w columns of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.nn import functional as F

from vitbase.errors import ConfigError
from vitbase.model.layers import Attention
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer

MOST_BYTES = 4 << 30
"""Of one block's attention in one image: more does not fit beside the rest on a small machine."""

Visit = Callable[[int, Tensor], None]


def recompute_attention(attention: Attention, x_BND: Tensor) -> Tensor:
    """Compute the probabilities that a block attends with.

    Args:
      attention: of a block.
      x_BND: what it receives: tokens after the block's first norm.
    Returns: [B, H, N, N]; a row is a query, and sums to 1.
    Source: ViT (arXiv 2010.11929) appendix A, equation 6.
    """
    batch, tokens, width = x_BND.shape
    bias = None if attention.qkv.bias is None else attention.qkv.bias[: 2 * width]
    qk_BND = F.linear(x_BND, attention.qkv.weight[: 2 * width], bias)
    qk_BN2HK = qk_BND.view(batch, tokens, 2, attention.num_heads, -1)
    q_BHNK, k_BHNK = (part.transpose(1, 2) for part in qk_BN2HK.unbind(2))
    scores_BHNN = (q_BHNK * q_BHNK.shape[-1] ** -0.5) @ k_BHNK.transpose(2, 3)
    p_BHNN: Tensor = scores_BHNN.softmax(dim=-1)
    return p_BHNN


@contextlib.contextmanager
def attending(model: VisionTransformer, visit: Visit) -> Iterator[None]:
    """Inside, each forward pass calls ``visit(block, p_HNN)`` for each block and image of it.

    Only one image's attention of one block is in memory at a time, so ``visit`` keeps what it needs
    and no more. Images come in order, for each block.

    Raises: ConfigError if even that is more than :data:`MOST_BYTES`.
    """
    refuse_too_many(model.spec)

    def hook(block: int) -> Callable[..., None]:
        def before(attention: Attention, given: tuple[Tensor, ...]) -> None:
            for x_1ND in given[0].split(1):
                visit(block, recompute_attention(attention, x_1ND)[0])

        return before

    parts = [part for part in model.blocks.modules() if isinstance(part, Attention)]
    handles = [part.register_forward_pre_hook(hook(block)) for block, part in enumerate(parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def refuse_too_many(spec: ViTSpec) -> None:
    """Raise a ConfigError if a model has more tokens than can be looked at in pairs."""
    size = 4 * spec.num_heads * spec.num_tokens**2
    if size > MOST_BYTES:
        raise ConfigError(
            f"{spec.name} has {spec.num_tokens:,} tokens at {spec.image_size[0]}x"
            f"{spec.image_size[1]} pixels: the attention of one block takes {size / 2**30:.0f} GiB "
            "an image. Give a smaller --image_size."
        )


def query_of(spec: ViTSpec) -> str:
    """Say whose attention is shown: of the class token, or where there is none, of the patches."""
    return "class token" if spec.class_token else "mean of all patches"


def rows_of_query(p_HNN: Tensor, spec: ViTSpec) -> Tensor:
    """Return [H, N], what the class token attends to; without one, the mean over the patches."""
    return p_HNN[:, 0] if spec.class_token else p_HNN[:, spec.num_prefix :].mean(1)


def on_grid(values_xn: Tensor, spec: ViTSpec) -> Tensor:
    """Return values of patches, [..., n], as rows and columns, [..., h, w]."""
    assert values_xn.shape[-1] == math.prod(spec.grid_hw)
    return values_xn.reshape(*values_xn.shape[:-1], *spec.grid_hw)
