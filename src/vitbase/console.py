"""What is said to a person: lines, warnings, progress; control characters from outside escaped.

Lines go to standard output, warnings and progress to standard error, each flushed, so that a log
file is always as far as the program. A stream may be None, closed by whoever started us: then
nobody reads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

SECONDS_BETWEEN_LINES = 60.0
"""Of progress, where it goes to a file."""


def printable(text: str) -> str:
    r"""Escape what is not to be seen: a name from outside may hold what moves a terminal's cursor.

    Letters of any script stay. Bytes that are no UTF-8 (as `os.fsdecode` gives them), line ends,
    escapes and directional marks become ``\x1b``, ``\n`` and the like.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """Escape as :func:`printable`, but for the ends of lines: what a whole message goes through."""
    return "\n".join(map(printable, text.split("\n")))


def say(line: str) -> None:
    """Write one line to standard output at once, readable in a file.

    A line end in it is a name's, and escaped; but one at its beginning is an empty line before it.
    """
    _write(sys.stdout, _one_line(line))


def say_text(text: str) -> None:
    """Write some lines to standard output, of which no name from outside is a part."""
    _write(sys.stdout, text)


def warn_text(text: str) -> None:
    """Write some lines to standard error; line ends in names have been escaped before."""
    _write(sys.stderr, text)


def say_json(value: object) -> None:
    """Write a value as one line of JSON to standard output: readable, and still JSON if escaped."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value).replace("\x7f", "\\u007f")
    say(text)


def warn(line: str) -> None:
    """Write one line to standard error at once; line ends as of :func:`say`."""
    _write(sys.stderr, _one_line(line))


def _one_line(line: str) -> str:
    return "\n" + printable(line[1:]) if line[:1] == "\n" else printable(line)


def escape_reports() -> None:
    """Let what Python itself writes to standard error go through here, for good.

    Those are tracebacks, of threads too, and of what nobody can raise any more; warnings; and what
    libraries log. They quote names from outside as they are.
    """
    sys.excepthook = _report
    threading.excepthook = _report_of_thread
    sys.unraisablehook = _report_unraisable
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_record)


def _report(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, /
) -> None:
    warn_text("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def _report_of_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_type is not SystemExit:  # by which a thread may end
        _report(given.exc_type, given.exc_value or given.exc_type(), given.exc_traceback)


def _report_unraisable(given: sys.UnraisableHookArgs) -> None:
    what = "something"
    with contextlib.suppress(Exception):
        what = repr(given.object)[:300]
    warn(f"{given.err_msg or 'Exception ignored in'}: {what}")
    _report(given.exc_type, given.exc_value or given.exc_type(), given.exc_traceback)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
    _write(sys.stderr if file is None else file, text)


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a record of what a library logs, which its own handlers may write anywhere."""
    record = logging.LogRecord(*args, **kwargs)
    with contextlib.suppress(TypeError, ValueError):  # it does not fit its arguments
        record.msg, record.args = printable_lines(record.getMessage()), ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = printable_lines("".join(traceback.format_exception(*record.exc_info)))
    return record


def _write(stream: TextIO | None, line: str) -> None:
    if stream is not None:
        try:
            stream.write(printable_lines(line) + "\n")
            stream.flush()
        except BrokenPipeError:
            if not _unread_is_fine:
                raise
            # What is written from here on, and at the end of the program, goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_unread_is_fine = False


def go_on_unread() -> None:
    """Let this process go on when the reader of its output, such as `head`, has had enough."""
    global _unread_is_fine  # noqa: PLW0603 (of the process, as its streams are)
    _unread_is_fine = True


@contextlib.contextmanager
def counting(unit: str = "images") -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows (what, done, of how many) to whoever watches.

    In a terminal there is a bar for each; elsewhere, a line on standard error every minute.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield _Lines(unit).show
        return
    from rich.console import Console  # a tenth of a second that a log file does not need
    from rich.progress import Progress, TaskID

    # Lines on the standard output pass above the bar, if that is in the same terminal.
    display = Progress(
        *columns_for(unit),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    with display:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(printable(what), total=total)
            display.update(tasks[what], completed=done)

        yield show


def columns_for(unit: str) -> tuple[ProgressColumn, ...]:
    """Return what a live display shows of a task: its text, a bar, how many of a unit, and when."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, left"),
        TimeRemainingColumn(),
    )


def spoken_seconds(seconds: float) -> str:
    """Return a length of time as one would say it: "40 s", "12 min", "3.5 h", "12 days"."""
    for unit, length, digits in (("days", 86400.0, 0), ("h", 3600.0, 1), ("min", 60.0, 0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.{digits}f} {unit}"
    return f"{max(seconds, 1):.0f} s"


class _Lines:
    """Progress for a log file."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.last = time.monotonic()

    def show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            warn(f"{what}: {done:,} of {total:,} {self.unit} ({done / total:.1%})")
