"""LAMB: agreement with timm's, its rule about decay, and its state."""

from __future__ import annotations

import pytest
import torch
from timm.optim.lamb import Lamb as TimmLamb
from torch import nn

import vitbase
from vitbase.training.lamb import Lamb


def build_model() -> nn.Module:
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=5, image_size=32)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


def groups_of(model: nn.Module) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]


def set_gradients(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


@pytest.mark.parametrize("eps", [1e-8, 1e-6])
def test_agrees_with_timm(eps):
    mine, theirs = build_model(), build_model()
    ours = Lamb(groups_of(mine), lr=3e-3, eps=eps)
    other = TimmLamb(groups_of(theirs), lr=3e-3, eps=eps, max_grad_norm=None)
    for step in range(8):
        for optimizer, model in ((ours, mine), (other, theirs)):
            set_gradients(model, step)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / 10)
            optimizer.step()
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_clipping_before_the_step_is_fused_lambs_clipping_inside():
    mine, theirs = build_model(), build_model()
    ours = Lamb(groups_of(mine), lr=3e-3)
    other = TimmLamb(groups_of(theirs), lr=3e-3, eps=1e-8, max_grad_norm=1.0)
    for step, scale in enumerate((1e-5, 1.0, 10.0, 1e-4, 0.1)):
        set_gradients(mine, step, scale)
        set_gradients(theirs, step, scale)
        nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
        ours.step()
        other.step()
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_the_step_is_a_share_of_the_weight_only_where_it_decays():
    for decay, expected in ((0.1, 0.01 * 4.0), (0.0, 0.01 * 2.0)):
        weight = nn.Parameter(torch.full((4,), 2.0))
        optimizer = Lamb([weight], lr=0.01, weight_decay=decay)
        weight.grad = torch.full((4,), 7.0)
        optimizer.step()
        # The first step of Adam has length 1 for each of the 4 numbers, a norm of 2; the weight's
        # norm is 4.
        assert (weight.detach() - 2.0).norm().item() == pytest.approx(expected, rel=1e-5)


def test_a_weight_of_zeros_moves_as_adams():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = Lamb([weight], lr=0.5, weight_decay=0.1)
    weight.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([-0.5, 0.5, 0.0])


def test_parameters_without_a_gradient_stay_and_count_their_own_steps():
    often, seldom = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    alone = nn.Parameter(torch.ones(2))
    optimizer = Lamb([often, seldom], lr=0.1, weight_decay=0.1)
    single = Lamb([alone], lr=0.1, weight_decay=0.1)
    for step in range(4):
        often.grad = torch.tensor([1.0, 2.0])
        seldom.grad = None if step % 2 else torch.tensor([3.0, -1.0])
        alone.grad = seldom.grad
        before = seldom.detach().clone()
        optimizer.step()
        single.step()
        assert torch.equal(seldom, before) == (step % 2 == 1)
    assert torch.equal(seldom, alone)
    assert optimizer.state[seldom]["step"] == 2
    assert set(optimizer.state[often]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_restored_optimizer_goes_on_as_if_never_stopped():
    whole, half = build_model(), build_model()
    one, other = Lamb(groups_of(whole), lr=0.01), Lamb(groups_of(half), lr=0.01)
    for step in range(6):
        for model, optimizer in ((whole, one), (half, other)):
            set_gradients(model, step)
            optimizer.step()
        if step == 2:
            state = other.state_dict()
            other = Lamb(groups_of(half), lr=0.01)
            other.load_state_dict(state)
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_called_with_gradients_on():
    weight = nn.Parameter(torch.ones(2))
    optimizer = Lamb([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (weight < 1).all()
