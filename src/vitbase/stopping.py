"""Signals that ask a run to end: answered where nothing is lost.

A cluster that takes its machines back, a person's Ctrl-C, a terminal that is closed: the run saves
what it has at the end of the update, and ends with a code of its own. Before its first update there
is nothing to save, and it ends at once, as it does at a second signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPPED = 75
"""The exit code of a run that was asked to stop, and goes on with the same command: EX_TEMPFAIL."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What asks to stop; SIGUSR1 is what SLURM is told to send before its time is up."""


class Stopped(BaseException):
    """A run that was asked to stop has come to a place where it can; its text says what was saved.

    Like KeyboardInterrupt it is no Exception, so that nobody takes it for a failure.
    """


class _Requests:
    """What this process was asked, which its main thread may answer later."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.will_look = False

    def take(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = signal.Signals(number)
        if not self.will_look:
            raise Stopped(f"Stopped by {self.asked.name}; nothing was to be saved.")
        # Not through a stream: this may have interrupted somebody who writes to it.
        with contextlib.suppress(OSError):
            os.write(2, f"vitbase: {self.asked.name}: saving; once more stops at once\n".encode())


_requests = _Requests()


def asked() -> signal.Signals | None:
    """Return the signal by which this process was asked to stop, if it was."""
    return _requests.asked


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Answer signals in here, but for those that are ignored, as nohup and shells ask for some."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests.asked = None
    before = {
        number: signal.signal(number, _requests.take)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests.asked = None


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Promise to look at :func:`asked` often in here, and to raise :class:`Stopped` then."""
    _requests.will_look = True
    try:
        yield
    finally:
        _requests.will_look = False
