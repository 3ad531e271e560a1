"""What a run tells: `metrics.jsonl`, log lines, and a live display in a terminal."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitbase.console import columns_for, printable, say
from vitbase.disk import open_regular

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Board(Protocol):
    """What TensorBoard's writer offers."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...


class Journal:
    """Writes one JSON object a line, and shows the run to whoever watches.

    In a terminal: a live bar with log lines scrolling above it. In a file or a pipe: the same
    lines, plain, each flushed. Of several ranks the first one writes and talks.
    """

    def __init__(self, metrics_file: Path, *, rank: int = 0, board: Board | None = None) -> None:
        self._metrics_file = metrics_file
        self._rank = rank
        self._board = board
        self._display: Progress | None = None
        self._task: TaskID | None = None
        self._unwritten = ""  # rows that the disk has not taken yet
        self._told = False  # that it has not

    def record(self, **row: Any) -> None:
        """Append a row to `metrics.jsonl`, from the first rank."""
        if self._rank:
            return
        if self._board is not None:
            for name, value in row.items():
                if name not in {"step", "epoch"} and isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["step"])
        # JSON has no NaN, which the mean over no class is, and no infinity, which the gradient of
        # an update is that loss scaling passes over.
        lost = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        self._unwritten += json.dumps({k: None if k in lost else v for k, v in row.items()}) + "\n"
        try:
            self._write()
        except OSError as error:
            if not self._told:
                self._told = True
                self.say(
                    f"WARNING: {self._metrics_file} cannot be written: {error.strerror or error}. "
                    f"Its rows are kept, and tried again with the next one."
                )

    def flush(self) -> None:
        """Write what could not be written yet: before a checkpoint that follows it.

        Raises: OSError if it still cannot.
        """
        if self._board is not None:
            self._board.flush()
        self._write()

    def _write(self) -> None:
        """Append rows, all of them or none. Raises: OSError."""
        if not self._unwritten:
            return
        with open(self._metrics_file, "ab", buffering=0, opener=open_regular) as file:
            end = file.tell()
            try:
                rest = memoryview(self._unwritten.encode())
                while rest:  # a disk that fills takes a part
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)
                raise
        self._unwritten, self._told = "", False

    def warn(self, line: str) -> None:
        """Write a log line about what this rank alone has seen."""
        if self._rank:
            say(printable(f"[rank {self._rank}] {line}"))
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """Write a log line, from the first rank."""
        if self._rank:
            return
        text = printable(line)  # a name in it may have several lines, and say what others would
        if self._display is not None:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def show(self, step: int, text: str | None = None) -> None:
        """Move the live display, and change its text; nothing happens where there is none."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=step, description=text)

    @contextlib.contextmanager
    def live(self, step: int, total_steps: int) -> Iterator[None]:
        """Show the live display, from a step on, if the output is a terminal."""
        if self._rank or sys.stdout is None or not sys.stdout.isatty():
            yield
            return
        from rich.progress import Progress  # a tenth of a second that a log file does not need

        with Progress(*columns_for("steps"), refresh_per_second=4) as display:
            self._display = display
            self._task = display.add_task("", total=total_steps, completed=step)
            try:
                yield
            finally:
                self._display = None
