"""MindSpore's Momentum where torch's one-kernel SGD cannot take it: shards, and other devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vitbase.training.foreach import ForeachOptimizer
from vitbase.training.sharded import local_parts, zero_where


class Momentum(ForeachOptimizer):
    """v = momentum * v + (gradient + weight_decay * p); p = p - lr * v, over many tensors at once.

    Of a parameter that FSDP2 shards, each rank updates its shard. Where the attribute `found_inf`
    is 1, as torch's fused optimizers have it, nothing changes.

    Args: as of ``torch.optim.SGD``, whose numbers these are.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(
        self, parameters: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
    ) -> None:
        weights = local_parts(parameters)
        changes = local_parts(p.grad for p in parameters if p.grad is not None)
        if group["weight_decay"]:
            changes = list(torch._foreach_add(changes, weights, alpha=group["weight_decay"]))
        factor = group["momentum"]
        if found_inf is not None:  # what was kept times 1, and no change
            zero_where(found_inf, changes)
            factor = torch.where(found_inf == 0, factor, 1.0)
        if group["momentum"]:
            buffers = local_parts([with_velocity(self, p) for p in parameters])
            torch._foreach_mul_(buffers, factor)
            torch._foreach_add_(buffers, changes)
            changes = buffers
            if found_inf is not None:
                changes = [buffer.clone() for buffer in buffers]
                zero_where(found_inf, changes)
        torch._foreach_add_(weights, changes, alpha=-group["lr"])


def with_velocity(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> torch.Tensor:
    """Return what an optimizer keeps of a parameter's last steps: nothing yet is zeros."""
    state: dict[str, Any] = optimizer.state[parameter]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(
            parameter, memory_format=torch.preserve_format
        ).detach()
    found: torch.Tensor = state["momentum_buffer"]
    return found
