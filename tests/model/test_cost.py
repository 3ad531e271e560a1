"""The cost of a model is what torch's FLOP counter counts and autograd keeps, for every variant."""

from __future__ import annotations

import contextlib

import pytest
import torch
from made_looks import MODELS
from torch.utils.flop_counter import FlopCounterMode

from vitbase.model.cost import Flops, Kept, count_flops, count_kept
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import allocate, build_unfilled, list_variants, variant_spec
from vitbase.training.parallel import cast_weights, checkpoint_activations

OTHERS = {
    **MODELS,
    "all rows and the class token": {"pool": "token_gap"},
    "a representation": {"representation_size": 24},
    "sizes that strides do not divide": {"image_size": (45, 75), "patch_size": 15},
    "a stem whose last map makes a token of several pixels": {
        "stem": "conv",
        "conv_layers": ((8, 3, 2), (16, 3, 1)),
        "patch_size": 16,
    },
    "a stem of a root alone": {"stem": "resnet", "resnet_width_factor": 0.5, "patch_size": 16},
    "features": {"num_classes": 0},
}
WHAT_KEEPS = {
    **OTHERS,
    "erf": {"gelu": "erf"},
    "dropout": {"dropout": 0.1},
    "dropout beside LayerScale": {"dropout": 0.1, "layer_scale_init": 0.1, "pool": "gap"},
    "stochastic depth": {"stochastic_depth": 0.1},
    "a norm of channels": {**MODELS["conv"], "conv_norm": "layer"},
    "filters as timm has them": {**MODELS["hybrid"], "resnet_form": "timm"},
    "features of a representation": {"representation_size": 24, "num_classes": 0},
}


def counted(spec: ViTSpec, *, head_only: bool = False) -> Flops:
    if spec.pool == "token":
        spec = spec.replace(pool="gap")  # as large a head, on the mean of all rows
    model = build_unfilled(spec).train()
    if head_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    image = torch.empty(1, spec.in_channels, *spec.image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(image)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return Flops(forward, counter.get_total_flops())


@pytest.mark.parametrize("name", list_variants())
def test_every_variant(name):
    spec = variant_spec(name)
    if spec.depth > 2:  # every block is like the others
        assert count_flops(spec).forward - count_flops(spec.replace(depth=2)).forward == (
            spec.depth - 2
        ) * (
            count_flops(spec.replace(depth=2)).forward - count_flops(spec.replace(depth=1)).forward
        )
        spec = spec.replace(depth=2)
    assert count_flops(spec) == counted(spec)
    assert count_flops(spec, head_only=True) == counted(spec, head_only=True)


@pytest.mark.parametrize("name", OTHERS)
def test_every_family(name):
    spec = variant_spec(
        "testing", **{"image_size": 48, "depth": 2, "width": 16, "num_heads": 2, **OTHERS[name]}
    )
    assert count_flops(spec) == counted(spec)


def kept_by_autograd(
    spec: ViTSpec, count: int, *, head_only: bool = False, half: bool = False, recomputed: int = 0
) -> int:
    """Count the values of the tensors that a real forward pass keeps; each memory once.

    In half precision count bytes, without the weights that were cast.
    """
    model = build_unfilled(spec).train()
    allocate(model)
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        parameter.requires_grad_(not head_only or name.startswith("head."))
    checkpoint_activations(model, recomputed)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held: what is freed would be used again
    values: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
            size = 1 if half else tensor.element_size()
            values[storage.data_ptr()] = storage.nbytes() // size
        return tensor

    with contextlib.ExitStack() as inside:
        if half:
            inside.enter_context(cast_weights(model, torch.bfloat16))
            inside.enter_context(torch.autocast("cpu", torch.bfloat16))
            own |= {w.untyped_storage().data_ptr() for m in model.modules() for w in weights_of(m)}
        inside.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        logits = model(torch.zeros(count, spec.in_channels, *spec.image_size))
    assert logits.requires_grad
    return sum(values.values())


def weights_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [weight for weight in module._parameters.values() if weight is not None]


def in_batches(kept: Kept) -> list[int]:
    return [count * kept.each + kept.once for count in (1, 3)]


@pytest.mark.parametrize("name", list_variants())
def test_what_every_variant_keeps(name):
    row = variant_spec(name)
    patch = row.patch_size
    spec = row.replace(image_size=(2 * patch, 3 * patch), depth=min(row.depth, 2), mlp_dim=16)
    assert [kept_by_autograd(spec, count) for count in (1, 3)] == in_batches(count_kept(spec))
    assert count_kept(row.replace(depth=5)).each - count_kept(row.replace(depth=4)).each == (
        count_kept(row.replace(depth=3)).each - count_kept(row.replace(depth=2)).each
    )


@pytest.mark.parametrize("name", WHAT_KEEPS)
def test_what_every_family_keeps(name):
    small = {"image_size": 48, "depth": 2, "width": 16, "num_heads": 2}
    spec = variant_spec("testing", **{**small, **WHAT_KEEPS[name]})
    assert [kept_by_autograd(spec, count) for count in (1, 3)] == in_batches(count_kept(spec))
    if spec.num_classes:
        head = [kept_by_autograd(spec, count, head_only=True) for count in (1, 3)]
        assert head == in_batches(count_kept(spec, head_only=True))


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_what_half_precision_keeps(pool):
    small = {"image_size": 48, "depth": 3, "width": 64, "num_heads": 2, "pool": pool}
    spec = variant_spec("testing", **small, stochastic_depth=0.1)
    found = kept_by_autograd(spec, 4, half=True)
    assert found == pytest.approx(count_kept(spec).bytes_of(4, half=True), rel=0.05)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_what_is_kept_of_blocks_that_are_computed_again(pool):
    small = {"image_size": 48, "depth": 6, "width": 16, "num_heads": 2, "mlp_dim": 16}
    spec = variant_spec("testing", **{**small, "pool": pool, "num_classes": 20})
    kept = [count_kept(spec, recomputed=n).each for n in range(7)]
    found = [kept_by_autograd(spec, 1, recomputed=n) for n in range(6)]
    assert found[:4] == kept[:4]  # at the end of the forward pass
    assert found[5] <= kept[5] < kept[3]  # when the last of them is there again
    assert kept[6] == kept[5]


def test_what_others_publish():
    # By hand: projection, twelve blocks, head. Others count 17.58, with the norms' own sums.
    assert count_flops(variant_spec("ViT-B_16")).forward == pytest.approx(35.13e9, rel=0.01)
