"""The average of the weights: its formula, its place in the model, its way through a checkpoint."""

from __future__ import annotations

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vitbase
from vitbase.errors import CheckpointError
from vitbase.training.ema import ExponentialMovingAverage


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=5, image_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def walk(model: nn.Module, step: int) -> None:
    """Move every trainable parameter, as an update would."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("every_steps", [1, 4])
def test_the_average_is_its_formula(model, every_steps):
    average = ExponentialMovingAverage(model, decay=0.9, every_steps=every_steps)
    expected = {name: value.double() for name, value in copy_of(model).items()}
    for step in range(1, 13):
        walk(model, step)
        average.update(step)
        if step % every_steps == 0:
            for name, parameter in model.named_parameters():
                expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
    for name, value in average.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_agrees_with_timm(model):
    ours = ExponentialMovingAverage(model, decay=0.99)
    theirs = ModelEmaV3(model, decay=0.99)
    for step in range(1, 9):
        walk(model, step)
        ours.update(step)
        theirs.update(model)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(ours.state_dict()[name], parameter, rtol=1e-6, atol=1e-6)


def test_agrees_with_torchs_own_as_torchvision_uses_it(model):
    # It averages every 4th update here, and copies during 8 updates of warm-up and once after.
    ours = ExponentialMovingAverage(model, decay=0.9, every_steps=4, start_step=12)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(1, 33):
        walk(model, step)
        ours.update(step)
        if step % 4 == 0:
            theirs.update_parameters(model)
            if step <= 8:
                theirs.n_averaged.fill_(0)
        if step == 12:
            for name, parameter in model.named_parameters():
                assert torch.equal(ours.state_dict()[name], parameter)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(ours.state_dict()[name], parameter, rtol=1e-6, atol=1e-6)


def test_frozen_parameters_have_no_average_and_stay(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    average = ExponentialMovingAverage(model, decay=0.5)
    assert set(average.state_dict()) == {"head.weight", "head.bias"}
    before = copy_of(model)
    walk(model, 1)
    average.update(1)
    with average.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) != name.startswith("head.")


def test_the_model_computes_with_the_average_and_gets_its_weights_back(model):
    average = ExponentialMovingAverage(model, decay=0.5)
    walk(model, 1)
    average.update(1)
    own, images = copy_of(model), torch.randn(2, 3, 32, 32)
    model.eval()
    with torch.inference_mode():
        before = model(images)
    with average.applied():
        averaged = copy_of(model)
        with torch.inference_mode():
            assert not torch.equal(model(images), before)
    for name, value in average.state_dict().items():
        assert torch.equal(averaged[name], value)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    with torch.inference_mode():
        assert torch.equal(model(images), before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.requires_grad


def test_what_would_spoil_the_average_is_refused(model):
    average = ExponentialMovingAverage(model, decay=0.5)
    with average.applied():
        with pytest.raises(RuntimeError, match="average the average"):
            average.update(1)
        with pytest.raises(RuntimeError, match="already"), average.applied():
            pass
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ExponentialMovingAverage(model, decay=1.0)
    with pytest.raises(ValueError, match="every_steps"):
        ExponentialMovingAverage(model, decay=0.5, every_steps=0)


def test_a_half_precision_model_has_a_float32_average(model):
    model.bfloat16()
    average = ExponentialMovingAverage(model, decay=0.999)
    start = {name: value.clone() for name, value in average.state_dict().items()}
    with torch.no_grad():
        model.head.weight.add_(1.0)
    average.update(1)
    moved = average.state_dict()["head.weight"] - start["head.weight"]
    # A thousandth would be lost in bfloat16's eight bits.
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0.05, atol=1e-5)
    with average.applied():
        assert model.head.weight.dtype == torch.bfloat16


def test_an_average_restored_goes_on_as_if_never_stopped(model):
    whole = ExponentialMovingAverage(model, decay=0.9, every_steps=2, start_step=2)
    half = ExponentialMovingAverage(model, decay=0.9, every_steps=2, start_step=2)
    for step in range(1, 10):
        walk(model, step)
        whole.update(step)
        half.update(step)
        if step == 5:
            stored = {name: value.clone() for name, value in half.state_dict().items()}
            half = ExponentialMovingAverage(model, decay=0.9, every_steps=2, start_step=2)
            half.load_state_dict(stored)
    for name, value in whole.state_dict().items():
        assert torch.equal(half.state_dict()[name], value)


def test_averages_of_another_model_are_refused_and_named(model):
    average = ExponentialMovingAverage(model, decay=0.9)
    state = average.state_dict()
    with pytest.raises(CheckpointError, match=r"has no average for 'head\.bias'"):
        average.load_state_dict({n: t for n, t in state.items() if n != "head.bias"})
    with pytest.raises(CheckpointError, match=r"has an average for 'neck\.bias'"):
        average.load_state_dict({**state, "neck.bias": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"'head\.bias' is of shape \(7,\)"):
        average.load_state_dict({**state, "head.bias": torch.zeros(7)})
