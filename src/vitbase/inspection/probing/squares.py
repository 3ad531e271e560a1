"""A linear classifier in closed form: least squares to targets of -1 and 1, regularised.

Features are standardised, so that each counts for what it tells and not for its size. How strong
the regularisation is, the training images say themselves: of each strength, the error at each image
if that one had been left out is known exactly, without fitting again. One decomposition serves all
strengths; what is held at a time does not grow with the number of images.

Shape legend: N images, D width of a feature, C classes, R rank of the decomposition, B images of a
chunk.
"""

from __future__ import annotations

import torch

from vitbase.inspection.probing.standard import Linear, Standard

_STRENGTHS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-14, 3))
"""Per image, of standardised features."""
_MOST_LEFT_OUT = 20_000
"""Images that are left out in turn; of more, as many at even distances."""
_NOTHING = 1e-12
"""Of the largest eigenvalue: a direction in which images differ by less is rounding."""


def _decompose(standard: Standard) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of the Gram matrix [R], and their directions [D, R]."""
    images, width = standard.features_ND.shape
    if images < width:
        whole_ND = torch.cat([x_BD for x_BD, _ in standard.chunks()])
        _, roots_R, basis_RD = torch.linalg.svd(whole_ND, full_matrices=False)
        values_R, basis_DR = roots_R.square(), basis_RD.T
    else:
        gram_DD = torch.zeros(width, width, dtype=torch.float64)
        for x_BD, _ in standard.chunks():
            gram_DD.addmm_(x_BD.T, x_BD)
        values_R, basis_DR = torch.linalg.eigh(gram_DD)
    kept = values_R > _NOTHING * values_R.max()
    return values_R[kept], basis_DR[:, kept]


def fit_squares(features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int) -> Linear:
    """Fit a linear classifier.

    Args:
      features_ND: [N, D] float32 of at least 2 images.
      labels_N: [N] int64.
      classes: C.
    Returns: the classifier whose squared error at images left out is smallest.
    Source: ViT (arXiv 2010.11929) section 4.4, for the targets; Allen, "The relationship between
      variable selection and data augmentation" (1974), for the errors at images left out.
    """
    images = len(features_ND)
    standard = Standard.of(features_ND, labels_N)
    values_R, basis_DR = _decompose(standard)
    sums_RC = torch.zeros(len(values_R), classes, dtype=torch.float64)
    for x_BD, labels_B in standard.chunks():
        sums_DC = torch.zeros(x_BD.shape[1], classes, dtype=torch.float64)
        sums_RC += 2 * basis_DR.T @ sums_DC.index_add_(1, labels_B, x_BD.T)
    shares_C = torch.bincount(labels_N, minlength=classes).double() / images
    strength = _choose(standard, values_R, basis_DR, sums_RC, 2 * shares_C - 1)
    weight_DC = basis_DR @ (sums_RC / (values_R + images * strength)[:, None])
    return standard.linear(weight_DC, 2 * shares_C - 1, strength)


def _choose(
    standard: Standard,
    values_R: torch.Tensor,
    basis_DR: torch.Tensor,
    sums_RC: torch.Tensor,
    bias_C: torch.Tensor,
) -> float:
    """Return the strength whose squared error at images left out is smallest.

    The error at an image that was left out is the one at it when it was not, divided by what the
    others say of it: 1 - its leverage.
    """
    images = len(standard.features_ND)
    step = -(-images // _MOST_LEFT_OUT)
    rows_N = torch.arange(0, images, step) if step > 1 else None
    errors = [0.0] * len(_STRENGTHS)
    for x_BD, labels_B in standard.chunks(rows_N):
        z_BR = x_BD @ basis_DR
        targets_BC = torch.full((len(z_BR), len(bias_C)), -1.0, dtype=torch.float64)
        targets_BC.scatter_(1, labels_B[:, None], 1.0)
        for place, strength in enumerate(_STRENGTHS):
            shrunk_R = 1 / (values_R + images * strength)
            misses_BC = (z_BR * shrunk_R).mm(sums_RC).add_(bias_C).sub_(targets_BC)
            said_B = 1 - 1 / images - z_BR.square() @ shrunk_R
            errors[place] += float((misses_BC / said_B[:, None]).square().sum())
    return _STRENGTHS[errors.index(min(errors))]
