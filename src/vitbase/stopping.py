"""Signals that ask a run to end: answered where nothing is lost.

A cluster that takes its machines back, a person's Ctrl-C, a terminal that is closed: the run saves
what it has at the end of the update, and ends with a code of its own. Before its first update there
is nothing to save, and it ends at once, as it does at a second signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
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


_SECONDS_OF_ONE_REQUEST = 1.0
_SECONDS_FOR_ALL = 0.5


class _Requests:
    """What this process was asked, which its main thread may answer later."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.will_look = False
        self._since = 0.0

    def take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is not None:
            # A cluster may tell every process of a job, and a launcher its ranks once more.
            if now - self._since > _SECONDS_OF_ONE_REQUEST:
                os._exit(128 + number)
            return
        self.asked, self._since = signal.Signals(number), now
        if not self.will_look:
            if os.environ.get("WORLD_SIZE", "1") != "1":
                # The others are asked one after the other. Who misses this rank before its turn
                # would take that for a failure.
                time.sleep(_SECONDS_FOR_ALL)
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
    _requests.asked, _requests.will_look = None, False
    before = {
        number: signal.signal(number, _requests.take)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    hook = sys.unraisablehook

    def retry(lost: sys.UnraisableHookArgs) -> None:
        # A signal may come while Python runs a finalizer, whose exceptions it drops: ask again.
        if not isinstance(lost.exc_value, Stopped):
            hook(lost)
        elif _requests.asked is not None:
            number, _requests.asked = _requests.asked, None
            again = threading.Timer(_SECONDS_TO_RETRY, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()  # not from here, where an exception would be dropped once more

    sys.unraisablehook = retry
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests.asked = None


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let what asks to stop end this process by itself in here, where it may wait without end.

    A rank that waits for another, which was asked while it loaded and is gone, hears nothing else.
    """
    ours = [number for number in SIGNALS if signal.getsignal(number) == _requests.take]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _requests.take)


def end_with(parent: int) -> None:
    """Let this process be asked to stop when its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_SAVE)  # it may hang, waiting for others that are gone, too
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="vitbase-parent", daemon=True).start()


_SECONDS_TO_RETRY = 0.05
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_SAVE = 600.0


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Promise to look at :func:`asked` often in here, and to raise :class:`Stopped` then.

    Once that is raised, be it that another rank was asked, a signal asks for nothing new.
    """
    _requests.will_look = True
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        _requests.will_look = False
        raise
    _requests.will_look = False
