"""What is minimised.

Every loss is a sum over images, not a mean: the caller divides once by a number known before the
step, the images of the whole global batch, so that micro-batches and ranks add up exactly. Shape
legend: B images, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vitbase.data.loader import IGNORED_LABEL
from vitbase.data.mix import binarize, one_hot

LossKind = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss of logits against labels or soft targets, see :func:`build_loss`."""

    kind: LossKind
    over_classes: Literal["sum", "mean"]
    class_weights: Tensor | None
    label_smoothing: float
    target_threshold: float | None

    def __call__(
        self, logits_BC: Tensor, targets: Tensor, readable_B: Tensor | None = None
    ) -> Tensor:
        """Return the loss, summed over the batch in float32.

        Args:
          logits_BC: [B, C], any float type.
          targets: int [B], one label each, negative for an image that could not be read; or float
            [B, C], smoothed and mixed already (`data/mix.py` does both).
          readable_B: bool, which images count; None: all that have a target. Soft targets of
            sigmoid need it where images could not be read, as zeros alone are an answer there.
        Returns: scalar float32.
        """
        logits_BC = logits_BC.float()
        if self.kind == "softmax":
            return self._softmax(logits_BC, targets, readable_B)
        if targets.ndim == 1:
            readable_B = targets >= 0 if readable_B is None else readable_B & (targets >= 0)
            targets = one_hot(targets, logits_BC.shape[1], self.label_smoothing)
        if self.target_threshold is not None:
            targets = binarize(targets, self.target_threshold)
        losses_BC = F.binary_cross_entropy_with_logits(
            logits_BC, targets.float(), pos_weight=self.class_weights, reduction="none"
        )
        losses_B = losses_BC.sum(1) if self.over_classes == "sum" else losses_BC.mean(1)
        return _sum_of_readable(losses_B, readable_B)

    def _softmax(self, logits_BC: Tensor, targets: Tensor, readable_B: Tensor | None) -> Tensor:
        if targets.ndim == 1:
            if readable_B is not None:
                targets = targets.masked_fill(~readable_B, IGNORED_LABEL)
            return F.cross_entropy(
                logits_BC,
                targets,
                self.class_weights,
                ignore_index=IGNORED_LABEL,
                label_smoothing=self.label_smoothing,
                reduction="sum",
            )
        # A row of zeros adds nothing by itself.
        losses_B = F.cross_entropy(logits_BC, targets.float(), self.class_weights, reduction="none")
        return _sum_of_readable(losses_B, readable_B)


def build_loss(
    loss: LossKind,
    num_classes: int,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    over_classes: Literal["sum", "mean"] = "sum",
    target_threshold: float | None = None,
) -> Loss:
    """Build a loss.

    Weights change the sum and not what it is divided by, the number of images: torch's own mean
    divides by the weights met in a batch, which micro-batches and ranks cannot add up. Weights
    whose average over the training images is 1, as `data/balance.py` computes them, keep the
    learning rate's meaning.

    Args:
      loss: "softmax": the classes share one answer. "sigmoid": each is a question of its own, for
        images with several labels, and for the recipes that train so.
      num_classes: C.
      class_weights: float [C], on the device of the logits. Softmax: factor of the class's part in
        the loss. Sigmoid: factor of the class's positive answers alone (torch's `pos_weight`).
      label_smoothing: of labels [B]; soft targets have theirs already.
      over_classes: of sigmoid. "sum" as in big_vision (AugReg). "mean" as in DeiT III and timm,
        which is "sum" / C, and takes a learning rate that goes with it.
      target_threshold: of sigmoid: answers above it become 1, the others 0. DeiT III: 0, so that
        both labels of a mixed image count in full.
    Raises: ValueError if the options contradict each other.
    Source: big_vision/utils.py, sigmoid_xent; DeiT III (arXiv 2204.07118) section 3.1.
    """
    if class_weights is not None and class_weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights has shape {tuple(class_weights.shape)} for {num_classes} classes"
        )
    if loss == "softmax" and (target_threshold is not None or over_classes != "sum"):
        raise ValueError("target_threshold and over_classes belong to loss 'sigmoid'")
    if target_threshold is not None and label_smoothing / num_classes > target_threshold:
        raise ValueError(
            f"label_smoothing {label_smoothing:g} lifts every one of {num_classes} classes above "
            f"target_threshold {target_threshold:g}"
        )
    return Loss(loss, over_classes, class_weights, label_smoothing, target_threshold)


def _sum_of_readable(losses_B: Tensor, readable_B: Tensor | None) -> Tensor:
    # Not a product with 0: a loss that is not finite would survive it.
    return (losses_B if readable_B is None else losses_B.masked_fill(~readable_B, 0.0)).sum()
