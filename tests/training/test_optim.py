"""Decay groups and the learning rate over time."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay

from vitbase.config.learning import OptimizerSection, ScheduleSection
from vitbase.errors import ConfigError
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_model, list_variants, variant_spec
from vitbase.runtime import local_runtime
from vitbase.training.lamb import Lamb
from vitbase.training.optim import (
    build_optimizer,
    build_update_rule,
    decay_groups,
    parameter_groups,
    set_learning_rate,
)
from vitbase.training.schedule import Schedule
from vitbase.weights.origins.dialect import Dialect, their_name
from vitbase.weights.origins.timm import TIMM, TIMM_POOLED

KINDS = ("constant", "cosine", "linear")


@pytest.mark.parametrize("variant", list_variants())
def test_every_parameter_is_in_one_group_and_norms_never_decay(variant):
    with torch.device("meta"):
        model = build_model(variant_spec(variant, num_classes=10))
    names = {name for name, _ in model.named_parameters()}
    for rule in ("all_but_norms", "kernels"):
        groups = decay_groups(model, rule)
        assert set(groups.decayed) | set(groups.kept) == names
        assert not set(groups.decayed) & set(groups.kept)
        assert not [name for name in groups.decayed if "norm" in name or "scale" in name]
        assert "head.weight" in groups.decayed
    assert set(decay_groups(model, "all").decayed) == names
    assert not decay_groups(model, "all").kept
    # MindSpore's rule includes biases, the class token and positions; kernels are matrices only.
    assert "head.bias" in decay_groups(model, "all_but_norms").decayed
    kernels = decay_groups(model, "kernels").decayed
    assert {name.rsplit(".", 1)[-1] for name in kernels} == {"weight"}


def tiny(**changes: object) -> VisionTransformer:
    with torch.device("meta"):
        return build_model(variant_spec("Ti/16", num_classes=7, **changes))


@pytest.mark.parametrize(
    ("ours", "theirs", "dialect"),
    [
        ({}, {}, TIMM),
        ({"pool": "gap_norm"}, {"global_pool": "avg"}, TIMM_POOLED),
        (
            {"layer_scale_init": 1e-4, "num_registers": 4},
            {"init_values": 1e-4, "reg_tokens": 4},
            TIMM,
        ),
    ],
)
def test_layer_decay_agrees_with_timm(ours, theirs, dialect: Dialect):
    model = tiny(**ours)
    with torch.device("meta"):
        other = timm.create_model("vit_tiny_patch16_224", num_classes=7, **theirs)
    names = {id(parameter): name for name, parameter in other.named_parameters()}
    expected = {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in param_groups_layer_decay(
            other, weight_decay=0.05, no_weight_decay_list=other.no_weight_decay(), layer_decay=0.65
        )
        for parameter in group["params"]
    }
    if dialect is TIMM:
        # timm counts this norm to the last block; BEiT and MAE, whom both follow, to the head.
        for name in ("norm.weight", "norm.bias"):
            assert expected[name] == (0.0, 0.65)
            expected[name] = (0.0, 1.0)
    groups = parameter_groups(model, weight_decay=0.05, decay_on="kernels", layer_decay=0.65)
    got = {
        their_name(dialect, name): (group.weight_decay, group.lr_scale)
        for group in groups
        for name in group.names
    }
    assert got == expected
    assert len(groups) == 2 * 14  # tokens, 12 blocks, head
    assert groups[0].lr_scale == pytest.approx(0.65**13)
    assert [group.lr_scale for group in groups] == sorted(group.lr_scale for group in groups)


def test_frozen_parameters_are_left_out_and_keep_the_depth_of_the_rest():
    model = tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("head.", "blocks.3.norm1.")))
    groups = parameter_groups(model, weight_decay=0.1, decay_on="kernels", layer_decay=0.5)
    assert [(group.names, group.weight_decay, group.lr_scale) for group in groups] == [
        (("blocks.3.norm1.weight", "blocks.3.norm1.bias"), 0.0, 0.5**9),
        (("head.weight",), 0.1, 1.0),
        (("head.bias",), 0.0, 1.0),
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(model, OptimizerSection(), local_runtime("CPU"))


def test_without_layer_decay_there_are_two_groups_with_the_whole_rate():
    groups = parameter_groups(tiny(), weight_decay=0.1, decay_on="kernels")
    assert [(group.weight_decay, group.lr_scale) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("rule", ["momentum", "adamw", "lamb", "muon"])
def test_each_depth_moves_at_its_share_of_the_rate(rule):
    def steps_of(layer_decay: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build_model(
            variant_spec("testing", num_classes=5, image_size=16, in_channels=1, pool="gap")
        )
        groups = parameter_groups(
            model, weight_decay=0.1, decay_on="kernels", layer_decay=layer_decay
        )
        optimizer = build_update_rule(rule, model, groups, lr=9.0)
        set_learning_rate(optimizer, 1e-3)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    whole, scaled = steps_of(1.0), steps_of(0.5)
    for name, share in (
        ("stem.proj.weight", 0.25),
        ("blocks.0.mlp.fc1.bias", 0.5),
        ("norm.bias", 1),
    ):
        torch.testing.assert_close(scaled[name], share * whole[name], rtol=2e-3, atol=1e-7)


def test_an_optimizer_begins_at_its_peak_and_lamb_is_ours():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    groups = parameter_groups(model, weight_decay=0.1, decay_on="all", layer_decay=0.5)
    optimizer = build_update_rule("lamb", model, groups, lr=0.3, eps=1e-6)
    assert isinstance(optimizer, Lamb)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["eps"], group["names"]) == (0.3, 1e-6, ["0.weight", "0.bias"])


def test_momentum_is_mindspores_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    options = OptimizerSection(optimizer="momentum", lr_init=0.1, momentum=0.9, weight_decay=0.5)
    optimizer = build_optimizer(model, options, local_runtime("CPU"))
    weight, velocity = 1.0, 0.0
    for gradient in (1.0, -2.0, 0.5):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.9 * velocity + (gradient + 0.5 * weight)
        weight -= 0.1 * velocity
        assert model.weight.item() == pytest.approx(weight, abs=1e-6)


@given(
    kind=st.sampled_from(KINDS),
    epochs=st.integers(1, 50),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 49),
)
def test_every_schedule_rises_to_the_peak_and_never_again(kind, epochs, steps, warmup):
    warmup = min(warmup, epochs - 0.5)
    options = ScheduleSection(epoch_size=epochs, schedule=kind, warmup_epochs=warmup)
    schedule = Schedule.of(0.3, options, steps)
    rates = [schedule.at(step) for step in range(schedule.total_steps)]
    assert len(rates) == epochs * steps
    assert all(0 <= rate <= 0.3 for rate in rates)
    rising, falling = rates[: schedule.warmup_steps], rates[schedule.warmup_steps :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(0.3)
    if kind != "constant" and len(falling) > 1:
        # One step before zero: the schedule ends with the run, neither before nor after it.
        left = 1 / len(falling)
        expected = left if kind == "linear" else 0.5 * (1 - math.cos(math.pi * left))
        assert falling[-1] == pytest.approx(0.3 * expected)
