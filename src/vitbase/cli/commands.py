"""The commands there are. A command's own file is loaded when it is asked for, not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vitbase.stopping import answering

COMMANDS = {
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "export": "export",
    "bench": "bench",
    "serve": "serve",
    "inspect": "inspect",
    "probe": "probe",
    "demo": "demo",
    "push": "push",
    "report": "report",
    "weights": "weights",
    "data": "data",
    "debug": "debug",
    "launch": "launch",
    "explain": "explain",
    "verify-resume": "verify",
    "recipes": "recipes",
}
"""Command -> its file in this room, which has a function `run_` of the file's name."""


def function_of(command: str) -> Callable[[list[str]], None]:
    """Load what runs a command. What parses options takes longer to load than many a command.

    Raises: Stopped if the process is asked to stop meanwhile.
    """
    file = COMMANDS[command]
    with answering():
        module = importlib.import_module(f"vitbase.cli.{file}")
    run: Callable[[list[str]], None] = getattr(module, f"run_{file}")
    return run
