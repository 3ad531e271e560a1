"""Errors that a user can meet.

Each message says what is wrong, where, and what to do; the command line prints it without a
traceback and ends with exit code 2 (``--debug`` shows the traceback), or another one of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Self


class VitbaseError(Exception):
    """Base of every error that is the user's to mend, not a bug of this package.

    Each argument is a line of its message: a line end inside, which a name may have, is escaped, so
    that a name does not say a line of its own.
    """

    exit_code = 2
    is_everywhere = False
    """Whether every rank of a run raises it: then the first one tells."""
    may_pass = False
    """Whether it is a fault that may pass, not a mistake: then a launcher tries again."""

    def __str__(self) -> str:
        return "\n".join(str(line).replace("\n", "\\n") for line in self.args)

    def everywhere(self) -> Self:
        """Mark that every rank raises this error. Returns: itself, to be raised."""
        self.is_everywhere = True
        return self


class ConfigError(VitbaseError):
    """An option is unknown, has the wrong type, or contradicts another one."""


class DataError(VitbaseError):
    """A data set is missing, malformed, or does not fit the run."""


class ImageError(DataError):
    """One image cannot be read. Training may skip it, counted, up to ``max_bad_images``."""


class UnreadableImagesError(DataError):
    """Some images could not be read; what was asked for is done with all others."""

    exit_code = 3


class HelperLostError(DataError):
    """A process that prepares images is gone."""

    may_pass = True


class WeightsError(VitbaseError):
    """A weights file is unreadable, or does not fit the model."""


class CheckpointError(VitbaseError):
    """A run folder or checkpoint is damaged, missing, or belongs to another run."""


class DeviceError(VitbaseError):
    """The requested device or precision is not available on this machine."""


class RankLostError(DeviceError):
    """Another rank is gone, or never came."""

    may_pass = True


class HungError(RankLostError):
    """A rank, or the run, stands still. Its text is `who`, and `what` of it.

    Args:
      who: the rank that holds the others up: "rank 1".
      what: continues it: " stands still in update 8: …".
    """

    def __init__(self, who: str, what: str) -> None:
        super().__init__(f"{who[:1].upper()}{who[1:]}{what}")
        self.who, self.what = who, what


class ExportError(VitbaseError):
    """A model cannot be written in a format, or is further from itself there than its bound."""


class LaunchError(VitbaseError):
    """A rank table is wrong, a server does not come, or a rank has ended."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def first_few(names: Sequence[str], most: int = 3, *, count: bool = True) -> str:
    """Return the first of some names, and how many there are, if they are more."""
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + ", …" + (f" ({len(names)} in all)" if count else "")


def shown(value: object, longest: int = 300) -> str:
    """Return a value as Python writes it, cut where it is long; even one that it cannot write."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return f"a {type(value).__name__} of no sensible size"
    return text if len(text) <= longest else f"{text[:longest]}…"


LAUNCHED = "VITBASE_LAUNCHED"
"""In the environment of ranks: the process that started them, and prints what ended them, once."""


def tell_launcher(error: BaseException) -> bool:
    """Leave an error where torchrun looks for it; tell whether the launcher will print it."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None:
        return False
    # Further lines of a library's message are indented: a name in it may hold what looks like ours.
    words = str(error).replace("\n", "\n  ")
    text = str(error) if isinstance(error, VitbaseError) else f"{type(error).__name__}: {words}"
    now = time.time()
    told: dict[str, object] = {
        "message": text,
        "extraInfo": {"py_callstack": traceback.format_exc(), "timestamp": str(int(now))},
        # Ours: which of two ranks failed first is decided within a second.
        "time": now,
        "is_mistake": isinstance(error, VitbaseError) and not error.may_pass,
    }
    if isinstance(error, HungError):  # another than the one that tells it, perhaps
        told |= {"who": error.who, "what": error.what}
    # Whole or not at all: torchrun reads it when any rank has ended, and fails over half of one.
    beside = f"{place}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(beside, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)
        os.replace(beside, place)
        return LAUNCHED in os.environ
    return False
