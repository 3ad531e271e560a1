"""Position embeddings and the geometry of the stems."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import timm.layers
import torch

from vitbase.errors import ConfigError, WeightsError
from vitbase.model import resample_pos_embed
from vitbase.model.hybrid import conv_padding, pad_same, same_padding
from vitbase.model.layers import gelu, sincos_pos_embed


def test_resample_to_the_same_grid_changes_nothing() -> None:
    pos = torch.randn(1, 17, 8)
    assert torch.equal(resample_pos_embed(pos, (4, 4), num_prefix=1), pos)


@pytest.mark.parametrize("grid", [(7, 7), (3, 9), (2, 2), (1, 5)])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_resample_to_any_grid(grid: tuple[int, int], num_prefix: int) -> None:
    pos = torch.randn(1, num_prefix + 16, 8)
    resampled = resample_pos_embed(pos, grid, num_prefix=num_prefix)
    assert resampled.shape == (1, num_prefix + grid[0] * grid[1], 8)
    assert torch.equal(resampled[:, :num_prefix], pos[:, :num_prefix])


def test_resample_keeps_rows_and_columns_apart() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    pos = torch.stack([rows, columns], dim=-1).reshape(1, 24, 2)
    resampled = resample_pos_embed(pos, (8, 6), num_prefix=0, old_grid_hw=(4, 6))
    grid = resampled.reshape(8, 6, 2)
    torch.testing.assert_close(grid[..., 1], columns[:1].expand(8, 6), atol=1e-5, rtol=0)
    assert (grid[1:, :, 0] > grid[:-1, :, 0]).all()
    torch.testing.assert_close(grid[3, :, 0], torch.full((6,), 1.25), atol=0.1, rtol=0)


def test_resample_agrees_with_timm() -> None:
    pos = torch.randn(1, 1 + 49, 16)
    expected = timm.layers.resample_abs_pos_embed(pos, [5, 12], num_prefix_tokens=1)
    torch.testing.assert_close(resample_pos_embed(pos, (5, 12), num_prefix=1), expected)


def test_resample_keeps_the_type() -> None:
    pos = torch.randn(1, 16, 8, dtype=torch.bfloat16)
    assert resample_pos_embed(pos, (3, 3), num_prefix=0).dtype == torch.bfloat16


@pytest.mark.parametrize(("tokens", "num_prefix"), [(18, 1), (17, 0), (1, 1)])
def test_resample_refuses_a_grid_that_is_none(tokens: int, num_prefix: int) -> None:
    with pytest.raises(WeightsError, match="do not form a grid"):
        resample_pos_embed(torch.zeros(1, tokens, 4), (2, 2), num_prefix=num_prefix)


def test_sincos_is_what_the_papers_write() -> None:
    rows, columns, width = 3, 5, 16
    frequency = 1.0 / 10_000 ** (np.arange(4) / 3)
    y, x = np.mgrid[:rows, :columns]
    y, x = y.reshape(-1, 1) * frequency, x.reshape(-1, 1) * frequency
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    np.testing.assert_allclose(sincos_pos_embed((rows, columns), width)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (56, 3, 1, (1, 1)), (56, 1, 2, (0, 0))],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected
    padded = pad_same(torch.zeros(1, 1, size, size), kernel, stride)
    assert padded.shape[2] == size + sum(expected)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (7, 7), (7, 2), (5, 4), (2, 2)])
def test_conv_padding_divides_exactly(kernel: int, stride: int) -> None:
    conv = torch.nn.Conv2d(1, 1, kernel, stride=stride, padding=conv_padding(kernel, stride))
    for n in (1, 2, 7):
        assert conv(torch.zeros(1, 1, n * stride, n * stride)).shape == (1, 1, n, n)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (4, 1), (1, 2)])
def test_conv_padding_refuses(kernel: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a stem"):
        conv_padding(kernel, stride)


@pytest.mark.parametrize("size", [(0,), (1,), (7, 5), (3, 197, 768)])
def test_fast_tanh_gelu_is_the_tanh_gelu(size: tuple[int, ...]) -> None:
    x = 4 * torch.randn(size)
    mine, plain = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = gelu(mine, "tanh"), torch.nn.functional.gelu(plain, approximate="tanh")
    assert "TanhGelu" in type(y.grad_fn).__name__
    torch.testing.assert_close(y.double(), expected, atol=1e-6, rtol=1e-6)
    grad = torch.randn(size)
    y.backward(grad)
    expected.backward(grad.double())
    assert mine.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(mine.grad.double(), plain.grad, atol=3e-6, rtol=1e-5)


def test_fast_tanh_gelu_far_from_zero() -> None:
    x = torch.tensor([-1e10, -100.0, -9.0, -0.0, 0.0, 9.0, 100.0, 1e10], requires_grad=True)
    y = gelu(x, "tanh")
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(y, x.clamp(min=0))
    torch.testing.assert_close(x.grad, torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]))


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_other_gelus_are_torch_s(form: Literal["tanh", "erf"]) -> None:
    approximate = "tanh" if form == "tanh" else "none"
    for x in (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6).t()):
        assert torch.equal(gelu(x, form), torch.nn.functional.gelu(x, approximate=approximate))
