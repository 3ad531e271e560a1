"""Filters, positions and features as components; maps over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_looks import build, images_for

from vitbase.errors import ConfigError
from vitbase.inspection.components import (
    colour_features,
    principal_components,
    read_filters,
    read_positions,
)
from vitbase.inspection.gradients import grad_cam, integrated_gradients
from vitbase.inspection.overlay import enlarge, heat, overlay, scaled


@pytest.mark.parametrize("shape", [(50, 8), (6, 30)])
def test_components_are_those_of_a_singular_value_decomposition(shape):
    samples = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 3
    found = principal_components(samples, 4)
    centred = (samples - samples.mean(0)).double()
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    shares = values.square() / values.square().sum()
    torch.testing.assert_close(found.shares, shares[:4].float())
    cosines = (found.axes.double() * axes[:4]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    at = found.axes.abs().argmax(1)
    assert (found.axes[range(4), at] > 0).all()


def test_filters_of_a_patch_embedding_and_of_convolutions():
    found = read_filters(build())
    assert found["components"].shape == (23, 8, 8, 3)  # 24 filters span so many directions
    assert found["share"].sum() == pytest.approx(1, abs=1e-5)
    for name, shape in (("hybrid", (32, 7, 7, 3)), ("conv", (8, 3, 3, 3))):
        model = build(name)
        filters = read_filters(model)["filters"]
        assert filters.shape == shape
        first = model.stem.root_conv if name == "hybrid" else next(model.stem.parameters())
        weight = getattr(first, "weight", first)
        assert filters[2, 1, 0, 1] == weight[2, 1, 1, 0].item()


@pytest.mark.parametrize("name", ["plain", "rectangular", "registers", "sincos", "gap"])
def test_positions_are_alike_to_themselves(name):
    model = build(name)
    similarity = read_positions(model)["similarity"]
    rows, columns = model.spec.grid_hw
    assert similarity.shape == (rows, columns, rows, columns)
    own = np.einsum("yxyx->yx", similarity)
    np.testing.assert_allclose(own, 1, atol=1e-5)
    np.testing.assert_allclose(similarity, similarity.transpose(2, 3, 0, 1), atol=1e-6)
    first = model.pos_embed[0, model.spec.pos_embed_prefix]
    second = model.pos_embed[0, model.spec.pos_embed_prefix + 1]
    cosine = torch.cosine_similarity(first, second, dim=0).item()
    assert similarity[0, 0, 0, 1] == pytest.approx(cosine, abs=1e-5)


def test_colours_are_those_of_all_images_together():
    tokens = torch.randn(2, 4, 6, 12, generator=torch.Generator().manual_seed(0))
    found = colour_features(tokens)
    assert found["colours"].shape == (2, 4, 6, 3)
    assert found["colours"].min() == 0
    assert found["colours"].max() == 1
    flat = tokens.reshape(-1, 12).numpy()
    expected = (flat - found["mean"]) @ found["axes"].T
    np.testing.assert_allclose(found["projected"].reshape(-1, 3), expected, atol=1e-5)
    order = np.argsort(found["projected"][..., 0], axis=None)
    assert (np.diff(found["colours"][..., 0].ravel()[order]) >= 0).all()


def test_a_single_patch_has_a_colour_too():
    found = colour_features(torch.ones(1, 1, 1, 12))
    assert found["colours"].tolist() == [[[[0, 0, 0]]]]
    assert found["axes"].shape == (3, 12)


def test_overlays_at_any_size():
    image = np.full((32, 48, 3), 200, np.uint8)
    map_hw = np.zeros((4, 6), np.float32)
    map_hw[0, 5] = 2
    for size in (None, (32, 48), (7, 100), (500, 11)):
        laid = overlay(image, map_hw, size)
        assert laid.shape == (*(size or (32, 48)), 3)
        assert laid.dtype == np.uint8
        bright = np.unravel_index(laid.sum(-1).argmax(), laid.shape[:2])
        assert bright[0] < laid.shape[0] / 4
        assert bright[1] > laid.shape[1] * 4 / 6
    grey = overlay(image[..., :1], map_hw, (20, 30))
    assert grey.shape == (20, 30, 3)
    for size in ((0, 5), (5, 1 << 20)):
        with pytest.raises(ConfigError, match="expected 1 to 16384"):
            overlay(image, map_hw, size)


def test_maps_are_scaled_and_enlarged():
    assert scaled(np.array([[2.0, 6.0]])).tolist() == [[0, 1]]
    assert scaled(np.full((2, 2), 3.0)).tolist() == [[0, 0], [0, 0]]
    large = enlarge(np.array([[0, 1], [0, 1]], np.float32), (4, 8))
    assert large.shape == (4, 8)
    assert (large[:, :2] == 0).all()
    assert (large[:, -2:] == 1).all()
    assert heat(np.array([[0.0, 1.0]])).tolist() == [[[0, 0, 4], [252, 255, 164]]]


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    model = build()
    images, classes = images_for(model), torch.tensor([4, 0])
    attributions, missing = integrated_gradients(model, images, classes)
    with torch.no_grad():
        change = model(images) - model(torch.zeros_like(images))
    expected = change[[0, 1], classes]
    assert expected.abs().min() > 0.05
    torch.testing.assert_close(attributions.sum((1, 2, 3)), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(attributions.sum((1, 2, 3)) - missing, expected)


def test_looking_leaves_the_model_as_it_was():
    model = build().train()
    model.cls_token.requires_grad_(False)
    images, classes = torch.randn(1, 3, 32, 32), torch.tensor([2])
    grad_cam(model, images, classes)
    integrated_gradients(model, images, classes, steps=3)
    assert model.training
    assert not model.cls_token.requires_grad
    assert model.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())
