"""Where the time between log lines goes beside computing: images, ranks, checkpoints, launching.

Nothing here makes a device wait: what happens on it is marked by events on its own stream, which
are read once it is known to have passed them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from vitbase.data.loader import TrainLoader
from vitbase.training.optim import depth_of
from vitbase.training.sharded import shards_itself
from vitbase.training.step import Learner

_MATTERS = 0.05
"""Of the time: less is not worth a word."""

_Moment = Any
"""Seconds, by the clock of a host that computes itself; or an event of the device."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of a window's time, means over the ranks.

    Attributes:
      images: waiting for the loader.
      ranks: waiting for the others, and for what they send; None where there is one alone. On an
        accelerator it is its own time, not the host's.
      checkpoints: saving them.
      launching: the host's own time, in which it asks the device for work; None on a CPU, which
        computes in it. As long as the host waits for the device, nothing is lost by it.
      device: the host's waiting for the device.
    """

    images: float
    ranks: float | None
    checkpoints: float
    launching: float | None
    device: float

    def to_row(self) -> dict[str, float]:
        """Return what stands in a row of the metrics."""
        named = {
            "data_wait_fraction": self.images,
            "communication_fraction": self.ranks,
            "checkpoint_fraction": self.checkpoints,
            "launch_fraction": self.launching,
        }
        return {name: round(share, 4) for name, share in named.items() if share is not None}

    def describe(self) -> str:
        """Say it for a log line: of all but the images only what matters."""
        words = [f"data wait {self.images:.0%}"]
        starves = self.device < _MATTERS
        for name, share in (
            ("communication", self.ranks),
            ("checkpoints", self.checkpoints),
            ("launching", self.launching if starves else None),
        ):
            if share is not None and share >= _MATTERS:
                words.append(f"{name} {share:.0%}")
        return "  ".join(words)


class Waits:
    """Adds up what a rank waits for, from one log line to the next.

    Exchanged gradients, and a sharded model's first weights, are waited for by whoever has none of
    its own left to compute: from the last gradient to the end of the backward pass, and before the
    first layer.
    """

    def __init__(self, learner: Learner, loader: TrainLoader) -> None:
        self.runtime, self.loader = learner.runtime, loader
        self._on_device = not learner.runtime.reads_at_once
        self._last_gradient: _Moment | None = None
        self._gathers: _Moment | None = None
        self._ripe: list[tuple[_Moment, _Moment]] = []
        self._fresh: list[tuple[_Moment, _Moment]] = []
        if self.runtime.num_ranks > 1:
            self._watch(learner.model)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Count anew; so does the loader."""
        self._images_before = 0.0
        self._forget()

    def _forget(self) -> None:
        self._ranks = 0.0
        self._of_host = dict.fromkeys(("saving", "exchanging", "device"), 0.0)
        self._fresh.clear()
        self._ripe.clear()

    @contextlib.contextmanager
    def during(self, what: Literal["saving", "exchanging", "device"]) -> Iterator[None]:
        """Context of what the host does for a checkpoint, waits for until the other hosts have
        answered, or until the device has come so far.
        """
        started = time.perf_counter()
        try:
            yield
        finally:
            self._of_host[what] += time.perf_counter() - started

    def settle(self, settle: Callable[[], None]) -> None:
        """Take in that an update has its gradients, and let the one before be settled."""
        if self._last_gradient is not None:
            self._fresh.append((self._last_gradient, self._now()))
            self._last_gradient = None
        with self.during("device"):
            settle()
        self._read()

    def seconds(self) -> list[float]:
        """Return this rank's seconds since the last call: they are added up over the ranks."""
        self._read()
        self._read()
        images = self.loader.seconds_waited - self._images_before
        saving, exchanging, device = self._of_host.values()
        ranks = self._ranks + (0.0 if self._on_device else exchanging)
        # Where the host computes itself it waits for no device.
        found = [images, ranks, saving, exchanging, device if self._on_device else 0.0]
        self._images_before = self.loader.seconds_waited
        self._forget()
        return found

    def shares(self, sums: list[float], seconds: float) -> Shares:
        """Return the shares of a window.

        Args:
          sums: of :meth:`seconds`, over all ranks.
          seconds: of the window.
        """
        whole = max(seconds * self.runtime.num_ranks, 1e-9)
        images, ranks, saving, exchanging, device = (min(one / whole, 1.0) for one in sums)
        own = max(0.0, 1.0 - images - saving - exchanging - device)
        return Shares(
            images,
            ranks if self.runtime.num_ranks > 1 else None,
            saving,
            own if self._on_device else None,
            device,
        )

    def _watch(self, model: nn.Module) -> None:
        """Mark the last gradient of a pass, and the gathering of a sharded model's first weights.

        Hooks of a compiled block would be compiled, too; those that come last are not in a block.
        """
        learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        first = [p for name, p in learned if depth_of(name, len(learned)) == 0]
        for parameter in first or [p for _, p in learned]:
            parameter.register_post_accumulate_grad_hook(self._has_gradient)
        gathers = shards_itself(model)
        if gathers:
            model.register_forward_pre_hook(self._begins_to_gather, prepend=True)
            model.register_forward_pre_hook(self._has_gathered)

    def _has_gradient(self, parameter: torch.Tensor) -> None:
        self._last_gradient = self._now()

    def _begins_to_gather(self, model: nn.Module, inputs: Any) -> None:
        self._gathers = self._now() if model.training else None

    def _has_gathered(self, model: nn.Module, inputs: Any) -> None:
        if self._gathers is not None:
            self._fresh.append((self._gathers, self._now()))
            self._gathers = None

    def _now(self) -> _Moment:
        """Return this moment of what computes."""
        if not self._on_device:
            return time.perf_counter()
        event = torch.Event(self.runtime.device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self.runtime.device))
        return event

    def _read(self) -> None:
        """Add up what the device is known to have passed; what was marked since comes next."""
        for begin, end in self._ripe:
            if not self._on_device:
                self._ranks += end - begin
            elif end.query():
                self._ranks += begin.elapsed_time(end) / 1000
        self._ripe, self._fresh = self._fresh, []
