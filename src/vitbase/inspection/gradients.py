"""What in an image speaks for a class: Grad-CAM, and integrated gradients.

Shape legend: B images, C channels or classes, H and W pixels; N tokens, D width; h and w rows and
columns of patches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitbase.inspection.attention import on_grid
from vitbase.model.vit import VisionTransformer

STEPS = 50
"""Points on the way of integrated gradients, as captum's default."""


def grad_cam(
    model: VisionTransformer, images_BCHW: Tensor, classes_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weigh the features that the last block attends to by their gradient.

    Taken at the first norm of the last block, as pytorch-grad-cam advises for a ViT: behind it the
    class token alone may be left, before it the patches reach the class through keys and values.

    Args:
      images_BCHW: normalised.
      classes_B: the class whose logit is explained, of each image; None: that of the largest.
    Returns: [B, h, w], not negative; the mean over the patches of the gradient weighs a feature.
      And the logits, [B, C].
    Source: Grad-CAM (arXiv 1610.02391) section 3, equations 1 and 2.
    """
    seen: list[Tensor] = []

    def hook(norm: torch.nn.Module, given: object, y_BND: Tensor) -> Tensor:
        # A leaf: the gradient stops here, and the blocks before are run without one.
        seen.append(y_BND.detach().requires_grad_())
        return seen[-1]

    handle = model.blocks[-1].norm1.register_forward_hook(hook)  # type: ignore[union-attr]
    try:
        with _frozen(model), torch.enable_grad():
            logits_BC = model(images_BCHW)
            chosen_B = logits_BC.argmax(1) if classes_B is None else classes_B
            _of_classes(logits_BC, chosen_B).backward()
    finally:
        handle.remove()
    (y_BND,) = seen
    assert y_BND.grad is not None
    patches = slice(model.spec.num_prefix, None)
    weights_BD = y_BND.grad[:, patches].mean(1)
    map_Bn = torch.einsum("bnd,bd->bn", y_BND.detach()[:, patches], weights_BD)
    return on_grid(map_Bn.relu(), model.spec), logits_BC.detach()


def integrated_gradients(
    model: VisionTransformer,
    images_BCHW: Tensor,
    classes_B: Tensor,
    *,
    steps: int = STEPS,
    batch_size: int = 10,
) -> tuple[Tensor, Tensor]:
    """Add up gradients on the straight way from an image without content to the image.

    The way begins at zero after normalisation, the mean colour; its points and weights are those of
    Gauss-Legendre quadrature.

    Args:
      images_BCHW: normalised.
      classes_B: the class whose logit is explained, of each image.
      steps: points; as many passes of each image, forward and backward.
      batch_size: points computed at once.
    Returns: [B, C, H, W], whose sum is the difference of the logit at both ends, and [B], how far
      the sum misses it.
    Source: Axiomatic Attribution for Deep Networks (arXiv 1703.01365) sections 3 and 5.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas_S, weights_S = (
        torch.from_numpy(values).to(images_BCHW) for values in ((nodes + 1) / 2, weights / 2)
    )
    attributions, misses = [], []
    with _frozen(model):
        for image_CHW, chosen in zip(images_BCHW, classes_B, strict=True):
            total_CHW = torch.zeros_like(image_CHW)
            for alphas_s, weights_s in zip(
                alphas_S.split(batch_size), weights_S.split(batch_size), strict=True
            ):
                points = (alphas_s[:, None, None, None] * image_CHW).requires_grad_()
                with torch.enable_grad():
                    logit = _of_classes(model(points), chosen.expand(len(points)))
                (gradient,) = torch.autograd.grad(logit, points)
                total_CHW += torch.einsum("s,schw->chw", weights_s, gradient)
            attribution_CHW = image_CHW * total_CHW
            with torch.no_grad():
                ends_2C = model(torch.stack([torch.zeros_like(image_CHW), image_CHW]))
            start, end = ends_2C[:, chosen]
            attributions.append(attribution_CHW)
            misses.append(attribution_CHW.sum() - (end - start))
    return torch.stack(attributions), torch.stack(misses)


def _of_classes(logits_BC: Tensor, classes_B: Tensor) -> Tensor:
    """Add up one logit of each image."""
    return logits_BC.gather(1, classes_B[:, None]).sum()


@contextlib.contextmanager
def _frozen(model: VisionTransformer) -> Iterator[None]:
    """Inside, parameters get no gradients; afterwards those do that did before."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
