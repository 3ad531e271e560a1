"""Where a run stands, and the learning rate there: functions of the update's number."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vitbase.config.learning import ScheduleSection


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


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in a run, between two updates: what comes next depends on it alone.

    Attributes:
      updates: taken so far.
      steps_per_epoch: updates of an epoch.
      total_steps: updates of the run, which may end inside an epoch.
    """

    updates: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> int:
        """The epoch of the next update, counted from 0."""
        return self.updates // self.steps_per_epoch

    @property
    def step(self) -> int:
        """The place of the next update within its epoch, counted from 0."""
        return self.updates % self.steps_per_epoch

    @property
    def taken(self) -> tuple[int, int]:
        """Epoch and step within it of the last update, counted from 1, as checkpoints are named."""
        epoch, step = divmod(self.updates - 1, self.steps_per_epoch)
        return epoch + 1, step + 1

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def ends_epoch(self) -> bool:
        return self.step == 0 or self.ends_run

    @property
    def ends_run(self) -> bool:
        return self.updates == self.total_steps

    def after_update(self) -> Place:
        """Return the place that one more update leads to."""
        return dataclasses.replace(self, updates=self.updates + 1)
