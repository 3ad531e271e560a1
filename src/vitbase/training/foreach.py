"""Optimizers: torch's own, and a base of others that take each group's parameters at once.

torch marks methods of its optimizers as not to be compiled, and loads its compiler to say so, which
takes more than a second at the start of every run. Here they are as they were before that mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _unmarked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a decorator of functools' kind was given."""
    inside: Callable[..., Any] = getattr(method, "__wrapped__", method)
    return inside


class _Uncompiled(torch.optim.Optimizer):
    add_param_group = _unmarked(torch.optim.Optimizer.add_param_group)
    zero_grad = _unmarked(torch.optim.Optimizer.zero_grad)


class SGD(_Uncompiled, torch.optim.SGD):
    """torch's."""

    step = torch.no_grad()(_unmarked(torch.optim.SGD.step))


class AdamW(_Uncompiled, torch.optim.AdamW):
    """torch's."""

    step = torch.no_grad()(_unmarked(torch.optim.AdamW.step))


class ForeachOptimizer(_Uncompiled):
    """Takes a step group by group; what it is, `_update` says.

    Where the attribute `found_inf` is 1, as torch's fused optimizers have it, nothing may change.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one update. Returns: what `closure`, which computes the loss, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group, getattr(self, "found_inf", None))
        return loss

    def _update(
        self, parameters: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
    ) -> None:
        """Update parameters that have gradients. Args: `found_inf` as above; None is 0."""
        raise NotImplementedError
