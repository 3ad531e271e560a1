"""When a run saves and stops before its end: decided by all ranks together, without a wait."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import distributed

from vitbase.runtime import Runtime
from vitbase.stopping import asked

Decision = Literal["go on", "save", "stop"]
_DECISIONS: tuple[Decision, ...] = ("go on", "save", "stop")


class Stops:
    """Asks all ranks at every update what to do: the most urgent wish of any of them is done.

    Wishes are exchanged while the device computes; what was exchanged at one update is done at the
    next one, at the same one on every rank.

    Args:
      save_every_minutes: by the first rank's clock; None: never.
    """

    def __init__(self, runtime: Runtime, save_every_minutes: float | None = None) -> None:
        self.runtime = runtime
        self._every = None if save_every_minutes is None else 60 * save_every_minutes
        self._saved = time.monotonic()
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def decide(self) -> Decision:
        """Return what to do after an update, or a part of an evaluation (collective)."""
        wish = 2 if asked() else int(self.runtime.is_first and self._is_time())
        if self.runtime.num_ranks == 1:
            return _DECISIONS[wish]
        before = self._under_way
        wishes = torch.tensor(wish, dtype=torch.int32)
        with self.runtime.naming_lost_ranks():
            work = distributed.all_reduce(wishes, distributed.ReduceOp.MAX, async_op=True)
            self._under_way = (wishes, work)
            if before is None:
                return "go on"
            told, done = before
            done.wait()
        return _DECISIONS[int(told)]

    def close(self) -> None:
        """Take in what is still being exchanged (collective)."""
        before, self._under_way = self._under_way, None
        if before is not None:
            with self.runtime.naming_lost_ranks():
                before[1].wait()

    def saved(self) -> None:
        """Count the minutes anew."""
        self._saved = time.monotonic()

    def _is_time(self) -> bool:
        return self._every is not None and time.monotonic() - self._saved >= self._every
