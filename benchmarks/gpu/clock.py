"""Jobs in the order of their importance, for as long as there is time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from findings import Findings

from vitbase.errors import VitbaseError

Job = tuple[str, Callable[[], None]]


class OutOfTimeError(BaseException):
    """The time that was given is over; no mere exception, which a compiler might take in."""


def work_off(
    findings: Findings, jobs: list[Job], seconds: float, *, after_each: Callable[[], None]
) -> None:
    """Do jobs in order until the time is over: what is left then is named, and what fails."""

    def ring(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    left = dict(jobs)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
        for name, job in jobs:
            started = time.perf_counter()
            try:
                job()
            except (RuntimeError, ValueError, OSError, VitbaseError) as error:
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                findings.leave_out(name, text[:300])
            after_each()
            findings.show(name)
            del left[name]
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    except OutOfTimeError:
        for number, name in enumerate(left):
            findings.leave_out(name, "no time was left" if number else "cut off: the time is over")
            findings.show(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
