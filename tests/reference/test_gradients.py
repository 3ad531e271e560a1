"""Grad-CAM as pytorch-grad-cam computes it, integrated gradients as captum does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from made_looks import MODELS, build, images_for
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from vitbase.inspection.gradients import grad_cam, integrated_gradients
from vitbase.inspection.overlay import enlarge, scaled

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_is_that_of_pytorch_grad_cam(name: str) -> None:
    model = build(name)
    spec, images, classes = model.spec, images_for(model, 3), torch.tensor([0, 3, 4])

    def reshape(tokens_BND: torch.Tensor) -> torch.Tensor:
        patches_BND = tokens_BND[:, spec.num_prefix :]
        return patches_BND.unflatten(1, spec.grid_hw).permute(0, 3, 1, 2)

    with GradCAM(model, [model.blocks[-1].norm1], reshape) as theirs:
        expected = theirs(images, [ClassifierOutputTarget(int(index)) for index in classes])
    maps, logits = grad_cam(model, images, classes)
    torch.testing.assert_close(logits, model(images))
    assert maps.shape == (3, *spec.grid_hw)
    ours = [scaled(enlarge(scaled(one), spec.image_size)) for one in maps.numpy()]
    assert np.stack(expected).max() > 0.9
    assert np.abs(np.stack(ours) - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_are_those_of_captum(name: str) -> None:
    model = build(name)
    images, classes = images_for(model), torch.tensor([1, 2])
    expected, missing = IntegratedGradients(model).attribute(
        images, target=classes, return_convergence_delta=True
    )
    ours, ours_missing = integrated_gradients(model, images, classes)
    assert expected.abs().max() > 100 * TOLERANCE
    assert (ours - expected).abs().max() < TOLERANCE
    assert (ours_missing - missing).abs().max() < TOLERANCE
