"""Principal components: of the patch embedding's filters, and of patch features as colours.

Shape legend: M samples, E numbers of each, k components; D width, P patch side, C channels;
I images, h and w rows and columns of patches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitbase.inspection.looked import Array
from vitbase.model.vit import VisionTransformer

MOST_FILTERS = 28
"""Components that are kept: as many as the paper's figure shows."""


class Components(NamedTuple):
    """The directions in which samples differ most, largest first.

    Attributes:
      mean: [E], of the samples.
      axes: [k, E], of length 1, at right angles; the largest entry of each is positive.
      shares: [k], of the variance.
    """

    mean: Tensor
    axes: Tensor
    shares: Tensor


def principal_components(samples_ME: Tensor, most: int) -> Components:
    """Find the principal components of samples, at most so many and no more than there are."""
    values_ME = samples_ME.double()
    mean_E = values_ME.mean(0)
    values_ME = values_ME - mean_E
    if len(values_ME) >= values_ME.shape[1]:  # the smaller of the two products
        variances, vectors = torch.linalg.eigh(values_ME.T @ values_ME)
        axes_kE = vectors.T
    else:
        variances, vectors = torch.linalg.eigh(values_ME @ values_ME.T)
        axes_kE = vectors.T @ values_ME
        axes_kE = axes_kE / axes_kE.norm(dim=1, keepdim=True).clamp_min(1e-30)
    most = min(most, len(variances), max(1, len(values_ME) - 1))  # about their mean they span less
    variances, axes_kE = variances.flip(0)[:most].clamp_min(0), axes_kE.flip(0)[:most]
    at = axes_kE.abs().argmax(1, keepdim=True)
    axes_kE = axes_kE * axes_kE.gather(1, at).sign()
    total = values_ME.square().sum().clamp_min(1e-30)
    return Components(mean_E.float(), axes_kE.float(), (variances / total).float())


def read_filters(model: VisionTransformer) -> dict[str, Array]:
    """Return the first layer's filters as images.

    A patch embedding has as many filters as the tokens are wide: of those, `components`
    [k, P, P, C], principal components, and their `share` [k] of the variance. A stem of
    convolutions has few: `filters` [F, rows, columns, C], those of the first convolution.

    Source: ViT (arXiv 2010.11929) section 4.5 and figure 7, left.
    """
    first = next(part for part in model.stem.modules() if isinstance(part, torch.nn.Conv2d))
    if model.spec.stem != "patch":
        filters_FCHW = first.weight.detach().cpu().float()
        return {"filters": filters_FCHW.permute(0, 2, 3, 1).numpy()}
    weight_DCPP = first.weight.detach().cpu()
    found = principal_components(weight_DCPP.flatten(1), MOST_FILTERS)
    components_kCPP = found.axes.unflatten(1, weight_DCPP.shape[1:])
    return {
        "components": components_kCPP.permute(0, 2, 3, 1).numpy(),
        "share": found.shares.numpy(),
    }


def colour_features(patches_IhwD: Tensor) -> dict[str, Array]:
    """Return the first three principal components of patch features, as colours.

    They are those of all images together, so that a colour means the same in each. Registers and
    the class token are no patches, and take no part.

    Returns: `projected` [I, h, w, 3]; `colours`, the same from 0 (the hundredth smallest of each)
      to 1 (the hundredth largest); `axes` [3, D], `mean` [D] and `share` [3] of the variance.
    Source: DINOv2 (arXiv 2304.07193) section 7.6 and figure 1.
    """
    samples_MD = patches_IhwD.flatten(0, 2).float().cpu()
    mean_D, axes_kD, shares_k = principal_components(samples_MD, 3)
    missing = 3 - len(axes_kD)  # of very few patches there are fewer
    axes_3D = torch.nn.functional.pad(axes_kD, (0, 0, 0, missing))
    shares_3 = torch.nn.functional.pad(shares_k, (0, missing))
    projected_M3 = (samples_MD - mean_D) @ axes_3D.T
    low_3, high_3 = (torch.from_numpy(np.quantile(projected_M3, q, axis=0)) for q in (0.01, 0.99))
    colours_M3 = ((projected_M3 - low_3) / (high_3 - low_3).clamp_min(1e-12)).clamp(0, 1)
    shape = patches_IhwD.shape[:3]
    return {
        "projected": projected_M3.unflatten(0, shape).numpy(),
        "colours": colours_M3.float().unflatten(0, shape).numpy(),
        "axes": axes_3D.numpy(),
        "mean": mean_D.numpy(),
        "share": shares_3.numpy(),
    }


def read_positions(model: VisionTransformer) -> dict[str, Array]:
    """Return how alike the position embeddings of patches are.

    Returns: `similarity` [h, w, h, w], the cosine of each patch's with each other's; the class
      token's is left out.
    Source: ViT (arXiv 2010.11929) section 4.5 and figure 7, middle.
    """
    spec = model.spec
    pos_nD = model.pos_embed.detach()[0, spec.pos_embed_prefix :].float().cpu()
    pos_nD = torch.nn.functional.normalize(pos_nD, dim=1)
    return {"similarity": (pos_nD @ pos_nD.T).reshape(*spec.grid_hw, *spec.grid_hw).numpy()}
