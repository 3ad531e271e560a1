"""Where the device's time in an update goes: by phase, and by kernel."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, supported_activities
from turns import Side

from vitbase.runtime import Runtime

BEFORE, BACKWARD, BETWEEN, OPTIMIZER = PHASES = (
    "input, forward and loss",
    "backward",
    "gradient norm, and the rest",
    "optimizer",
)
_BEGINS = "an update begins"
MOST = 20
_LONGEST_NAME = 90


@dataclass
class Found:
    """Milliseconds of an update by phase, and by (phase, kernel) with how often it ran."""

    phases: dict[str, float] = field(default_factory=dict)
    kernels: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def describe(self, whole: float) -> str:
        """Return the kernels that take longest, as a table.

        Args:
          whole: milliseconds of an update, unprofiled.
        """
        lines = ["", "", "| phase | kernel | calls | ms | of the update |", "|---|---|---|---|---|"]
        ranked = sorted(self.kernels.items(), key=lambda item: -item[1][0])
        for (phase, kernel), (milliseconds, calls) in ranked[:MOST]:
            name = kernel.replace("|", " ")[:_LONGEST_NAME]
            share = milliseconds / whole
            lines.append(f"| {phase} | {name} | {calls:g} | {milliseconds:.3f} | {share:.1%} |")
        rest = sum(milliseconds for _, (milliseconds, _) in ranked[MOST:])
        lines.append(f"| | {len(ranked[MOST:])} others | | {rest:.3f} | {rest / whole:.1%} |")
        return "\n".join(lines)


def profile_steps(runtime: Runtime, side: Side, *, steps: int) -> Found:
    """Profile some steps. On a CPU its operators stand for kernels."""
    on_cpu = runtime.device.type == "cpu"
    activities = {ProfilerActivity.CPU} if on_cpu else supported_activities()
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            with record_function(_BEGINS):
                pass
            side.step()
        runtime.wait()
    events: list[Any] = sorted(profiler.events() or [], key=lambda event: event.time_range.start)
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    was_backward = False
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        if event.name == _BEGINS:
            was_backward = False
        phase = _phase_of(event)
        was_backward = was_backward or phase == BACKWARD
        if phase == BEFORE and was_backward:
            phase = BETWEEN
        if on_cpu:
            times[phase, event.name].append(event.self_cpu_time_total)
        else:
            for kernel in event.kernels:
                if kernel.name != event.name:  # a range that is drawn on the device's side, too
                    times[phase, kernel.name].append(kernel.duration)
    if not times:  # of a profiler that does not say who has launched what
        for event in events:
            if event.device_type != DeviceType.CPU:
                times["unknown", event.name].append(event.self_device_time_total)
    found = Found(dict.fromkeys(PHASES, 0.0))
    for (phase, name), microseconds in times.items():
        milliseconds = sum(microseconds) / 1000 / steps
        found.kernels[phase, name] = (milliseconds, len(microseconds) / steps)
        found.phases[phase] = found.phases.get(phase, 0.0) + milliseconds
    return found


def _phase_of(event: Any) -> str:
    """Tell from what an operator was called by which part of an update it belongs to."""
    while event is not None:
        if event.name.startswith("Optimizer.step"):
            return OPTIMIZER
        if event.name.startswith("autograd::engine"):
            return BACKWARD
        event = event.cpu_parent
    return BEFORE
