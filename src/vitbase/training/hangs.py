"""A run that stands still is reported, and ends; a launcher starts it again.

Without this, a rank that hangs holds up all others in their next collective until torch's own
time-out, which tells no cause, and a single process waits for ever. What counts as moving, `pulse`
is told; what others do, hearts.py hears; where no thread can run, outside.py ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator

from vitbase.console import spoken_seconds, warn
from vitbase.errors import HungError, first_few, tell_launcher
from vitbase.pulse import HUNG, Standing, being_read, is_alive, standing, stands_at
from vitbase.rendezvous import is_with_first_rank
from vitbase.runtime import Runtime
from vitbase.training.hearts import Heard, Hearts
from vitbase.training.outside import DUMP, Outside

SELDOM = 3.0
"""Times the patience for what happens seldom, and may take longer: starts, compiling, saves."""

_GOES_ON = "The same command goes on from the last checkpoint."
_SECONDS_TO_NAME = 2.0  # images: who names them may be what hangs
_SECONDS_TO_REPORT = 20.0  # who reads our errors may have stopped reading
_MOST_PARTING = 10.0
_START_OF_THREADS = re.compile(r"threading\.py.* in (_bootstrap|_bootstrap_inner|run)\n")
_OWN_THREADS = frozenset({"vitbase-watch", "vitbase-heart", "vitbase-report", "vitbase-name"})


@contextlib.contextmanager
def watching(hang_minutes: float, runtime: Runtime) -> Iterator[None]:
    """End this process, with a report, if nothing moves in here for so many minutes; 0: never."""
    stands_at("the start", seldom=True)
    if not hang_minutes:
        yield
        return
    # Whoever watches a run may ask any rank for its stacks: kill -USR2.
    faulthandler.register(DUMP, file=2, all_threads=True)
    watch = Watch(60 * hang_minutes, runtime)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        faulthandler.unregister(DUMP)


class Watch:
    """Looks, in a thread of its own, whether the run moves.

    Args:
      patience: seconds without a sign of life.
    """

    def __init__(self, patience: float, runtime: Runtime) -> None:
        self.patience, self.rank, self.num_ranks = patience, runtime.rank, runtime.num_ranks
        self._tick = min(1.0, patience / 20)
        self._hearts: Hearts | None = None
        if runtime.store is not None:
            every = min(15.0, patience / 20)
            self._hearts = Hearts(runtime.store, self.rank, self.num_ranks, every)
        self._outside: Outside | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitbase-watch", daemon=True)

    def start(self) -> None:
        if self._hearts is not None:
            self._hearts.start()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._outside is not None:
            self._outside.close()
        if self._hearts is not None:
            self._hearts.stop()

    @property
    def _who(self) -> str:
        return "the run" if self.num_ranks == 1 else f"rank {self.rank}"

    def _run(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            if now - before > self._tick + self.patience / 4:
                # This thread did not run either: the process was stopped, and goes on.
                is_alive()
            before = now
            if self._outside is None:  # not before: a run of a second goes without
                self._outside = Outside(self._who, self.patience)
            self._outside.touch()
            here = standing()
            quiet = now - here.moment
            if self._hearts is not None:
                self._hearts.hear(quiet > self.patience / 2)
            # A rank that is silent for so long does nothing that may take longer; one that loads
            # or compiles may well leave out a few beats.
            longer = SELDOM if here.seldom and not self._silent(self.patience) else 1
            if quiet > self.patience * longer and not self._another_works():
                self._end(here, quiet)

    def _end(self, here: Standing, quiet: float) -> None:
        def report() -> None:
            try:
                self._report(here, quiet)
            except Exception:  # whatever it is: this process ends
                traceback.print_exc()

        within(_SECONDS_TO_REPORT, report, "vitbase-report")
        # The others are about to report, too; the launcher ends all with the first.
        self._ended.wait(min(_MOST_PARTING, max(0.5, self.patience / 10)))
        os._exit(HUNG)

    def _report(self, here: Standing, quiet: float) -> None:
        error = self.cause(here, quiet)
        lines = [
            f"vitbase: {self._who} has not moved for {spoken_seconds(quiet)}, in {here.what}",
            *(f"vitbase: {line}" for line in self._images(here)),
        ]
        if self.num_ranks > 1:
            lines.append(f"vitbase: {error}")
        lines.append(f"vitbase: the stacks of all threads of {self._who}, innermost call last:")
        warn("\n".join([*lines, *_stacks()]))
        if not tell_launcher(error):
            warn(f"vitbase: error: {error}")

    def _images(self, here: Standing) -> Iterator[str]:
        """Name the images that are being worked on."""
        for title, name in (
            ("the batch under way", here.details),
            ("being read", lambda: first_few([name() for name in being_read()])),
        ):
            if name is not None:
                names = within(_SECONDS_TO_NAME, name, "vitbase-name")
                if names is None:
                    yield f"{title}: it does not tell its name"
                elif names:
                    yield f"{title}: {names}"

    def _silent(self, limit: float) -> dict[int, Heard | None]:
        """Return the ranks that do not answer for so many seconds, and what was last heard."""
        hearts, now = self._hearts, time.monotonic()
        if hearts is None or not hearts.heard:
            return {}
        others = {rank: hearts.heard.get(rank) for rank in range(self.num_ranks)}
        return {
            rank: heard
            for rank, heard in others.items()
            if rank != self.rank and now - (heard.moment if heard else hearts.since) > limit
        }

    def _another_works(self) -> bool:
        """Whether this rank waits for one that goes on, as the first one may for all of them."""
        heard = dict(self._hearts.heard) if self._hearts is not None else {}
        silent = self._silent(self.patience / 4)
        return any(
            rank not in {*silent, self.rank} and other.quiet < self.patience / 4
            for rank, other in heard.items()
        )

    def cause(self, here: Standing, quiet: float) -> HungError:
        """Say who holds the run up, as far as it is known."""
        own = f"{here.what}, for {spoken_seconds(quiet)}"
        if self.num_ranks == 1:
            return HungError("the run", f" stands still in {own}. {_GOES_ON}")
        waits = f"Rank {self.rank} waits in {own}. {_GOES_ON}"
        hearts = self._hearts
        if hearts is None:
            return self._unknown(own, "the ranks of this engine cannot ask each other")
        if time.monotonic() - hearts.answered > self.patience / 4:
            if self.rank and is_with_first_rank():
                return HungError("rank 0", f" stands still: it does not answer. {waits}")
            return self._unknown(own, "where they met does not answer")
        if silent := self._silent(self.patience / 4):
            return HungError(_named(silent), f" {_describe_silence(silent)} {waits}")
        heard = dict(hearts.heard)  # which its thread adds to
        heard.pop(self.rank, None)
        counts = {self.rank: here.count} | {rank: other.count for rank, other in heard.items()}
        last = min(counts.values())
        behind = [rank for rank, count in counts.items() if count == last]
        if len(behind) == len(counts):
            return self._unknown(own, "all of them answer, and stand at the same place")
        if self.rank in behind:
            further = max(heard.values(), key=lambda other: other.count).what
            text = f" {_stand(behind)} still in {own}, while others are in {further}. {_GOES_ON}"
            return HungError(_named(behind), text)
        there = heard[behind[0]].what
        return HungError(_named(behind), f" {_stand(behind)} still in {there}. {waits}")

    def _unknown(self, own: str, why: str) -> HungError:
        text = f" stands still in {own}. Which rank holds it up is not known: {why}. {_GOES_ON}"
        return HungError(self._who, text)


def _named(ranks: Collection[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {first_few([str(rank) for rank in sorted(ranks)])}"


def _stand(ranks: Collection[int]) -> str:
    return "stand" if len(ranks) > 1 else "stands"


def _describe_silence(silent: dict[int, Heard | None]) -> str:
    """Say what was last known of ranks that are not heard of."""
    known = next((heard for heard in silent.values() if heard is not None), None)
    if known is None:
        return f"{_stand(silent)} still: nothing was ever heard of {_them(silent)}."
    each = "its process" if len(silent) == 1 else "the first one's process"
    return (
        f"{_stand(silent)} still: no sign of life comes from {_them(silent)}. When last "
        f"heard of, {each} "
        f"{known.process} on {known.host} was in {known.what}."
    )


def _them(ranks: Collection[int]) -> str:
    return "them" if len(ranks) > 1 else "it"


def _stacks() -> Iterator[str]:
    """Write down what every thread of Python does, but for those of the watch itself."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    alike: dict[str, list[str]] = {}  # most threads of a loader wait in the same line
    for ident in sorted(frames, key=lambda ident: names.get(ident) != "MainThread"):
        name = names.get(ident, f"number {ident}")
        if name not in _OWN_THREADS:
            entries = traceback.format_stack(frames[ident])
            inside = [entry for entry in entries if not _START_OF_THREADS.search(entry)]
            alike.setdefault("".join(inside).rstrip("\n"), []).append(name)
    for stack, threads in alike.items():
        yield f"thread {', '.join(threads)}:\n{stack}"


def within(seconds: float, make: Callable[[], str | None], name: str) -> str | None:
    """Return what is made in a thread of its own; None if it is not there in time, or fails."""
    made: list[str | None] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            made.append(make())

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return made[0] if made else None
