"""Attention recomputed beside the fused model: right for every kind of model."""

from __future__ import annotations

import math

import pytest
import torch
from made_looks import MODELS, build, images_for

import vitbase
from vitbase.errors import ConfigError
from vitbase.inspection.attention import attending, recompute_attention
from vitbase.inspection.distance import mean_distance, patch_distances
from vitbase.inspection.passes import pass_through
from vitbase.inspection.rollout import roll

each_model = pytest.mark.parametrize("name", MODELS)


@torch.no_grad()
def received(model, images, forward):
    """What each block's attention gets and gives in a forward pass."""
    seen = []
    handles = [
        block.attn.register_forward_hook(lambda _, given, y: seen.append((given[0], y)))
        for block in model.blocks
    ]
    forward(images)
    for handle in handles:
        handle.remove()
    return seen


def outputs(attention, x_BND):
    """The block's output by recomputed probabilities, times values."""
    p_BHNN = recompute_attention(attention, x_BND)
    v_BND = attention.qkv(x_BND)[..., 2 * x_BND.shape[-1] :]
    v_BHNK = v_BND.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return attention.proj((p_BHNN @ v_BHNK).transpose(1, 2).flatten(2))


@each_model
@torch.no_grad()
def test_probabilities_times_values_are_the_blocks_output(name):
    model = build(name)
    images = images_for(model)
    for forward in (model, model.forward_tokens):
        seen = received(model, images, forward)
        assert len(seen) == model.spec.depth
        for block, (x_BND, y_BND) in zip(model.blocks, seen, strict=True):
            assert x_BND.shape[1] == model.spec.num_tokens
            ours = outputs(block.attn, x_BND)[:, : y_BND.shape[1]]
            torch.testing.assert_close(ours, y_BND, rtol=1e-5, atol=1e-5)
    rows = received(model, images, model)[-1][1].shape[1]
    assert rows == (1 if model.spec.pool == "token" else model.spec.num_tokens)


@torch.no_grad()
def test_each_block_and_image_is_visited_with_rows_that_sum_to_one():
    model = build("registers")
    visits = []

    def visit(block, p_HNN):
        torch.testing.assert_close(p_HNN.sum(-1), torch.ones(3, 21))
        visits.append(block)

    with attending(model, visit):
        model.forward_tokens(images_for(model, 2))
    assert visits == [0, 0, 1, 1, 2, 2]
    model(images_for(model))  # the hooks are gone
    assert len(visits) == 6


def test_more_tokens_than_fit_are_refused():
    with torch.device("meta"):
        model = vitbase.create_model("B/16", image_size=2048)
    with pytest.raises(ConfigError, match=r"16,385 tokens at 2048x2048 .* smaller --image_size"):
        attending(model, lambda block, p_HNN: None).__enter__()


def test_distance_of_uniform_and_of_own_attention():
    spec = build("rectangular").spec
    distances = patch_distances(spec)
    assert spec.grid_hw == (4, 6)
    assert distances[0, 23].item() == pytest.approx(8 * math.hypot(3, 5))
    assert distances[0, 6].item() == 8  # one row down
    tokens = 1 + 24
    own = torch.eye(tokens).expand(2, -1, -1)
    assert mean_distance(own, distances, 1).tolist() == [0, 0]
    # Half of it goes to the class token, which stands nowhere: the other half counts whole.
    uniform = torch.full((1, tokens, tokens), 0.5 / 24)
    uniform[:, :, 0] = 0.5
    expected = distances.mean().item()
    assert mean_distance(uniform, distances, 1).item() == pytest.approx(expected, rel=1e-5)


def test_rollout_by_hand():
    first = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    rolled = roll(None, first)
    torch.testing.assert_close(rolled, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    second = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    step = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    torch.testing.assert_close(roll(rolled, second), step @ rolled)


@each_model
def test_one_pass_finds_all_of_it_with_the_shapes_told(name):
    model = build(name)
    spec = model.spec
    found = pass_through(
        model, images_for(model), {"attention", "distance", "rollout", "norms", "features"}
    )
    grid, blocks, heads, prefix = spec.grid_hw, spec.depth, spec.num_heads, spec.num_prefix
    shapes = {
        kind: {n: tuple(v.shape) for n, v in values.items()} for kind, values in found.items()
    }
    assert shapes == {
        "attention": {"maps": (2, blocks, heads, *grid), "prefix": (2, blocks, heads, prefix)},
        "distance": {"pixels": (2, blocks, heads)},
        "rollout": {"maps": (2, *grid)},
        "norms": {"patches": (2, blocks, *grid), "prefix": (2, blocks, prefix)},
        "features": {"tokens": (2, *grid, spec.width)},
    }
    attention = found["attention"]
    totals = attention["maps"].sum((-1, -2)) + attention["prefix"].sum(-1)
    torch.testing.assert_close(totals, torch.ones(2, blocks, heads))
    assert (found["rollout"]["maps"] > 0).all()
    assert (found["rollout"]["maps"].sum((1, 2)) <= 1 + 1e-5).all()


@torch.no_grad()
def test_maps_are_the_class_tokens_row_and_without_one_the_mean_of_the_patches():
    for name, expected in (("registers", lambda p: p[:, :, 0]), ("gap", lambda p: p.mean(2))):
        model = build(name)
        images = images_for(model)
        seen = received(model, images, model.forward_tokens)
        p_BHNN = recompute_attention(model.blocks[1].attn, seen[1][0])
        row = expected(p_BHNN)[..., model.spec.num_prefix :].unflatten(-1, model.spec.grid_hw)
        found = pass_through(model, images, {"attention"})
        torch.testing.assert_close(found["attention"]["maps"][:, 1], row)


@torch.no_grad()
def test_norms_are_those_after_each_block():
    model = build("registers")
    images = images_for(model)
    found = pass_through(model, images, {"norms"})["norms"]
    x_BND = model._embed(images)
    for number, block in enumerate(model.blocks):
        x_BND = block(x_BND)
        lengths = x_BND.norm(dim=-1)
        torch.testing.assert_close(found["prefix"][:, number], lengths[:, :5])
        torch.testing.assert_close(found["patches"][:, number].flatten(1), lengths[:, 5:])
