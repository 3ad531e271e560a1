"""Muon: agreement with torch's, what it takes for a matrix, its state."""

from __future__ import annotations

import pytest
import torch
from commands import run_command
from torch import nn

import vitbase
from vitbase.config.learning import OptimizerSection
from vitbase.runtime import local_runtime
from vitbase.training.muon import Muon, orthogonalise
from vitbase.training.optim import (
    build_optimizer,
    build_update_rule,
    hidden_kernels,
    parameter_groups,
)


def optimizer_of(model: nn.Module, **options: object) -> torch.optim.Optimizer:
    given = {"optimizer": "muon", "lr_init": 2e-3, "momentum": 0.95, "weight_decay": 0.05}
    section = OptimizerSection(**{**given, "decay_on": "kernels", **options})
    return build_optimizer(model, section, local_runtime("CPU"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 5), (2, 7, 30)])
def test_singular_values_come_close_to_one(shape):
    turned = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(turned)
    assert turned.shape == shape
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_directions_stay_and_zeros_stay():
    matrix = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = left.T @ orthogonalise(matrix)[0] @ right.T
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-5
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_agrees_with_torchs_muon():
    """Which iterates in bfloat16: to 2% of a step."""
    shapes = [(12, 12), (20, 8), (8, 24)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    mine = nn.ParameterList([nn.Parameter(value.clone()) for value in start])
    theirs = [nn.Parameter(value.clone()) for value in start]
    group = {"params": list(mine), "weight_decay": 0.1, "orthogonal": True, "parts": [1, 1, 1]}
    settings = {"lr": 0.02, "momentum": 0.95}
    ours = Muon([group], betas=(0.9, 0.95), eps=1e-8, fused=False, **settings)
    other = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        other.step()
    for a, b, first in zip(mine, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - first).norm()


def test_which_parameters_are_matrices_within():
    patches = vitbase.create_model("testing", num_classes=5, image_size=32, representation_size=8)
    names = hidden_kernels(patches)
    assert {name.split(".")[0] for name in names} == {"blocks", "pre_logits"}
    stem = hidden_kernels(vitbase.create_model("ViTC-Mini_8", num_classes=10))
    assert sum(name.startswith("stem.") for name in stem) == 4  # five kernels without the first
    optimizer = optimizer_of(patches)
    turned = {
        name: parts
        for group in optimizer.param_groups
        if group["orthogonal"]
        for name, parts in zip(group["names"], group["parts"], strict=True)
    }
    assert sorted(turned) == sorted(names)
    assert {name for name, parts in turned.items() if parts == 3} == {
        name for name in names if name.endswith("attn.qkv.weight")
    }


def test_query_key_and_value_are_matrices_of_their_own():
    weight = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))

    def step(values: list[torch.Tensor], gradients: list[torch.Tensor], parts: int) -> torch.Tensor:
        parameters = [nn.Parameter(value.clone()) for value in values]
        for parameter, value in zip(parameters, gradients, strict=True):
            parameter.grad = value.clone()
        group = {"params": parameters, "orthogonal": True, "parts": [parts] * len(parameters)}
        made = Muon([group], lr=0.1, momentum=0.9, betas=(0.9, 0.95), eps=1e-8, fused=False)
        made.step()
        return torch.cat([parameter.detach() for parameter in parameters])

    whole = step([weight], [gradient], 3)
    apart = step(list(weight.chunk(3)), list(gradient.chunk(3)), 1)
    torch.testing.assert_close(whole, apart, rtol=1e-6, atol=1e-7)


def test_all_else_is_adamws():
    torch.manual_seed(0)
    mine = vitbase.create_model("testing", num_classes=5, image_size=32)
    theirs = vitbase.create_model("testing", num_classes=5, image_size=32)
    theirs.load_state_dict(mine.state_dict())
    groups = parameter_groups(theirs, weight_decay=0.05, decay_on="kernels")
    other = build_update_rule("adamw", theirs, groups, lr=2e-3, fused=True)
    ours = optimizer_of(mine)
    for _ in range(3):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        ours.step()
        other.step()
    hidden = set(hidden_kernels(mine))
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) == (name not in hidden), name


def test_shards_are_refused(capsys, tiny_idx, tmp_path):
    words = ["train", "fashion", "--data_path", str(tiny_idx), "--output_dir", str(tmp_path / "r")]
    words += ["--optimizer", "muon", "--parallel", "fsdp", "--num_devices", "2"]
    code, _, said = run_command(capsys, *words)
    assert code == 2
    assert "optimizer muon needs whole matrices" in said
    assert not (tmp_path / "r").exists()


def test_explain_counts_what_it_keeps(capsys):
    code, said, _ = run_command(capsys, "explain", "fashion", "--on=h100", "--optimizer", "muon")
    assert code == 0
    assert "1 more for muon" in said
