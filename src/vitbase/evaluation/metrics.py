"""Accuracy and loss as sums: add numerators and denominators, divide once."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class ClassificationSums:
    """Counts over evaluated images; two of them add up. Derived figures are fractions."""

    images: int = 0
    top1_hits: int = 0
    top5_hits: int = 0
    loss_sum: float = 0.0
    unreadable: int = 0

    @classmethod
    def of(cls, logits_BC: torch.Tensor, labels_B: torch.Tensor, readable_B: torch.Tensor) -> Self:
        """Count one batch.

        An unreadable image counts as wrong in the accuracies and is left out of the loss.

        Args:
          logits_BC: [B, C], any float type.
          labels_B: [B] int64 in [0, C).
          readable_B: [B] bool.
        """
        logits_BC = logits_BC.float()
        top_BK = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
        hits_BK = (top_BK == labels_B[:, None]) & readable_B[:, None]
        losses_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        return cls(
            images=labels_B.numel(),
            top1_hits=int(hits_BK[:, 0].sum()),
            top5_hits=int(hits_BK.sum()),
            loss_sum=float(losses_B[readable_B].sum(dtype=torch.float64)),
            unreadable=int((~readable_B).sum()),
        )

    def to_row(self) -> dict[str, float]:
        """Return the figures of a row of metrics.jsonl."""
        return {
            "eval_top1": self.top1,
            "eval_top5": self.top5,
            "eval_loss": self.loss,
            "eval_images": self.images,
            "eval_unreadable": self.unreadable,
        }

    def __add__(self, other: Self) -> Self:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return type(self)(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def top1(self) -> float:
        return self.top1_hits / self.images

    @property
    def top5(self) -> float:
        return self.top5_hits / self.images

    @property
    def loss(self) -> float:
        readable = self.images - self.unreadable
        return self.loss_sum / readable if readable else math.nan

    @property
    def top1_standard_error(self) -> float:
        """Binomial standard error of `top1`: what another sample of images would change."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.images)
