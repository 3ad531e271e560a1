"""What is minimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vitbase.data.loader import IGNORED_LABEL


def cross_entropy_sum(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy, summed over the batch in float32.

    A sum, not a mean: the caller divides once by the images of the whole global batch, so that
    micro-batches and ranks add up exactly.

    Args:
      logits_BC: [B, C], any float type.
      labels_B: [B] int64 in [0, C), or IGNORED_LABEL.
    Returns: scalar float32.
    """
    return F.cross_entropy(logits_BC.float(), labels_B, ignore_index=IGNORED_LABEL, reduction="sum")
