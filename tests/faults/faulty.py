"""A disk that fails, and a machine that dies, at the n-th touch: without a file system of its own.

`install` wraps what this process changes files with, below one folder: every such call is a touch,
with a name ("open", "write", "fsync", "rename", "remove", "mkdir", "rmdir") and two sides, before
and after. A :class:`Plan` says at which one what happens. The writer of checkpoints is a process of
its own: it finds its plan in the environment (`shim/sitecustomize.py`).
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

PLAN = "VITBASE_TEST_FAULTS"
SHIM = Path(__file__).parent / "shim"
TOUCHES = ("open", "write", "fsync", "rename", "remove", "mkdir", "rmdir")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens, and when.

    Attributes:
      folder: only what is touched below it counts.
      action: "kill" (this process and all of its group), "kill-self", the name of a signal
        ("SIGTERM", to this process), or the name of an error ("ENOSPC").
      at: the number of the touch, from 1, of those that match.
      touch: a name of TOUCHES, or "" for any.
      side: "before" or "after"; an error comes before.
      more: whether all later touches that match fail, too, as on a disk that stays full.
      log: a file to which the name of a point that was hit is appended.
    """

    folder: str
    action: str
    at: int
    touch: str = ""
    side: str = "before"
    more: bool = False
    log: str = ""

    def for_the_writer(self, patch: pytest.MonkeyPatch) -> None:
        """Let the writers that this process starts fail as planned."""
        patch.setenv(PLAN, json.dumps(dataclasses.asdict(self)))
        patch.syspath_prepend(SHIM.parent)
        patch.syspath_prepend(SHIM)


class Disk:
    """Counts touches, and does what the plan says."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = os.path.realpath(plan.folder)
        self.counts: Counter[str] = Counter()
        self.matched = 0

    def is_below(self, path: Any) -> bool:
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                return os.readlink(f"/proc/self/fd/{path}").startswith(self.folder)
            return False
        full = os.path.abspath(os.fsdecode(path))
        return full == self.folder or full.startswith(self.folder + os.sep)

    def touch(self, name: str, side: str) -> None:
        plan = self.plan
        if side == "before":
            self.counts[name] += 1
        if side != plan.side or plan.touch not in {"", name}:
            return
        self.matched += 1
        if self.matched == plan.at or (plan.more and self.matched > plan.at):
            if plan.log:
                with self.original_open(plan.log, "a", encoding="utf-8") as file:
                    file.write(f"{side} {name}\n")
            if plan.action == "kill":
                os.killpg(0, signal.SIGKILL)
            if plan.action == "kill-self":
                os.kill(os.getpid(), signal.SIGKILL)
            if plan.action.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, plan.action))
                return
            number = getattr(errno, plan.action)
            raise OSError(number, os.strerror(number))

    original_open = staticmethod(open)


class _File:
    """An open file whose writes are touches."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.touch("write", "before")
        done = self._file.write(data)
        self._disk.touch("write", "after")
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def install(plan: Plan) -> tuple[Disk, Callable[[], None]]:
    """Wrap what changes files. Returns: the disk, and what undoes it."""
    disk = Disk(plan)
    undo: list[Callable[[], None]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        setattr(owner, name, value)
        undo.append(lambda: setattr(owner, name, before))

    def wrap(function: str, name: str) -> None:
        original = getattr(os, function)

        def touched(path: Any, *args: Any, **options: Any) -> Any:
            # What has a dir_fd is inside a tree that is being removed.
            if not (options.get("dir_fd") is not None or disk.is_below(path)):
                return original(path, *args, **options)
            disk.touch(name, "before")
            result = original(path, *args, **options)
            disk.touch(name, "after")
            return result

        put(os, function, touched)

    for function, name in (
        *(("fsync", "fsync"), ("replace", "rename"), ("rename", "rename"), ("mkdir", "mkdir")),
        *(("unlink", "remove"), ("remove", "remove"), ("rmdir", "rmdir")),
    ):
        wrap(function, name)

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(file, int) or not disk.is_below(file):
            return Disk.original_open(file, mode, *args, **options)
        disk.touch("open", "before")
        made = _File(Disk.original_open(file, mode, *args, **options), disk)
        disk.touch("open", "after")
        return made

    put(builtins, "open", opened)
    put(io, "open", opened)

    def restore() -> None:
        while undo:
            undo.pop()()

    return disk, restore


@contextlib.contextmanager
def failing(plan: Plan) -> Iterator[Disk]:
    """Let files fail as planned, in here."""
    disk, restore = install(plan)
    try:
        yield disk
    finally:
        restore()


def install_in_writer() -> None:
    """Be called at the start of any Python: fails as planned if it is the writer."""
    text = os.environ.get(PLAN)
    if text and "vitbase.runs.writer" in sys.orig_argv:
        install(Plan(**json.loads(text)))
