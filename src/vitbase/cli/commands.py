"""The commands there are. A command's own file is loaded when it is asked for, not before."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import modules without a search for garbage in what they make, of which nothing is any.

    Torch makes so much that the search takes a sixth of its time. Nor is it searched later.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
