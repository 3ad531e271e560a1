"""An update that the device records once and then replays: the host asks for a graph, not kernels.

Where a model is small or a batch is, a device computes faster than a host can ask. What is recorded
reads tensors that stay where they are; each update copies its images, labels and numbers there.

Source: torch's notes on CUDA graphs, whole-network capture: static inputs, a few calls on a side
  stream before, gradients from the graph's own memory, optimizers that count on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from vitbase.config.config import Config
from vitbase.data.mix import Mix
from vitbase.errors import ConfigError, DeviceError
from vitbase.runtime import Runtime

T = TypeVar("T")

Given = tuple[Tensor, Tensor, Tensor | None]
"""What a forward pass is given, on the device: images, labels, depth scales."""

Found = tuple[Tensor, Tensor]
"""What a forward pass gives: the sum of its losses, and whether outputs are numbers [B]."""

_WARM_UP = 3
"""Calls before a recording, of which libraries set things up that a graph cannot hold."""


def check_recordable(config: Config, runtime: Runtime) -> None:
    """Check that this device can record the updates of a run, if that is asked for.

    Raises: DeviceError or ConfigError saying what is in the way.
    """
    if not config.run.device_graph:
        return
    if not runtime.has_graphs:
        raise DeviceError(
            f"device_graph records updates on GPUs of NVIDIA and AMD, with a torch that has "
            f"torch.accelerator.Graph; this run computes on {runtime.device.type}, with torch "
            f"{torch.__version__}. Leave out --device_graph."
        )
    if runtime.num_ranks > 1:
        raise ConfigError(
            "device_graph records the updates of one device; what several send each other is not "
            "recorded. Leave out --device_graph, or give --num_devices 1."
        )


class Replayed(Protocol):
    """What a device has recorded."""

    def replay(self) -> None: ...


class Recorder:
    """Records work on a device, on a stream of its own, all of it in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.Stream(device=device)
        self._pool: Any = None

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do work where it will be recorded."""
        computing = torch.accelerator.current_stream(self._stream.device)
        self._stream.wait_stream(computing)
        with self._stream:
            result = work()
        computing.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> tuple[Replayed, T]:
        """Record work, which is not done now. Returns: the graph, and where its results will be."""
        # The loader's threads go on allocating pinned memory meanwhile, which is no part of it.
        graph = torch.accelerator.Graph(pool=self._pool, capture_error_mode="thread_local")
        with self._stream, graph:
            result = work()
        self._pool = graph.pool()
        return graph, result


class Recording(Generic[T]):
    """Work on tensors that stay where they are: done a few times, then recorded, then replayed."""

    def __init__(self, work: Callable[[], T], recorder: Recorder) -> None:
        self._work, self._recorder = work, recorder
        self._done = 0
        self._recorded: tuple[Replayed, T] | None = None

    def __call__(self) -> T:
        if self._done < _WARM_UP:
            self._done += 1
            return self._recorder.warm_up(self._work)
        if self._recorded is None:
            self._recorded = self._recorder.record(self._work)
        graph, result = self._recorded
        graph.replay()
        return result


class RecordedUpdate:
    """An update in two recordings for each kind of mix: its gradients, and what becomes of them.

    Between the two the host learns how the update before went. All recordings share memory: each
    finds nothing there that it needs but what stays, and the gradients that it was recorded with.

    Args:
      gradients: of passes over what they are given, mixed; sets them anew.
      apply: takes them to the weights.
    """

    def __init__(
        self,
        gradients: Callable[[Iterable[Given], Mix], list[Found]],
        apply: Callable[[], list[Tensor]],
        device: torch.device,
    ) -> None:
        self._gradients, self._apply, self._device = gradients, apply, device
        self.forget()

    def forget(self) -> None:
        """Record anew from here on: what the optimizer keeps lies elsewhere now."""
        self._recorder = Recorder(self._device)
        self._given: list[Given] = []
        self._mixes: dict[str, Mix] = {}
        self._recordings: dict[str, tuple[Recording[list[Found]], Recording[list[Tensor]]]] = {}

    def gradients(self, given: list[Given], mix: Mix) -> list[Found]:
        """As the function, whose results are copied, as the next update overwrites them."""
        self._take_in(given, mix)
        if mix.kind not in self._recordings:
            stays = self._mixes[mix.kind]
            self._recordings[mix.kind] = (
                Recording(lambda: self._gradients(self._given, stays), self._recorder),
                Recording(self._apply, self._recorder),
            )
        computing, self._applying = self._recordings[mix.kind]
        return [(loss.clone(), finite.clone()) for loss, finite in computing()]

    def apply(self) -> list[Tensor]:
        """As the function, of the gradients just computed; its results are copied."""
        return [value.clone() for value in self._applying()]

    def _take_in(self, given: list[Given], mix: Mix) -> None:
        mix = mix.on_device(self._device)
        assert mix.numbers is not None
        if mix.kind in self._mixes:
            stays = self._mixes[mix.kind].numbers
            assert stays is not None
            stays.copy_(mix.numbers)
        else:
            self._mixes[mix.kind] = mix
        if not self._given:
            self._given = [
                (images.clone(), labels.clone(), None if scales is None else scales.clone())
                for images, labels, scales in given
            ]
        for kept, new in zip(self._given, given, strict=True):
            for place, value in zip(kept, new, strict=True):
                if place is not None and value is not None:
                    place.copy_(value)
