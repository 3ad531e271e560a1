"""Accuracy and loss as sums: add numerators and denominators, divide once.

Sums of batches add up, and so do sums of ranks (they can be pickled). Derived figures are
fractions; `to_row` gives them their names in `metrics.jsonl`, `describe` makes a line of the log,
in which classes go by the names that it is given.
Shape legend: B images of a batch, N all images, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitbase.data.balance import are_unequal
from vitbase.sources.source import name_class


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class RecallSums:
    """Per class: images, and those recognised. For classes of unequal size, beside accuracy."""

    hits_per_class: NDArray[np.int64] = dataclasses.field(default_factory=_no_counts)
    images_per_class: NDArray[np.int64] = dataclasses.field(default_factory=_no_counts)

    @classmethod
    def of(cls, hits_B: torch.Tensor, labels_B: torch.Tensor, classes: int) -> Self:
        """Count one batch.

        Args:
          hits_B: [B] bool, whether the image was recognised; one that cannot be read was not.
          labels_B: [B] int64 in [0, classes).
        """
        return cls(
            labels_B[hits_B].bincount(minlength=classes).numpy(force=True),
            labels_B.bincount(minlength=classes).numpy(force=True),
        )

    def __add__(self, other: Self) -> Self:
        if not len(self.images_per_class) or not len(other.images_per_class):
            return other if not len(self.images_per_class) else self
        return type(self)(
            self.hits_per_class + other.hits_per_class,
            self.images_per_class + other.images_per_class,
        )

    @property
    def recall_per_class(self) -> NDArray[np.float64]:
        """Share of each class's images that were recognised; nan for a class without any."""
        return _divide(self.hits_per_class, self.images_per_class)

    @property
    def is_unequal(self) -> bool:
        """Whether some class has more than twice the images of another."""
        return are_unequal(self.images_per_class)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images: what `top1` would be, were all as large."""
        return _mean_of_defined(self.recall_per_class)

    def to_row(self) -> dict[str, Any]:
        return {"eval_balanced_accuracy": self.balanced_accuracy}

    def describe(self, class_names: Sequence[str] = ()) -> str:
        if not self.images_per_class.any():
            return "no image of any class"
        return (
            f"balanced accuracy {self.balanced_accuracy:.2%} over "
            f"{np.count_nonzero(self.images_per_class)} classes, "
            f"{describe_least(self.recall_per_class, class_names)}"
        )


@dataclasses.dataclass(frozen=True)
class ClassificationSums:
    """Counts over evaluated images; two of them add up. Derived figures are fractions."""

    images: int = 0
    top1_hits: int = 0
    top5_hits: int = 0
    loss_sum: float = 0.0
    unreadable: int = 0
    recall: RecallSums = dataclasses.field(default_factory=RecallSums, compare=False)

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
        top_BK = rank_classes(logits_BC, 5)
        hits_BK = (top_BK == labels_B[:, None]) & readable_B[:, None]
        losses_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        return cls(
            images=labels_B.numel(),
            top1_hits=int(hits_BK[:, 0].sum()),
            top5_hits=int(hits_BK.sum()),
            loss_sum=float(losses_B[readable_B].sum(dtype=torch.float64)),
            unreadable=int((~readable_B).sum()),
            recall=RecallSums.of(hits_BK[:, 0], labels_B, logits_BC.shape[1]),
        )

    def __add__(self, other: Self) -> Self:
        names = [field.name for field in dataclasses.fields(self)]
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def score(self) -> tuple[str, float]:
        """What tells two checkpoints apart: its name in `metrics.jsonl`, and how high it is."""
        return "eval_top1", self.top1

    @property
    def top1(self) -> float:
        return self.top1_hits / self.images

    @property
    def top5(self) -> float:
        return self.top5_hits / self.images

    @property
    def top5_tells(self) -> bool:
        """Whether there are more than five classes; of fewer, `top5` is always all."""
        classes = len(self.recall.images_per_class)  # 0: not counted by class
        return classes == 0 or classes > 5

    @property
    def loss(self) -> float:
        readable = self.images - self.unreadable
        return self.loss_sum / readable if readable else math.nan

    @property
    def top1_standard_error(self) -> float:
        """Binomial standard error of `top1`: what another sample of images would change."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.images)

    def to_row(self) -> dict[str, Any]:
        return {
            "eval_top1": self.top1,
            **({"eval_top5": self.top5} if self.top5_tells else {}),
            "eval_loss": self.loss,
            **(self.recall.to_row() if len(self.recall.images_per_class) else {}),
            "eval_images": self.images,
            "eval_unreadable": self.unreadable,
        }

    def describe(self, class_names: Sequence[str] = ()) -> str:
        return (
            f"{describe_images(self.images, self.unreadable)}: "
            f"top-1 {self.top1:.2%} (standard error {self.top1_standard_error:.2%})  "
            + (f"top-5 {self.top5:.2%}  " if self.top5_tells else "")
            + f"loss {self.loss:.4f}"
            + (f"  {self.recall.describe(class_names)}" if self.recall.is_unequal else "")
        )


@dataclasses.dataclass(frozen=True, eq=False)
class MultiLabelSums:
    """What a model says of images with any number of labels each.

    Average precision depends on the order of all images, so their scores are kept: five bytes for
    each image and class. Parts are kept as they come, and put together once.
    """

    scores: tuple[NDArray[np.float32], ...] = ()  # logits [B, C]; -inf for an unreadable image
    answers: tuple[NDArray[np.bool_], ...] = ()  # labels [B, C]
    loss_sum: float = 0.0
    unreadable: int = 0

    @classmethod
    def of(cls, logits_BC: torch.Tensor, labels_BC: torch.Tensor, readable_B: torch.Tensor) -> Self:
        """Keep one batch.

        An unreadable image has no label predicted, comes last in every class's order, and is left
        out of the loss.

        Args:
          logits_BC: [B, C], any float type.
          labels_BC: [B, C] of 0 and 1.
          readable_B: [B] bool.
        """
        logits_BC = logits_BC.float()
        losses_BC = F.binary_cross_entropy_with_logits(
            logits_BC, labels_BC.float(), reduction="none"
        )
        scores_BC = logits_BC.masked_fill(~readable_B[:, None], -math.inf)
        return cls(
            scores=(scores_BC.numpy(force=True),),
            answers=((labels_BC > 0).numpy(force=True),),
            loss_sum=float(losses_BC[readable_B].sum(dtype=torch.float64)),
            unreadable=int((~readable_B).sum()),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.scores + other.scores,
            self.answers + other.answers,
            self.loss_sum + other.loss_sum,
            self.unreadable + other.unreadable,
        )

    @property
    def score(self) -> tuple[str, float]:
        """What tells two checkpoints apart: its name in `metrics.jsonl`, and how high it is."""
        return "eval_map", self.mean_average_precision

    @property
    def images(self) -> int:
        return sum(len(part) for part in self.answers)

    @property
    def loss(self) -> float:
        """Binary cross-entropy, averaged over readable images and classes."""
        readable = self.images - self.unreadable
        return self.loss_sum / (readable * self.answers[0].shape[1]) if readable else math.nan

    @functools.cached_property
    def average_precision_per_class(self) -> NDArray[np.float64]:
        """Average precision of each class; nan for a class that no image has."""
        scores_NC, answers_NC = np.concatenate(self.scores), np.concatenate(self.answers)
        pairs = zip(scores_NC.T, answers_NC.T, strict=True)
        return np.array([average_precision(scores_N, answers_N) for scores_N, answers_N in pairs])

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that at least one image has."""
        return _mean_of_defined(self.average_precision_per_class)

    @functools.cached_property
    def _answered(self) -> NDArray[np.int64]:
        """Per class [3, C]: labels predicted rightly, predicted wrongly, missed."""
        counts = np.zeros((3, self.answers[0].shape[1]), dtype=np.int64)
        for scores_BC, answers_BC in zip(self.scores, self.answers, strict=True):
            said_BC = scores_BC > 0  # a probability above 0.5
            counts[0] += (said_BC & answers_BC).sum(axis=0)
            counts[1] += (said_BC & ~answers_BC).sum(axis=0)
            counts[2] += (~said_BC & answers_BC).sum(axis=0)
        return counts

    @property
    def f1_micro(self) -> float:
        """F1 at probability 0.5 of all answers together; nan if nothing was there or predicted."""
        right, wrong, missed = self._answered.sum(axis=1)
        return float(_divide(2 * right, 2 * right + wrong + missed))

    @property
    def f1_macro(self) -> float:
        """Mean F1 at probability 0.5 of the classes that some image has or was given."""
        right, wrong, missed = self._answered
        return _mean_of_defined(_divide(2 * right, 2 * right + wrong + missed))

    def to_row(self) -> dict[str, Any]:
        return {
            "eval_map": self.mean_average_precision,
            "eval_f1_micro": self.f1_micro,
            "eval_f1_macro": self.f1_macro,
            "eval_loss": self.loss,
            "eval_images": self.images,
            "eval_unreadable": self.unreadable,
        }

    def describe(self, class_names: Sequence[str] = ()) -> str:
        precisions = self.average_precision_per_class
        defined = np.count_nonzero(~np.isnan(precisions))
        least = f", {describe_least(precisions, class_names)}" if defined > 1 else ""
        return (
            f"{describe_images(self.images, self.unreadable)}: "
            f"mAP {self.mean_average_precision:.2%} over {defined} classes{least}  "
            f"F1 micro {self.f1_micro:.2%} macro {self.f1_macro:.2%}  loss {self.loss:.4f}"
        )


def rank_classes(logits_BC: torch.Tensor, most: int) -> torch.Tensor:
    """Return the most probable classes, best first; of equal ones the first in the model's order.

    `topk` alone takes any of equal ones: on another device, or in another batch, others.

    Args:
      logits_BC: [B, C]
      most: K, or C where that is less.
    Returns: int64 [B, K].
    """
    kept = min(most, logits_BC.shape[1])
    values_BK, top_BK = logits_BC.topk(min(kept + 1, logits_BC.shape[1]), dim=1)
    unsure_B = (values_BK[:, 1:] == values_BK[:, :-1]).any(dim=1) | values_BK.isnan().any(dim=1)
    top_BK = top_BK[:, :kept]
    if unsure_B.any():
        ranked = logits_BC[unsure_B].sort(dim=1, descending=True, stable=True).indices
        top_BK[unsure_B] = ranked[:, :kept]
    return top_BK


def average_precision(scores_N: NDArray[np.float32], answers_N: NDArray[np.bool_]) -> float:
    """Return the precision at each threshold, weighted by the recall that it adds.

    Equal scores share a threshold, so the order of the images changes nothing.

    Args:
      scores_N: the higher, the surer.
      answers_N: whether the image has the label.
    Returns: in [0, 1]; nan if no image has the label.
    Source: scikit-learn's `average_precision_score`, without interpolation.
    """
    positives = int(answers_N.sum())
    if positives == 0:
        return math.nan
    order = np.argsort(-scores_N, kind="stable")
    ordered_N = scores_N[order]
    hits_N = answers_N[order].cumsum()
    ends_T = np.append(np.flatnonzero(ordered_N[1:] != ordered_N[:-1]), len(order) - 1)
    hits_T = hits_N[ends_T]
    added_T = np.diff(hits_T, prepend=0)
    return float((hits_T / (ends_T + 1) * added_T).sum() / positives)


def _divide(numerators: NDArray[np.int64], denominators: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide elementwise; 0 / 0 is nan, and no warning."""
    quotients: NDArray[np.float64] = numerators / np.maximum(denominators, 1)
    return np.where(denominators == 0, math.nan, quotients)


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def describe_least(values: NDArray[np.float64], class_names: Sequence[str]) -> str:
    """Name the class of the least value [C], of those that have any."""
    worst = int(np.nanargmin(values))
    return f"least {values[worst]:.2%} of class {name_class(class_names, worst)}"


def describe_images(images: int, unreadable: int) -> str:
    """Say that each image was evaluated once, and how many could not be read."""
    wrong = f", {unreadable} unreadable counted as wrong" if unreadable else ""
    return f"evaluated {images} of {images}, each once{wrong}"
