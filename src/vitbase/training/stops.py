"""When a run saves and stops before its end: decided by all ranks together, without a wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

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
        self._under_way: Callable[[], int] | None = None

    def decide(self, gives_up: bool = False) -> Decision:
        """Return what to do after an update, or a part of an evaluation (collective).

        Args:
          gives_up: whether this rank wants to stop unasked.
        """
        wish = 2 if gives_up or asked() else int(self.runtime.is_first and self._is_time())
        if self.runtime.num_ranks == 1:
            return _DECISIONS[wish]
        before, self._under_way = self._under_way, self.runtime.start_max(wish)
        return _DECISIONS[before()] if before is not None else "go on"

    def close(self) -> None:
        """Take in what is still being exchanged (collective)."""
        before, self._under_way = self._under_way, None
        if before is not None:
            before()

    def saved(self) -> None:
        """Count the minutes anew."""
        self._saved = time.monotonic()

    def _is_time(self) -> bool:
        return self._every is not None and time.monotonic() - self._saved >= self._every
