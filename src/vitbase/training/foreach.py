"""Optimizers of our own: each group's parameters at once, whether they are whole or shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ForeachOptimizer(torch.optim.Optimizer):
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
