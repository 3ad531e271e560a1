"""The page: one file with its style, its charts and a script of its own, and nothing from outside.

Its policy forbids everything else: no request leaves the page, and no script runs but this one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vitbase._version import __version__
from vitbase.errors import ConfigError
from vitbase.evaluation.report.details import details
from vitbase.evaluation.report.inputs import RunData, read_run
from vitbase.evaluation.report.markup import Child, Markup, tag
from vitbase.evaluation.report.summary import curves, summary, swatch
from vitbase.evaluation.report.svg import SERIES, check_charts
from vitbase.files import write_whole

MOST_RUNS = len(SERIES)


def write_report(runs: Sequence[Path], out: Path) -> list[RunData]:
    """Write the report of some runs, whole or not at all.

    Returns: what was read of each run.
    Raises: CheckpointError if one of them is no run, or damaged; ConfigError if there are too many,
      charts cannot be drawn here, or the file cannot be written.
    """
    check_charts()
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"A report shows up to {MOST_RUNS} runs side by side, not {len(runs)}.")
    found = [read_run(run) for run in runs]
    page = build_page(found)
    try:
        out.parent.mkdir(exist_ok=True)
        write_whole(out, page)
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror or error}.") from None
    return found


def build_page(runs: Sequence[RunData]) -> str:
    """Return the page of some runs."""
    names = _names(runs)
    script, style = _own("page.js"), _own("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    title = ", ".join(names)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title[:120]} · vitbase report"),
        tag("style", Markup(style)),
    )
    many = len(runs) > 1
    body = tag(
        "body",
        tag("header", tag("h1", title if len(title) < 80 else f"{len(runs)} runs")),
        tag(
            "main",
            summary(runs, names),
            curves(runs, names),
            _tabs(names) if many else None,
            [_panel(run, number, names[number], many) for number, run in enumerate(runs)],
        ),
        tag("footer", f"Made by vitbase {__version__}; all of it is in this one file."),
        tag("script", Markup(script)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def _panel(run: RunData, number: int, name: str, many: bool) -> Markup:
    inside: list[Child] = [tag("h2", swatch(number), name, class_="of") if many else None]
    return tag(
        "div",
        inside,
        details(run, f"run{number}"),
        id=f"run{number}",
        class_="panel",
        role="tabpanel" if many else None,
    )


def _tabs(names: Sequence[str]) -> Markup:
    buttons = [
        tag(
            *("button", swatch(number), name),
            type="button",
            role="tab",
            aria_controls=f"run{number}",
            aria_selected="true" if number == 0 else "false",
        )
        for number, name in enumerate(names)
    ]
    return tag("nav", buttons, role="tablist", aria_label="Runs")


def _names(runs: Sequence[RunData]) -> list[str]:
    """Return what runs are called: their folders' names, with more of the path where it needs."""
    names = [run.name[:80] for run in runs]
    for number, run in enumerate(runs):
        if [other.name for other in runs].count(run.name) > 1:
            names[number] = f"{run.path.resolve().parent.name[:80]}/{run.name[:80]}"
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def _own(name: str) -> str:
    return (files("vitbase.evaluation.report") / name).read_text(encoding="utf-8")
