"""Where a run stands, told by whoever makes progress; training/hangs.py watches that it moves.

Telling costs less than a microsecond, and nobody need listen: whoever reads images or computes
features tells it without knowing of a run.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

HUNG = 70
"""The exit code of a process that ended itself because nothing moved: EX_SOFTWARE."""


@dataclasses.dataclass
class Standing:
    """The last that was told.

    Attributes:
      what: what is being done, to follow "in": "update 8, which waits for its images".
      count: of places so far; ranks that do the same have the same count at the same place.
      seldom: whether it may take longer than what is done all the time.
      details: names the images that are being worked on, for a report; may take its time.
      moment: of the last sign of life, by the monotonic clock.
    """

    what: str = "the start"
    count: int = 0
    seldom: bool = True
    details: Callable[[], str] | None = None
    moment: float = dataclasses.field(default_factory=time.monotonic)


_standing = Standing()
_reading: dict[int, Callable[[], str]] = {}  # thread -> the image it reads


def standing() -> Standing:
    """Return where this process stands."""
    return _standing


def stands_at(what: str, *, seldom: bool = False, details: Callable[[], str] | None = None) -> None:
    """Tell that a place is reached. All ranks tell the same places, in the same order."""
    global _standing  # noqa: PLW0603 (of the process, which does one thing at a time)
    _standing = Standing(what, _standing.count + 1, seldom, details)


def is_alive() -> None:
    """Tell that work goes on at the same place."""
    _standing.moment = time.monotonic()


def reads(describe: Callable[[], str]) -> None:
    """Tell what this thread begins to read; `describe` names it if it never comes to an end."""
    _reading[threading.get_ident()] = describe


def has_read() -> None:
    """Tell that this thread has read what it began to."""
    _reading.pop(threading.get_ident(), None)


def being_read() -> list[Callable[[], str]]:
    """Return what names the images that are being read, by any thread."""
    return list(_reading.values())
