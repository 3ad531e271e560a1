"""Decay groups and the learning rate over time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitbase.model.zoo import build_model, list_variants, variant_spec
from vitbase.options import OptimizerSection, ScheduleSection
from vitbase.runtime import open_runtime
from vitbase.training.optim import build_optimizer, decay_groups
from vitbase.training.schedule import Schedule

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
    # MindSpore's rule includes biases, the class token and positions; kernels are matrices only.
    assert "head.bias" in decay_groups(model, "all_but_norms").decayed
    kernels = decay_groups(model, "kernels").decayed
    assert {name.rsplit(".", 1)[-1] for name in kernels} == {"weight"}


def test_momentum_is_mindspores_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    options = OptimizerSection(optimizer="momentum", lr_init=0.1, momentum=0.9, weight_decay=0.5)
    optimizer = build_optimizer(model, options, open_runtime("CPU"))
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
