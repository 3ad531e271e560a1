"""Faster layers for a model that only computes, on a CPU: weights laid out once for its cores.

torch multiplies in float32 with a library that reads weights as they lie, and adds the bias and
applies the GELU in passes of their own. oneDNN, which torch brings along for its compiler, takes
weights that were laid out beforehand and does these in the same pass. Results differ by rounding.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitbase.model.layers import Linear, Mlp
from vitbase.model.vit import VisionTransformer

_ALGORITHMS = {"tanh": "tanh", "erf": "none"}


def can_pack(model: nn.Module) -> bool:
    """Whether a model gets faster layers here: a plain one in float32, on a CPU that has them.

    A compiled one keeps its own: the compiler lays out weights itself, and fails on packed ones.
    """
    return (
        isinstance(model, VisionTransformer)
        and platform.machine().lower() in {"x86_64", "amd64"}
        and torch.backends.mkldnn.is_available()
        and all(module._compiled_call_impl is None for module in model.modules())
        and all(
            type(weight) is nn.Parameter and weight.is_cpu and weight.dtype == torch.float32
            for weight in model.parameters()
        )
    )


@contextlib.contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside, a model computes with packed weights, if it can; it must not be trained there.

    Its parameters stay, and stay what they are outside; packed ones take as much memory again.
    """
    pack(model)
    try:
        yield
    finally:
        unpack(model)


def pack(model: nn.Module) -> None:
    """Let a model compute with packed weights from now on, if it can, without gradients."""
    if not can_pack(model):
        return
    fused = {}
    for module in model.modules():
        if isinstance(module, Mlp):
            fused[module.fc1] = _ALGORITHMS[module.gelu_form]
            module.__dict__["forward"] = functools.partial(_two_layers, module)
    for module in model.modules():
        if isinstance(module, Linear):
            module.__dict__["forward"] = _packed_forward(module, fused.get(module))


def unpack(model: nn.Module) -> None:
    """Let a model compute, learn, be copied and exported as before."""
    for module in model.modules():
        if isinstance(module, Linear | Mlp):  # a block's may be another's: to compute it again
            module.__dict__.pop("forward", None)


def _two_layers(mlp: Mlp, x_BND: Tensor) -> Tensor:
    """An MLP whose first layer has the GELU inside."""
    y_BND: Tensor = mlp.fc2(mlp.fc1(x_BND))
    return y_BND


def _packed_forward(layer: nn.Linear, gelu: str | None) -> functools.partial[Tensor]:
    weight = layer.weight.detach()
    # For as many rows as one image has: the layout serves larger batches as well.
    packed_weight = torch.ops.mkldnn._reorder_linear_weight(weight, 197)
    return functools.partial(
        _linear,
        packed_weight,
        None if layer.bias is None else layer.bias.detach(),
        "none" if gelu is None else "gelu",
        gelu or "",
    )


def _linear(
    weight: Tensor, bias: Tensor | None, after: str, algorithm: str, x_BND: Tensor
) -> Tensor:
    y_BND: Tensor = torch.ops.mkldnn._linear_pointwise(x_BND, weight, bias, after, [], algorithm)
    return y_BND
