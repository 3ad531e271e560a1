"""A linear classifier whose outputs are probabilities: logistic regression, in a few solutions.

Each solution is a weighted least squares in closed form, whose weights say how undecided the
classifier is at each image; it begins with a strong regularisation, and goes on from there to
weaker ones. Which of them is right is asked of images held out in turn. Least squares alone pull
images that are well inside their class back to its middle: with many images that costs accuracy.

Shape legend: N images, D width of a feature, E = D + 1 with the bias, C classes, B images of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vitbase.inspection.probing.shots import draw_evenly, place_in_class
from vitbase.inspection.probing.standard import Linear, Standard

_STRENGTHS = tuple(10.0**-exponent for exponent in range(1, 6))
"""Per image, of standardised features; the strongest first."""
_SOLUTIONS = 2
"""At each strength; as the next begins where the one before ended, more gain nothing."""
_FOLDS = 3
_WORSE = 1.05
"""A loss so many times the least one ends the search: weaker ones are worse still."""
_ENOUGH = 20_000
"""Images that say which strength is right; of more, as many of every class alike."""
_MORE = 4
"""Solutions on all images, from where those left off."""
_SURE = 1e-3
"""The least weight of an image: those that the classifier is sure of count for something, too."""
_LEAST = 1e-9
"""Of the regularisation, the bias included: what is solved has a solution."""


def fit_logistic(features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int) -> Linear:
    """Fit a linear classifier.

    Args:
      features_ND: [N, D] float32 of at least 2 images.
      labels_N: [N] int64.
      classes: C.
    Returns: the classifier whose loss at images held out in turn is smallest.
    Source: Böhning, "Multinomial logistic regression algorithm" (1992), for the idea of one matrix
      for all classes; the weights, which follow the probabilities, are ours.
    """
    few_N = torch.from_numpy(draw_evenly(labels_N.numpy(), _ENOUGH, seed=0))
    few, few_labels = features_ND[few_N], labels_N[few_N]
    place = _choose(few, few_labels, classes)
    standard = Standard.of(few, few_labels)
    for path_EC in _path(standard, classes, _STRENGTHS[: place + 1]):
        weight_EC = path_EC
    strength = _STRENGTHS[place]
    found = standard.linear(weight_EC[:-1], weight_EC[-1], strength)
    if len(few) == len(features_ND):
        return found
    standard = Standard.of(features_ND, labels_N)
    weight_EC = torch.cat(
        [
            found.weight_DC / standard.scale_D[:, None],
            (found.bias_C + standard.mean_D @ found.weight_DC)[None],
        ]
    )
    for _ in range(_MORE):
        weight_EC = _solve(standard, weight_EC, strength)
    return standard.linear(weight_EC[:-1], weight_EC[-1], strength)


def _choose(features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int) -> int:
    """Return the place of the strength whose loss at images held out in turn is smallest."""
    order = np.random.default_rng(0).permutation(len(labels_N))
    fold_N = np.empty(len(labels_N), np.int64)  # every class is dealt out alike
    fold_N[order] = place_in_class(labels_N[order].numpy()) % _FOLDS
    losses = [0.0] * len(_STRENGTHS)
    tried = len(_STRENGTHS)
    for fold in range(_FOLDS):
        held_N = torch.from_numpy(fold_N == fold)
        if held_N.all() or not held_N.any():
            continue
        standard = Standard.of(features_ND[~held_N], labels_N[~held_N])
        best = float("inf")
        for place, weight_EC in enumerate(_path(standard, classes, _STRENGTHS[:tried])):
            linear = standard.linear(weight_EC[:-1], weight_EC[-1], _STRENGTHS[place])
            loss = linear.loss(features_ND[held_N], labels_N[held_N])
            losses[place] += loss
            best = min(best, loss)
            if loss > _WORSE * best:
                tried = place + 1
                break
    return min(range(tried), key=losses.__getitem__)


def _path(standard: Standard, classes: int, strengths: tuple[float, ...]) -> Iterator[torch.Tensor]:
    """Yield the weights [E, C] for each strength, of which each begins where the last one ended."""
    width = standard.features_ND.shape[1]
    weight_EC = torch.zeros(width + 1, classes, dtype=torch.float64)
    for strength in strengths:
        for _ in range(_SOLUTIONS):
            weight_EC = _solve(standard, weight_EC, strength)
        yield weight_EC


def _solve(standard: Standard, weight_EC: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the weights of the least squares that stand for the loss at some weights.

    An image's weight is twice the largest p(1-p) of its classes: no direction of the loss is bent
    more than that (Gershgorin's bound of the covariance of the classes).
    """
    images, width = standard.features_ND.shape
    gram_EE = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    sums_EC = torch.zeros_like(weight_EC)
    for x_BD, labels_B in standard.chunks():
        x_BE = torch.cat([x_BD, x_BD.new_ones(len(x_BD), 1)], dim=1)
        p_BC = (x_BE @ weight_EC).softmax(1)
        curve_B = 2 * (p_BC - p_BC.square()).amax(1).clamp(min=_SURE / 2)
        weighted_BE = x_BE * curve_B[:, None]
        gram_EE.addmm_(weighted_BE.T, x_BE)
        p_BC[torch.arange(len(p_BC)), labels_B] -= 1
        sums_EC.addmm_(x_BE.T, p_BC, alpha=-1)
    # With the working targets x W - (p - y) / w, the sums are those of x w times them.
    sums_EC += gram_EE @ weight_EC
    penalty_E = torch.full((width + 1,), images * (strength + _LEAST), dtype=torch.float64)
    penalty_E[-1] = images * _LEAST
    gram_EE.diagonal().add_(penalty_E)
    return torch.cholesky_solve(sums_EC, torch.linalg.cholesky(gram_EE))
