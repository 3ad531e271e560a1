"""Contenders that take turns on one device: seconds of a step of each, round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from vitbase.errors import VitbaseError
from vitbase.runtime import Runtime


class Side(Protocol):
    """A contender: a step of it is what is timed."""

    def step(self) -> torch.Tensor:
        """Ask the device for a step, and wait for no more than its users would.

        Returns: what it has computed, the same for every contender at its first step.
        """


@dataclass
class Turns:
    """What a contender's turns took.

    Attributes:
      first: what its first step has computed, on the host.
      seconds: of a step, round by round.
      peak_bytes: that the device held for it at most, its weights included; None on a CPU.
    """

    side: Side
    first: torch.Tensor
    steps: int
    resident_bytes: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_steps(runtime: Runtime, side: Side, steps: int) -> float:
    """Return the seconds of a step, the device's work included."""
    runtime.wait()
    started = time.perf_counter()
    for _ in range(steps):
        side.step()
    runtime.wait()
    return (time.perf_counter() - started) / steps


def allocated(runtime: Runtime) -> int:
    if runtime.device.type == "cpu":
        return 0
    return int(torch.accelerator.memory_allocated(runtime.device))


def warmed_up(
    runtime: Runtime, build: Callable[[], Side], *, turn_seconds: float, most_steps: int
) -> Turns:
    """Build a contender, let it compile, and choose how many steps a turn of it has."""
    before = allocated(runtime)
    side = build()
    first = side.step().float().cpu()
    for _ in range(2):
        side.step()
    one = time_steps(runtime, side, 2)
    steps = max(1, min(most_steps, round(turn_seconds / one)))
    return Turns(side, first, steps, allocated(runtime) - before)


def take_turn(runtime: Runtime, turns: Turns) -> None:
    """Time one turn, after a step that brings its memory back."""
    on_device = runtime.device.type != "cpu"
    others = allocated(runtime) - turns.resident_bytes
    if on_device:
        torch.accelerator.reset_peak_memory_stats(runtime.device)
    turns.side.step()
    turns.seconds.append(time_steps(runtime, turns.side, turns.steps))
    if on_device:
        peak = int(torch.accelerator.max_memory_allocated(runtime.device)) - others
        turns.peak_bytes = max(peak, turns.peak_bytes or 0)


def take_turns(
    runtime: Runtime,
    builders: Mapping[str, Callable[[], Side]],
    *,
    rounds: int,
    turn_seconds: float,
    most_steps: int,
    failed: Callable[[str, Exception], None],
    tolerance: float,
    after_round: Callable[[Mapping[str, Turns]], None],
) -> None:
    """Let contenders take turns; each round begins with another one.

    Args:
      failed: is told of one that does not run here, which is left out.
      tolerance: by which what they compute at first may differ from the last one's, on average;
        who is further away has no turn.
      after_round: is given what was measured so far.
    """
    found: dict[str, Turns] = {}
    for name, build in builders.items():
        try:
            found[name] = warmed_up(
                runtime, build, turn_seconds=turn_seconds, most_steps=most_steps
            )
        except (RuntimeError, ValueError, VitbaseError) as error:  # memory, compiler, options
            failed(name, error)
            give_back_memory(runtime)
    for name, far in (who_differs(found, tolerance) if found else {}).items():
        failed(name, ValueError(f"what it computes at first differs by {far:.3g} from the others"))
        del found[name]
    for number in range(rounds if found else 0):
        names = [*found]
        first = number % len(names)
        for name in names[first:] + names[:first]:
            take_turn(runtime, found[name])
        after_round(found)
    found.clear()
    forget(runtime)


def who_differs(found: Mapping[str, Turns], tolerance: float) -> dict[str, float]:
    """Return by how much contenders differ from the last one, those that differ by too much."""
    last = [*found.values()][-1]
    apart = {name: float((one.first - last.first).abs().mean()) for name, one in found.items()}
    return {name: far for name, far in apart.items() if not far <= tolerance}


def forget(runtime: Runtime) -> None:
    """Give back what contenders held, compiled code included, so that the next ones fit."""
    torch.compiler.reset()
    give_back_memory(runtime)


def give_back_memory(runtime: Runtime) -> None:
    gc.collect()
    if runtime.device.type != "cpu":
        torch.accelerator.empty_cache()


def ratio_of_rounds(ours: Turns, theirs: Turns) -> float:
    """Return the median over rounds of how many times as fast the first is."""
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    return statistics.median(their / our for our, their in pairs)
