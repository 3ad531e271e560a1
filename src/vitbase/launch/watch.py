"""What servers tell each other while their ranks run: that they live, are done, or have failed.

torchrun alone says nothing to the other servers when a rank has failed for good, so they wait for
it until their own time-outs. Here it is told through the store by which the servers meet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousTimeoutError,
)

from vitbase._version import __version__
from vitbase.errors import LaunchError
from vitbase.files import parse_json
from vitbase.launch.meeting import Seal

_BEAT_SECONDS = 1.0
# Long enough for a server that swaps or a switch that restarts, within the promised minute.
_SILENCE_SECONDS = 40.0
# Until every other server has heard of a failure: a few beats.
_PARTING_SECONDS = 3.0
# For the others to end their ranks (torchrun kills them after 30 s) before the store goes.
_FAREWELL_SECONDS = 35.0
# For a server that listens already to say its first word.
ANSWER_SECONDS = 10.0
_ROOM = "vitbase"
_SILENT = f"{_ROOM}/silent"


@dataclasses.dataclass(frozen=True)
class Failure:
    """The end of a rank or a server before its time.

    The message continues what `who` begins: ": out of memory", " was killed by SIGSEGV". Who hangs
    is told by others, which ended themselves: the cause of whatever else has failed.
    """

    who: str
    message: str
    time: float
    is_mistake: bool = False
    trace: str = ""
    is_hang: bool = False

    @property
    def order(self) -> tuple[bool, float]:
        """By which the first of several is the cause of the others."""
        return not self.is_hang, self.time

    def raise_(self) -> NoReturn:
        error = LaunchError(*f"{self.who}{self.message}".split("\n"))
        if self.trace:
            error.add_note(self.trace)  # shown by --debug
        raise error


class Watch:
    """Tells the other servers that this one lives or why it ended, and learns the same of them.

    Each server counts up a number of its own in the store. The first server watches that all
    numbers move; the others notice if the store, which is on the first, is gone.
    """

    def __init__(
        self, host: str, port: int, addresses: Sequence[str], server: int, seal: Seal
    ) -> None:
        self.verdict: Failure | None = None
        self._addresses, self._server, self._seal = addresses, server, seal
        self._silent: set[int] = set()
        # A connection of its own: the agent's may be in use for minutes, waiting for others.
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitbase-watch", daemon=True)

    def start(self, run_id: str) -> None:
        """Join the servers. Raises: LaunchError if another has another table or version."""
        mine = f"vitbase {__version__}, {run_id}"
        key = f"{_ROOM}/start"
        if self._server == 0:
            self._store.set(key, self._seal.close(mine, key))
        else:
            # get would wait minutes for a store that is another program's, deaf to signals.
            deadline = time.monotonic() + ANSWER_SECONDS
            while not self._store.check([key]) and time.monotonic() < deadline:
                time.sleep(0.05)
            known = self._store.check([key])
            first = "not `vitbase launch`"
            if known:
                first = self._seal.open(self._store.get(key), key)
            if first != mine:
                raise LaunchError(
                    f"This server ({mine}) and the first ({first}) do not fit: give both the same "
                    f"rank table and the same version of vitbase."
                )
        self._store.add(self._beat(self._server), 1)
        self._thread.start()

    def stop(self) -> None:
        """Leave: no failure, from here on. The first server, which has the store, leaves last."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with contextlib.suppress(DistError, RuntimeError):
            self._store.add(self._done(self._server), 1)
            others = set(range(len(self._addresses))) - self._silent
            came = [i for i in others if self._store.add(self._beat(i), 0)]
            while self._server == 0 and time.monotonic() < deadline:
                if self._store.check([self._done(i) for i in came]):
                    break
                time.sleep(0.1)

    def await_all(self) -> None:
        """Wait until the ranks of every server are done. Raises: LaunchError if some fail."""
        self._store.set(self._finished(self._server), "")
        everyone = [self._finished(i) for i in range(len(self._addresses))]
        while not self._store.check(everyone):
            if self.verdict is not None:
                self.verdict.raise_()
            time.sleep(0.1)

    def part(self, failures: Sequence[Failure]) -> list[Failure]:
        """Tell the others why this server ends; return its failures and theirs."""
        with contextlib.suppress(DistError, RuntimeError):
            self._tell(f"{_ROOM}/failure/{self._server}", failures)
            self._ended.wait(_PARTING_SECONDS)
            return self._read_failures()
        return list(failures)

    def explain(self, error: Exception, timeout: int) -> None:
        """Raise LaunchError for a rendezvous that failed, if the cause is known."""
        if self.verdict is None and not isinstance(error, RendezvousTimeoutError):
            time.sleep(2 * _BEAT_SECONDS)  # the watch may be about to learn it
        if self.verdict is not None:
            self.verdict.raise_()
        with contextlib.suppress(DistError, RuntimeError):
            if isinstance(error, RendezvousClosedError):
                raise LaunchError(
                    "The other servers have ended already. Start all of them again."
                ) from error
            absent = [
                address
                for i, address in enumerate(self._addresses)
                if self._store.add(self._beat(i), 0) == 0
            ]
            if absent:
                raise LaunchError(
                    f"{', '.join(absent)} did not come within {timeout} s; "
                    f"{len(self._addresses) - len(absent)} of {len(self._addresses)} servers are "
                    f"here. Start the same command on every server of the rank table."
                ) from error

    def _beat(self, server: int) -> str:
        return f"{_ROOM}/beat/{server}"

    def _done(self, server: int) -> str:
        return f"{_ROOM}/done/{server}"

    def _finished(self, server: int) -> str:
        return f"{_ROOM}/finished/{server}"

    def _tell(self, key: str, failures: Sequence[Failure]) -> None:
        text = json.dumps([dataclasses.asdict(failure) for failure in failures])
        self._store.set(key, self._seal.close(text, key))
        self._store.add(f"{_ROOM}/failed", 1)

    def _read_failures(self) -> list[Failure]:
        keys = [f"{_ROOM}/failure/{i}" for i in range(len(self._addresses))]
        found = [key for key in [*keys, _SILENT] if self._store.check([key])]
        try:
            told = [self._seal.open(self._store.get(key), key) for key in found]
            return [Failure(**failure) for listed in told for failure in parse_json(listed)]
        except LaunchError as error:
            return [Failure("", str(error), time.time())]
        except (ValueError, TypeError):
            message = " says what no server of a launch says"
            return [Failure("something that reaches the port", message, time.time())]

    def _run(self) -> None:
        seen = {i: (0, time.monotonic()) for i in range(len(self._addresses))}
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                self._store.add(self._beat(self._server), 1)
                if self._store.add(f"{_ROOM}/failed", 0):
                    failures = self._read_failures()
                    self.verdict = min(failures, key=lambda failure: failure.order)
                    return
                if self._server == 0:
                    self._look_for_silence(seen)
            except (DistError, RuntimeError):
                self.verdict = Failure(
                    f"server {self._addresses[0]}", " is gone: the connection is lost", time.time()
                )
                return

    def _look_for_silence(self, seen: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for i in range(1, len(self._addresses)):
            beat = self._store.add(self._beat(i), 0)
            if beat != seen[i][0]:
                seen[i] = (beat, now)
            elif beat and now - seen[i][1] > _SILENCE_SECONDS:
                if not self._store.check([self._done(i)]):
                    self._silent.add(i)
                    message = f" has not been heard of for {_SILENCE_SECONDS:.0f} s"
                    silent = Failure(f"server {self._addresses[i]}", message, time.time())
                    self._tell(_SILENT, [silent])
                seen[i] = (0, now)
