"""Signs of life that ranks give each other, without a collective, so that an absent one is known.

Each rank counts up a number of its own in the store by which they met, and writes where it stands
beside it. A thread of its own does so: it goes on while the main thread waits in a collective, and
stops with a process that is stopped. Nobody reads the others' before it has to ask itself why
nothing moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time

from torch.distributed import DistError, Store  # type: ignore[attr-defined]

from vitbase.console import printable
from vitbase.pulse import standing
from vitbase.rendezvous import beside


@dataclasses.dataclass(frozen=True)
class Heard:
    """What was last heard of a rank.

    Attributes:
      beats: counted by it.
      count: of the places that it has been to, as `pulse` counts them.
      quiet: seconds since its last sign of life, when it beat.
      process, host: where it is.
      what: where it stands.
      moment: since when it was this beat, by this process's clock.
    """

    beats: int
    count: int
    quiet: float
    process: int
    host: str
    what: str
    moment: float


class Hearts:
    """The signs of life of this rank, and, once it listens, those of the others.

    Args:
      store: in which they are; it is opened once more, as the process group uses it, too.
      every: seconds between two signs.
    """

    def __init__(self, store: Store, rank: int, num_ranks: int, every: float) -> None:
        self.rank, self.num_ranks, self._every = rank, num_ranks, every
        self.heard: dict[int, Heard] = {}
        self.answered = time.monotonic()
        """When the store last answered."""
        self.since = time.monotonic()
        """Since when the others are heard."""
        self._store, self._beats = beside(store, 10 * every), 0
        self._listens, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitbase-heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, unless the store is silent: then the thread ends with the process."""
        self._ended.set()
        self._thread.join(timeout=5)

    def hear(self, whether: bool) -> None:
        """Begin, or stop, to hear the others."""
        if whether != self._listens.is_set():
            (self._listens.set if whether else self._listens.clear)()
            self.heard, self.since = {}, time.monotonic()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(DistError, RuntimeError):
                self._beat()
                if self._listens.is_set():
                    for rank in range(self.num_ranks):
                        self._hear(rank)
                else:
                    self._store.check([_key(self.rank)])  # a beat alone waits for no answer
                self.answered = time.monotonic()
            if self._ended.wait(self._every):
                return

    def _beat(self) -> None:
        self._beats += 1
        here = standing()
        quiet = time.monotonic() - here.moment
        numbers = (self._beats, here.count, round(quiet, 1), os.getpid())
        text = "\t".join(map(str, (*numbers, socket.gethostname(), here.what)))
        self._store.set(_key(self.rank), text)

    def _hear(self, rank: int) -> None:
        if not self._store.check([_key(rank)]):
            return
        heard = _parsed(self._store.get(_key(rank)))
        before = self.heard.get(rank)
        if heard is not None and (before is None or before.beats != heard.beats):
            self.heard[rank] = heard


def _key(rank: int) -> str:
    return f"vitbase/heart/{rank}"


def _parsed(raw: bytes) -> Heard | None:
    """Read what a rank has written; None if it is none of ours that wrote it."""
    try:
        beats, count, quiet, process, host, what = raw.decode().split("\t")
        numbers = int(beats), int(count), float(quiet), int(process)
    except ValueError:
        return None
    return Heard(*numbers, printable(host)[:100], printable(what)[:200], time.monotonic())
