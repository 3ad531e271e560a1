"""Proves that a run goes on: killed at random updates, it ends as if nothing had been.

What `vitbase verify-resume` does, with the very commands that a user gives, in processes of their
own, which know nothing of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vitbase.console import say
from vitbase.errors import ConfigError, LaunchError, VitbaseError
from vitbase.files import parse_json
from vitbase.stopping import STOPPED
from vitbase.training.sameness import Finding, compare_runs, last_checkpoint, updates_of

TOLERANCE = 1e-5
"""By which numbers may differ at another world size: sums of floats in another order."""

_SECONDS_BETWEEN_LOOKS = 0.002
_TAIL_BYTES = 4096
_WIDTH = 26


class Process(Protocol):
    """What a run is, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int, /) -> None: ...


def start_command(words: Sequence[str], log: Path) -> Process:
    """Start a vitbase command, whose output and errors go to a file."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "vitbase", *words], stdout=output, stderr=subprocess.STDOUT
        )


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is to be done.

    Attributes:
      words: after `vitbase train`: recipe and options, without a run folder.
      folder: in which the runs are.
      kills: how often the run is killed; the last time by SIGTERM, if there are several.
      seed: of the updates at which that happens.
      other_devices: on which the run also goes on half-way, in place of its own; None: on none.
      start: starts a vitbase command.
    """

    words: tuple[str, ...]
    folder: Path
    kills: int = 3
    seed: int = 0
    other_devices: int | None = None
    start: Callable[[Sequence[str], Path], Process] = start_command

    def train(self, run: Path, *more: str) -> Process:
        words = ["train", *self.words, "--output_dir", str(run), *more]
        return self.start(words, _log_of(run))


def verify(asked: Verification) -> bool:
    """Train, kill, go on and compare; say each of it. Returns: whether it holds.

    Raises: ConfigError, LaunchError for what the uninterrupted run already cannot do.
    """
    whole, killed, moved = (asked.folder / name for name in ("whole", "killed", "moved"))
    for run in (whole, killed, moved):
        if run.exists():
            raise ConfigError(f"{run} is there already: choose another --output_dir.")
    asked.folder.mkdir(parents=True, exist_ok=True)
    code, said = _run_to_end(asked.train(whole), whole)
    if code:
        raise LaunchError(_mistake(said) or f"The run ends with code {code} by itself:\n{said}")
    total = updates_of(whole)
    _tell("uninterrupted", f"{total} updates")
    if total < 2:
        raise ConfigError("A run of one update cannot be killed inside: give more --total_steps.")
    try:
        findings = [*_kill_and_compare(asked, killed, whole, total)]
        if asked.other_devices is not None:
            findings += _move_and_compare(asked, moved, whole, total, asked.other_devices)
    except _FailedError as failed:
        findings = [Finding(failed.what, str(failed), holds=False)]
        _tell_finding(findings[0])
    holds = all(finding.holds for finding in findings)
    again = f" (--verify_seed {asked.seed} kills at the same updates)"
    say("PASS" if holds else f"FAIL{again}")
    return holds


class _FailedError(Exception):
    """A run did not go on."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__(text)
        self.what = what


def _kill_and_compare(asked: Verification, run: Path, whole: Path, total: int) -> Iterator[Finding]:
    # Not the last updates: the run would end before it is seen that they are reached.
    last = max(2, total * 3 // 4)
    choice = random.Random(asked.seed)
    points = sorted(choice.sample(range(1, last), min(asked.kills, last - 1)))
    goes_on_at, happened = None, 0
    for number, point in enumerate(points):
        is_last = number == len(points) - 1
        how = signal.SIGTERM if is_last and len(points) > 1 else signal.SIGKILL
        goes_on_at = _kill(asked.train(run), run, point, how, goes_on_at)
        if goes_on_at is None:
            break
        happened += 1
    if happened < asked.kills:
        raise ConfigError(
            f"{happened} of {asked.kills} kills came in time: the run of {total} updates is too "
            f"short, or too quick. Give more --total_steps."
        )
    _finish(asked.train(run), run, goes_on_at)
    yield from _compared(run, whole)


def _move_and_compare(
    asked: Verification, run: Path, whole: Path, total: int, devices: int
) -> list[Finding]:
    goes_on_at = _kill(asked.train(run), run, max(1, total // 2), signal.SIGTERM, None)
    if goes_on_at is None:
        raise ConfigError("The run ended before it was half done. Give more --total_steps.")
    process = asked.train(run, "--num_devices", str(devices))
    _finish(process, run, goes_on_at, f"on {devices} devices")
    return [*_compared(run, whole, tolerance=TOLERANCE)]


def _compared(run: Path, whole: Path, tolerance: float = 0.0) -> Iterator[Finding]:
    try:
        findings = compare_runs(run, whole, tolerance=tolerance)
    except (VitbaseError, OSError, ValueError) as error:
        findings = [Finding("the folders", str(error), holds=False)]
    for finding in findings:
        _tell_finding(finding)
        yield finding


def _kill(
    process: Process, run: Path, point: int, how: signal.Signals, goes_on_at: int | None
) -> int | None:
    """End a run when it has taken so many updates.

    Args:
      goes_on_at: where it should go on; None at its start.
    Returns: the updates after which it will go on; None if it ended before.
    """
    try:
        point = max(point, _last_step(run) + 1)
        while process.poll() is None and _last_step(run) < point:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if process.poll() is None and how == signal.SIGTERM:
            process.send_signal(how)
            process.wait()
    finally:
        _kill_family(process)
    said = _said(run)
    _check_place(said, goes_on_at)
    code = process.poll()
    if code == 0:
        return None
    if code not in {-signal.SIGKILL, STOPPED}:
        raise _FailedError(f"update {point}", f"the run ends with code {code} by itself:\n{said}")
    there, here = _last_step(run), updates_of(run)
    if how == signal.SIGTERM and here != there:
        saved = f"after update {there} it was asked to stop, but saved update {here}"
        raise _FailedError(how.name, saved)
    place = last_checkpoint(run)
    _tell(f"{how.name}", f"after update {there}; goes on {f'from {here}' if place else 'anew'}")
    return here


def _finish(process: Process, run: Path, goes_on_at: int | None, how: str = "") -> None:
    code, said = _run_to_end(process, run)
    if code:
        raise _FailedError("going on", _mistake(said) or f"ends with code {code}:\n{said}")
    _check_place(said, goes_on_at)
    _tell("went on", f"to the end{f', {how}' if how else ''}")


def _check_place(said: str, goes_on_at: int | None) -> None:
    """Check that a run went on where it should: one that began anew would end the same."""
    if goes_on_at and "Starting; run folder" in said:
        raise _FailedError("going on", f"the run began anew, and not after update {goes_on_at}")
    if goes_on_at and "Continuing from" in said and f", update {goes_on_at};" not in said:
        raise _FailedError("going on", f"the run did not go on after update {goes_on_at}")


def _run_to_end(process: Process, run: Path) -> tuple[int, str]:
    try:
        code = process.wait()
    finally:
        _kill_family(process)  # this command may have been interrupted
    return code, _said(run)


def _log_of(run: Path) -> Path:
    return run.with_suffix(".log")


def _said(run: Path) -> str:
    return _log_of(run).read_text(encoding="utf-8", errors="replace")


def _mistake(said: str) -> str:
    """Return what a command said was wrong."""
    return said.rpartition("vitbase: error: ")[2].strip() if "vitbase: error: " in said else ""


def _last_step(run: Path) -> int:
    """Return the last update in the metrics; 0 if there is none."""
    with contextlib.suppress(OSError), (run / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return int(parse_json(line)["step"])
    return 0


def _kill_family(process: Process) -> None:
    """End a process that runs, with its ranks and whatever else it has started, all at once."""
    if process.poll() is not None:
        return
    family = [process.pid]
    for pid in family:  # grows: children of children
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):  # on Linux
            with contextlib.suppress(OSError):
                family += map(int, listed.read_text().split())
    process.kill()
    for pid in family[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _tell(what: str, outcome: str) -> None:
    say(f"{what:<{_WIDTH}}  {outcome}")


def _tell_finding(finding: Finding) -> None:
    _tell(finding.what, finding.outcome + ("" if finding.holds else "  <- does not hold"))
