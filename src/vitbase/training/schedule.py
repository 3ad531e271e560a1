"""The learning rate over time, as a function of the update's number."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vitbase.config.options import ScheduleSection


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of every update of a run; it ends with the run's last step."""

    peak: float
    kind: Literal["constant", "cosine", "linear"]
    warmup_steps: int
    total_steps: int
    final: float = 0.0

    @classmethod
    def of(cls, peak: float, options: ScheduleSection, steps_per_epoch: int) -> Schedule:
        """Build the schedule of a run from options that count in epochs or in updates."""
        total = options.total_steps or options.epoch_size * steps_per_epoch
        warmup = options.warmup_steps
        if warmup is None:
            warmup = round(options.warmup_epochs * steps_per_epoch)
        return cls(peak, options.schedule, min(warmup, total - 1), total, options.lr_final)

    def at(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0.

        Warm-up rises linearly and reaches the peak with its last step; the decay would reach
        its end one step after the run's last.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if self.kind == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * done))
        elif self.kind == "linear":
            share = 1 - done
        else:
            return self.peak
        return self.final + (self.peak - self.final) * share
