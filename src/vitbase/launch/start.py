"""Which launcher starts the ranks of an engine: torchrun, or MindSpore's msrun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitbase.launch.msrun import msrun_command, run_msrun
from vitbase.launch.plan import Plan, plan_launch, run_plan
from vitbase.launch.words import find_value
from vitbase.mindspore.fits import check_installed


def plan_for(engine: str, words: Sequence[str], **options: Any) -> Plan:
    """Plan what this server starts.

    Args and errors: as of `plan_launch`, whose options they are.
    """
    if engine == "mindspore" and {"rank_table", "num_devices"}.isdisjoint(options):
        options["num_devices"] = _count_devices(words)
    return plan_launch(words, **options)


def command_of(plan: Plan, engine: str) -> str:
    """Return the command to start this server by hand, in a shell."""
    return msrun_command(plan) if engine == "mindspore" else plan.command()


def start(plan: Plan, engine: str) -> int:
    """Start this server's ranks and wait for their end.

    Returns: 0 when all ranks are done, 128 + the signal's number when stopped by one.
    Raises: LaunchError naming what failed; DeviceError if MindSpore is needed and not here.
    """
    if engine != "mindspore":
        return run_plan(plan)
    check_installed()
    return run_msrun(plan)


def _count_devices(words: Sequence[str]) -> int:
    """Return the number of devices that MindSpore has here: one, where it is the processor."""
    target = find_value(list(words), "device_target") or "auto"
    if target.lower() == "cpu":
        return 1
    check_installed()
    from vitbase.mindspore.devices import count_accelerators

    return count_accelerators() or 1
