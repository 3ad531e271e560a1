"""LAMB: Adam whose step is as long, for each weight, as a share of the weight itself.

Source: Large Batch Optimization for Deep Learning (arXiv 1904.00962) algorithm 2, in the form of
NVIDIA's FusedLAMB, with which DeiT III was trained: the trust ratio is left out where weights do
not decay, and is not bounded. FusedLAMB also clips the global gradient norm, to 1; here clipping
is the loop's, for every optimizer alike. DeiT III's epsilon is 1e-8, FusedLAMB's own 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vitbase.training.foreach import ForeachOptimizer
from vitbase.training.sharded import local_parts, whole_norms, zero_where


class Lamb(ForeachOptimizer):
    """LAMB with bias correction, over many tensors at once.

    Of a parameter that FSDP2 shards, each rank updates its shard, by the norm of the whole. Where
    the attribute `found_inf` is 1, as torch's fused optimizers have it, nothing changes but the
    count of steps, which the host keeps: who learns of the flag calls :meth:`take_back`.

    Args:
      params: parameters, or groups of them with options of their own.
      lr: learning rate.
      betas: decay of the averages of the gradient and of its square.
      eps: added to the square root.
      weight_decay: added to the step before the trust ratio, which a group has only if this is
        not zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._counted: list[Tensor] = []

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one update. Returns: what `closure`, which computes the loss, returns."""
        self._counted = []
        return super().step(closure)

    def take_back(self) -> None:
        """Count the last step, which `found_inf` has kept from changing anything, no longer."""
        for step in self._counted:
            step.sub_(1)
        self._counted = []

    def _update(
        self, parameters: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
    ) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        for state in states:
            state["step"] += 1
            self._counted.append(state["step"])
        steps = [int(state["step"]) for state in states]
        weights = local_parts(parameters)
        gradients = local_parts(p.grad for p in parameters if p.grad is not None)
        means = local_parts([state["exp_avg"] for state in states])
        squares = local_parts([state["exp_avg_sq"] for state in states])
        beta1, beta2 = group["betas"]
        if found_inf is None:
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
        else:  # all that is kept is multiplied by 1, and has 0 added
            applies = found_inf == 0
            zero_where(found_inf, gradients)
            share = torch.where(applies, 1 - beta1, 0.0).to(means[0].dtype)
            torch._foreach_lerp_(means, gradients, [share] * len(means))
            torch._foreach_mul_(squares, torch.where(applies, beta2, 1.0))
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(below, group["eps"])
        changes = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(changes, below)
        if group["weight_decay"] == 0:
            if found_inf is not None:
                zero_where(found_inf, changes)
            torch._foreach_add_(weights, changes, alpha=-group["lr"])
            return
        torch._foreach_add_(changes, weights, alpha=group["weight_decay"])
        weight_norms, change_norms = whole_norms(parameters, weights, changes)
        defined = (weight_norms > 0) & (change_norms > 0)
        ratios = torch.where(defined, weight_norms / change_norms, 1.0) * -group["lr"]
        if found_inf is not None:
            ratios.masked_fill_(found_inf != 0, 0.0)
        torch._foreach_addcmul_(weights, changes, list(ratios.unbind()))

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU: no wait to read it
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
