"""One writer of a run folder: a file that says who it is, and that they live.

It is made by `O_EXCL`, which network file systems keep, and touched every few seconds. Of a process
on this machine it is known whether it lives; of one elsewhere, its file tells by not being touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from vitbase.disk import find_strange, open_regular
from vitbase.errors import CheckpointError
from vitbase.files import parse_json

LOCK_FILE = "run.lock"
_BEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
"""After so long without a beat a writer on another machine is taken for dead."""
_LONGEST = 10_000
_LONGEST_SHOWN = 100
"""Letters of what a file says of its writer."""


class RunLock:
    """The right to write into a folder, from :meth:`take` until :meth:`release`."""

    def __init__(self, folder: Path, name: str = LOCK_FILE) -> None:
        self.path = folder / name
        self._content = b""  # of the file, while the right is held
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the right, or that of a writer who has died.

        Raises: CheckpointError naming who has it; OSError if the folder cannot be written.
        """
        self._make()
        self._thread = threading.Thread(target=self._beat, name="vitbase-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the right back, if it was taken, and nobody took it for a dead one's since."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
        if self._content:
            with contextlib.suppress(OSError):
                if _read(self.path) == self._content:
                    self.path.unlink()
            self._content = b""

    def _make(self) -> None:
        content = (json.dumps(_this_process()) + "\n").encode()
        for _ in range(10):  # others may take and give it back meanwhile
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._remove_if_dead()
                continue
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            self._content = content
            return
        raise CheckpointError(f"Another command keeps taking {self.path}: try again.")

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _remove_if_dead(self) -> None:
        """Remove the file of a writer who is gone.

        Raises: CheckpointError if they live, or something else stands in the place of the file.
        """
        strange = find_strange(self.path)
        if strange not in {None, "is missing"}:
            raise CheckpointError(
                f"{self.path} {strange}, where a run says who writes it: remove it."
            )
        try:
            content = _read(self.path)
            owner = _parse_owner(content)
            lives = self._lives(owner)
        except FileNotFoundError:
            return
        if lives:
            here = owner.get("machine") == _machine()
            since = str(owner.get("since", "an unknown time"))[:_LONGEST_SHOWN]
            wait = "" if here else f", wait {_STALE_SECONDS:.0f} s if that machine is gone"
            raise CheckpointError(
                f"{self.path.parent} is being written by process "
                f"{str(owner.get('process', '?'))[:_LONGEST_SHOWN]} on "
                f"{str(owner.get('host', 'another machine'))[:_LONGEST_SHOWN]}, since {since}. "
                f"Stop that one "
                f"first{wait}, or give another --output_dir."
            )
        # Only who holds the right to remove this very content may remove it: of two who found it
        # dead, the slower one would otherwise remove the new one of the faster. Whoever dies
        # holding that right leaves a file that is dead in turn, and is removed in the same way.
        remover = RunLock(self.path.parent, f".{LOCK_FILE}-{hashlib.sha256(content).hexdigest()}")
        remover._make()
        try:
            with contextlib.suppress(FileNotFoundError):
                if _read(self.path) == content and not self._lives(owner):
                    self.path.unlink()
        finally:
            remover.release()

    def _lives(self, owner: dict[str, Any]) -> bool:
        """Tell whether who the file is of lives. Raises: FileNotFoundError if it is gone."""
        if owner.get("machine") == _machine():
            return _runs(owner)
        return self._age() < _STALE_SECONDS

    def _age(self) -> float:
        """Return the seconds since the last beat, by the clock of who keeps the files."""
        probe = self.path.with_name(f".{LOCK_FILE}-{secrets.token_hex(8)}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return now - self.path.stat().st_mtime


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _start_of(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }


def _read(path: Path) -> bytes:
    """Read a lock file. Raises: FileNotFoundError if it is gone."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            return file.read(_LONGEST + 1)
    except FileNotFoundError:
        raise
    except OSError:
        return b""


def _parse_owner(content: bytes) -> dict[str, Any]:
    """Return who a lock file is of; one that says nothing is of nobody known."""
    try:
        owner = parse_json(content, longest=_LONGEST)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _runs(owner: dict[str, Any]) -> bool:
    """Tell whether the process that a lock is of is still there, and no other of its number."""
    number = owner.get("process")
    if type(number) is not int or not 1 <= number < 2**31:  # more is no process, and overflows
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return number == os.getpid() or _start_of(number) == owner.get("started")


def _start_of(process: int) -> str:
    """Return when a process began, as the kernel counts it, where it tells."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _machine() -> str:
    """Return what the numbers of processes belong to: a machine, since its start; a container."""
    told = [socket.gethostname()]
    with contextlib.suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        told.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(told)
