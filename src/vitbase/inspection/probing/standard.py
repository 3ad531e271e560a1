"""Features, standardised: each counts for what it tells, and not for its size.

They are given chunk by chunk in float64, so that what is held at a time does not grow with their
number. Shape legend: N images, D width of a feature, C classes, B images of a chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

CHUNK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A linear classifier.

    Attributes:
      weight_DC: float64 [D, C], of features as they are.
      bias_C: float64 [C]
      strength: of the regularisation, per training image.
    """

    weight_DC: torch.Tensor  # noqa: N815 (its shape)
    bias_C: torch.Tensor  # noqa: N815
    strength: float

    def classify(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Return the classes of images: [N] int64."""
        parts = [part.double() @ self.weight_DC + self.bias_C for part in features_ND.split(CHUNK)]
        return torch.cat([part.argmax(1) for part in parts])

    def loss(self, features_ND: torch.Tensor, labels_N: torch.Tensor) -> float:
        """Return the sum of the cross-entropies of images."""
        total = 0.0
        for part, of_part in zip(features_ND.split(CHUNK), labels_N.split(CHUNK), strict=True):
            scores_BC = part.double() @ self.weight_DC + self.bias_C
            total += float(torch.nn.functional.cross_entropy(scores_BC, of_part, reduction="sum"))
        return total


@dataclasses.dataclass(frozen=True, eq=False)
class Standard:
    """What standardises features, and these, chunk by chunk in float64."""

    features_ND: torch.Tensor  # noqa: N815
    labels_N: torch.Tensor  # noqa: N815
    mean_D: torch.Tensor  # noqa: N815
    scale_D: torch.Tensor  # noqa: N815

    @classmethod
    def of(cls, features_ND: torch.Tensor, labels_N: torch.Tensor) -> Standard:
        images = len(features_ND)
        parts = features_ND.split(CHUNK)
        mean_D = torch.stack([part.double().sum(0) for part in parts]).sum(0) / images
        squares = [(part.double() - mean_D).square().sum(0) for part in parts]
        spread_D = (torch.stack(squares).sum(0) / images).sqrt()
        # What is the same in all images but for rounding tells nothing: it stays as small as it is.
        smallest = max(1e-6 * float(spread_D.max()), torch.finfo(torch.float64).tiny)
        return cls(features_ND, labels_N, mean_D, 1 / spread_D.clamp(min=smallest))

    def chunks(self, rows_N: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield standardised features [B, D] and their labels [B], of all rows or of some."""
        features, labels = self.features_ND, self.labels_N
        if rows_N is not None:
            features, labels = features[rows_N], labels[rows_N]
        for part, of_part in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            yield (part.double() - self.mean_D) * self.scale_D, of_part

    def linear(self, weight_DC: torch.Tensor, bias_C: torch.Tensor, strength: float) -> Linear:
        """Return the classifier that does to features what these do to standardised ones."""
        scaled_DC = weight_DC * self.scale_D[:, None]
        return Linear(scaled_DC, bias_C - self.mean_D @ scaled_DC, strength)
