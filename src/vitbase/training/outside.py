"""A process beside a rank, which ends it where its own threads cannot: none of them may run.

A call in C that never comes back and keeps the interpreter's lock stops every thread of Python, and
with them the watch in hangs.py. So the watch writes a byte now and then to a small process that
runs this file alone, and imports nothing of the package.

A timer inside would not do (`faulthandler.dump_traceback_later`): it cannot tell a rank that hangs
from one that was stopped for a night and goes on, and would end both.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

DUMP = signal.SIGUSR2
"""What makes a rank write the stacks of its threads, without the lock; faulthandler does it."""

_WHAT = (
    " stands still: for {0:.3g} s none of its threads could run, as in a call that never comes "
    "back and keeps the interpreter's lock. The same command goes on from the last checkpoint."
)
_SECONDS_TO_DUMP = 1.0
_TOLD = "TORCHELASTIC_ERROR_FILE"


class Outside:
    """The process beside this one.

    Args:
      who: this one, in what is said of it.
      seconds: without a byte, until it is ended.
    """

    def __init__(self, who: str, seconds: float) -> None:
        words = [sys.executable, "-I", "-S", __file__, str(os.getpid()), who, str(seconds)]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # no more processes: then it is not there
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                # Nobody is to take it for a rank, by its variables or its folder.
                env={name: os.environ[name] for name in ("PATH", _TOLD) if name in os.environ},
                cwd="/",
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)

    def touch(self) -> None:
        """Tell that threads run."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone, or itself stopped with a full pipe
                os.write(self._process.stdin.fileno(), b".")

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


def _watch(parent: int, who: str, seconds: float) -> None:
    tick, quiet = seconds / 20, 0
    while quiet < 20:
        if select.select([0], [], [], tick)[0]:
            if not os.read(0, 4096):
                return  # the parent has ended, or does without
            quiet = 0
            continue
        quiet += 1
        if quiet == 20 and _is_stopped(parent):
            quiet = 0  # by somebody who will let it go on
    what = _WHAT.format(seconds)
    sys.stderr.write(f"vitbase: {who}{what}\nvitbase: the stacks of all threads:\n")
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.kill(parent, DUMP)
        time.sleep(_SECONDS_TO_DUMP)
        _tell_launcher(who, what)
        os.kill(parent, signal.SIGKILL)


def _is_stopped(process: int) -> bool:
    """Whether a process was stopped by a signal; False where the system does not tell."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(process)], check=False, capture_output=True, timeout=10
        )
        return asked.stdout.strip()[:1] in {b"T", b"t"}
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in {b"T", b"t"}
    return False


def _tell_launcher(who: str, what: str) -> None:
    """Leave the cause where torchrun looks for it, as `errors.tell_launcher` does."""
    place = os.environ.get(_TOLD)
    if place is not None:
        now = time.time()
        told = {
            "message": f"{who}{what}",
            "extraInfo": {"py_callstack": "", "timestamp": str(int(now))},
            **{"time": now, "is_mistake": False, "who": who, "what": what},
        }
        beside = f"{place}.{os.getpid()}"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)
        os.replace(beside, place)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, not with what ends that
    _watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
