"""Updates of a run whose loss, or gradient, is made to be no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import pytest
import torch

from vitbase.training.objective import Objective
from vitbase.training.step import Learner

What = Literal["loss", "gradient"]


def spoil(
    patch: pytest.MonkeyPatch, updates: Collection[int], what: What = "loss", *, rank: int = 0
) -> None:
    """Make loss or gradient of some updates, counted from 0, NaN on one rank."""
    under_way = {"update": -1}
    step, loss_sum = Learner.step, Objective.loss_sum

    def noted(self: Learner, update: int, *arguments: Any, **named: Any) -> Any:
        under_way["update"] = update if self.runtime.rank == rank else -1
        return step(self, update, *arguments, **named)

    def spoiled(self: Objective, logits_BC: torch.Tensor, *rest: Any) -> torch.Tensor:
        bad = under_way["update"] in updates and logits_BC.requires_grad
        if bad and what == "gradient":
            logits_BC.register_hook(lambda gradient: gradient * math.nan)
        loss = loss_sum(self, logits_BC, *rest)
        return loss * math.nan if bad and what == "loss" else loss

    patch.setattr(Learner, "step", noted)
    patch.setattr(Objective, "loss_sum", spoiled)


def before_update(
    patch: pytest.MonkeyPatch, update: int, change: Callable[[Learner], None]
) -> None:
    """Do something to a learner before an update, counted from 0."""
    step = Learner.step

    def changed(self: Learner, number: int, *arguments: Any, **named: Any) -> Any:
        if number == update:
            with torch.no_grad():
                change(self)
        return step(self, number, *arguments, **named)

    patch.setattr(Learner, "step", changed)
