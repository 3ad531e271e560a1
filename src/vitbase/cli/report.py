"""`vitbase report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options
from vitbase.cli.help import option
from vitbase.console import printable, say, warn
from vitbase.disk import as_path
from vitbase.errors import ConfigError


class _ReportOptions(TypedDict, total=False):
    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("folders that `vitbase train` has written", metavar="RUN..."),
    ]
    out: Annotated[str, option("the page; none: report/report.html in RUN, written anew")]


def run_report(words: list[str]) -> None:
    options = parse_options(
        _ReportOptions,
        words,
        "vitbase report",
        "One page of HTML that opens anywhere, without a network: numbers with their intervals, "
        "curves, classes, confusions, images and options of a run, or of several side by side. It "
        "shows what `vitbase train` and `vitbase eval --out RUN/report` have left.",
    )
    runs = [as_path(run) for run in options.get("runs", ())]
    if not runs:
        raise ConfigError("Usage: vitbase report RUN... [--out FILE.html]")
    _refuse_repeated(runs)
    from vitbase.evaluation.report.page import write_report
    from vitbase.runs.checkpoints import REPORT

    if "out" in options:
        out = _check_out(options["out"])
    elif len(runs) == 1:
        out = runs[0] / REPORT / "report.html"
    else:
        raise ConfigError("A report of several runs belongs to none of them: give --out FILE.html.")
    found = write_report(runs, out)
    for run in found:
        for note in run.notes:
            warn(printable(note))
        for missing in run.missing:
            warn(printable(f"{run.path}: no {missing.what}; to have it: {missing.command}"))
    say(f"Report: {out}")


def _refuse_repeated(runs: list[Path]) -> None:
    seen: set[Path] = set()
    for run in runs:
        place = run.absolute()
        if place in seen:
            raise ConfigError(f"{run} is named twice.")
        seen.add(place)


def _check_out(given: str) -> Path:
    """Return where the page goes. Raises: ConfigError if it cannot, or something is there."""
    out = as_path(given)
    if out.suffix.lower() not in {".html", ".htm"}:
        raise ConfigError(f"Option 'out' is {given}; a report is a page: call it FILE.html.")
    try:
        if out.exists() or out.is_symlink():
            raise ConfigError(f"{out} is there already: remove it, or give another --out.")
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {out.parent} to write {out.name} into.")
    except (OSError, ValueError) as error:
        raise ConfigError(f"Option 'out' is no place for a file: {error}.") from None
    return out
