"""Few-shot accuracy: a linear classifier of some images of each class, drawn several times.

Shape legend: N training images, M evaluation images, D width of a feature, R draws.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.evaluation.figures import Z_95, Figure
from vitbase.inspection.probing.squares import fit_squares

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t for two to eleven draws; for more, the normal distribution's value is near enough."""


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Accuracy with some images of each class.

    Attributes:
      shots: images of a class.
      figure: the mean over draws, and its interval over other draws and other evaluation images.
      draws: the accuracy of each.
    """

    shots: int
    figure: Figure
    draws: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"shots": self.shots, **self.figure._asdict(), "draws": [*self.draws]}


def draw_shots(labels_N: NDArray[np.int64], shots: int, seed: int) -> NDArray[np.int64]:
    """Draw images, so many of each class that has any: their indices, ascending.

    Args:
      labels_N: [N] int64; each class that occurs has at least so many images.
      seed: another one draws others; the same one draws, of more shots, those of fewer as well.
    """
    order = np.random.default_rng(seed).permutation(len(labels_N))
    return np.sort(order[place_in_class(labels_N[order]) < shots])


def draw_evenly(labels_N: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw some images, of every class the same share: their indices, ascending."""
    order = np.random.default_rng(seed).permutation(len(labels_N))
    labels = labels_N[order]
    share = (place_in_class(labels) + 0.5) / np.bincount(labels)[labels]
    return np.sort(order[np.argsort(share, kind="stable")[:count]])


def place_in_class(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of its class stand before each image: [N]."""
    order = np.argsort(labels_N, kind="stable")
    sizes = np.bincount(labels_N)
    places = np.empty(len(labels_N), np.int64)
    places[order] = np.arange(len(labels_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places


def measure_shots(
    train_ND: torch.Tensor,
    labels_N: torch.Tensor,
    images_MD: torch.Tensor,
    answers_M: NDArray[np.int64],
    classes: int,
    shots: int,
    draws: int,
    seed: int,
) -> FewShot:
    """Measure few-shot accuracy.

    Args:
      train_ND: [N, D] float32.
      labels_N: [N] int64; each class that occurs has at least `shots` images.
      images_MD: [M, D] float32, the evaluation images.
      answers_M: [M] int64 their labels; -1 for an image that could not be read, which counts as
        wrong.
      classes: how many there are.
      draws: of images, which are the same for all weights.
      seed: of the first draw.
    Source: ViT (arXiv 2010.11929) section 4.4.
    """
    right_RM = np.empty((draws, len(answers_M)), np.bool_)
    for number in range(draws):
        drawn = torch.from_numpy(draw_shots(labels_N.numpy(), shots, seed + number))
        linear = fit_squares(train_ND[drawn], labels_N[drawn], classes)
        right_RM[number] = linear.classify(images_MD).numpy() == answers_M
    return FewShot(shots, _mean_figure(right_RM), tuple(right_RM.mean(axis=1).tolist()))


def _mean_figure(right_RM: NDArray[np.bool_]) -> Figure:
    """Return the mean accuracy of draws with its 95% interval.

    Two variances add up: that of the draws, by Student's t, and that of the evaluation images.
    """
    draws, images = right_RM.shape
    mean = float(right_RM.mean())
    of_images = float(right_RM.mean(axis=0).var()) / images
    half = Z_95 * math.sqrt(of_images)
    if draws > 1:
        t = _T_95[draws - 2] if draws - 2 < len(_T_95) else Z_95
        of_draws = float(right_RM.mean(axis=1).var(ddof=1)) / draws
        half = math.sqrt(half**2 + t**2 * of_draws)
    return Figure(mean, max(0.0, mean - half), min(1.0, mean + half))
