"""Processes that work for a run beside it: started anew, with no threads or devices of its own.

They leave signals to the run, share memory with it, and end when it does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from vitbase.stopping import SIGNALS


def start_companion(
    module: str,
    words: Sequence[object],
    descriptors: Sequence[int],
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a module of ours as a process, whose standard input ends when this process does.

    Its `main` begins with :func:`leave_signals_to_the_run`.

    Args:
      words: its arguments.
      descriptors: of files that it keeps open.
      environment: what is otherwise for it.
      options: of `subprocess.Popen`.
    Raises: OSError.
    """
    places = (place or os.getcwd() for place in sys.path if isinstance(place, str))
    told = {"PYTHONPATH": os.pathsep.join(places), **(environment or {})}
    # What is asked to stop is the run: this process is not to be hit before it can say so.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(
            # -P: what lies where the run was started is no module of ours.
            [sys.executable, "-P", "-m", module, *map(str, words)],
            stdin=subprocess.PIPE,
            pass_fds=descriptors,
            env={**os.environ, **told},
            **options,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_run() -> None:
    """A cluster asks every process of a job to stop: the run answers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def shared_memory(name: str) -> BinaryIO:
    """Return a file in memory that processes can share. Raises: OSError."""
    if hasattr(os, "memfd_create"):  # which some builds of Python lack
        return os.fdopen(os.memfd_create(name), "wb+", 0)
    return tempfile.TemporaryFile(buffering=0)


def how_it_ended(code: int) -> str:
    """Say in words what an exit code means: "killed by SIGKILL", "ended with code 1"."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
