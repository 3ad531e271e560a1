"""The first part of a page: the numbers of all runs beside each other, and how they learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitbase.errors import shown
from vitbase.evaluation.report.charts import Line, draw_curves, draw_intervals, with_places
from vitbase.evaluation.report.inputs import RunData
from vitbase.evaluation.report.markup import Child, Markup, table, tag
from vitbase.evaluation.report.words import (
    NONE,
    count_text,
    figure_text,
    interval_text,
    is_share,
    label_of,
    lower_is_better,
    rank_of,
)

_MOST_DIFFERENCES = 60


def swatch(run: int) -> Markup:
    """Return the mark of a run's colour in the charts."""
    return tag("i", class_=f"swatch run{run}", aria_hidden="true")


def summary(runs: Sequence[RunData], names: Sequence[str]) -> Markup:
    """Return the numbers of all runs, each with its interval."""
    known = {name for run in runs for name in run.figures}
    figures = sorted(known, key=lambda name: (rank_of(name), name))
    many = len(runs) > 1
    body: list[Child] = []
    if not many:
        body.append(_cards(runs[0], figures))
    head: list[Child] = ["", *([swatch(i) if many else None, n] for i, n in enumerate(names))]
    rows: list[list[Child]] = [_row(name, runs) for name in (figures if many else figures[4:])]
    rows += _facts(runs)
    body.append(table(head, rows, "figures"))
    if many:
        body.append(_intervals(runs, names, figures))
        body.append(_differences(runs, names))
    flat = [run for run in runs if run.scored is None or not run.scored.figures]
    if flat and any(run.figures for run in flat):
        words = "Figures without a full evaluation are those of the last one in training."
        body.append(tag("p", words, class_="note"))
    return tag("section", tag("h2", "Result"), body, id="summary")


def _cards(run: RunData, figures: Sequence[str]) -> Markup:
    cards = []
    for name in figures[:4]:
        figure = run.figures[name]
        between = interval_text(name, figure)
        cards.append(
            tag(
                "div",
                tag("span", label_of(name), class_="what"),
                tag("strong", figure_text(name, figure)),
                tag("span", between or "no interval known", class_="between"),
                class_="card",
            )
        )
    return tag("div", cards, class_="cards")


def _row(name: str, runs: Sequence[RunData]) -> list[Child]:
    values = [run.figures[name].value if name in run.figures else math.nan for run in runs]
    numbers = [value for value in values if not math.isnan(value)]
    best = (min if lower_is_better(name) else max)(numbers) if len(numbers) > 1 else math.nan
    cells: list[Child] = [tag("th", label_of(name), scope="row")]
    for run, value in zip(runs, values, strict=True):
        if name not in run.figures:
            cells.append(tag("td", NONE))
            continue
        figure = run.figures[name]
        shown = tag("strong" if value == best else "span", figure_text(name, figure))
        between = interval_text(name, figure)
        cells.append(tag("td", shown, tag("small", between) if between else None))
    return cells


def _facts(runs: Sequence[RunData]) -> list[list[Child]]:
    rows: list[list[Child]] = []

    def add(what: str, values: Sequence[str]) -> None:
        if any(values):
            rows.append([tag("th", what, scope="row"), *(value or NONE for value in values)])

    add("Evaluated", [_fact(run, "weights") for run in runs])
    add("Data", [_fact(run, "data") for run in runs])
    add("Protocol", [_fact(run, "protocol") for run in runs])
    add("Images", [_images(run) for run in runs])
    add("Epochs", [_epochs(run) for run in runs])
    add("Best checkpoint", [run.best or "" for run in runs])
    add("Evaluation speed", [_speed(run) for run in runs])
    return rows


def _fact(run: RunData, name: str) -> str:
    value = run.scored.facts.get(name, "") if run.scored is not None else ""
    return str(value)


def _images(run: RunData) -> str:
    facts = run.scored.facts if run.scored is not None else {}
    images, unreadable = facts.get("images"), facts.get("unreadable", 0.0)
    if not isinstance(images, float):
        return ""
    lost = f", {count_text(float(unreadable))} of them unreadable" if unreadable else ""
    return count_text(images) + lost


def _epochs(run: RunData) -> str:
    rows = run.evaluations or run.training
    epoch, step = (rows[-1].get("epoch"), rows[-1]["step"]) if rows else (None, 0)
    return "" if not isinstance(epoch, int) else f"{epoch:,} ({step:,} updates)"


def _speed(run: RunData) -> str:
    speed = run.scored.facts.get("images_per_second") if run.scored is not None else None
    return f"{speed:,.0f} images/s" if isinstance(speed, float) else ""


def _intervals(
    runs: Sequence[RunData], names: Sequence[str], figures: Sequence[str]
) -> Markup | None:
    for name in figures:
        if is_share(name):
            found = [
                (names[number], number, run.figures[name])
                for number, run in enumerate(runs)
                if name in run.figures and not math.isnan(run.figures[name].value)
            ]
            if len(found) > 1:
                title = f"{label_of(name)}, % (95% intervals)"
                return tag("figure", Markup(draw_intervals(title, found)), class_="wide")
    return None


def _differences(runs: Sequence[RunData], names: Sequence[str]) -> Markup | None:
    """Return the options in which the runs differ: what an answer to "why" begins with."""
    flat = [{k: v for part in run.config.values() for k, v in part.items()} for run in runs]
    keys = list(dict.fromkeys(key for options in flat for key in options))
    differ = [k for k in keys if len({shown(options.get(k), 10_000) for options in flat}) > 1]
    if not differ or not all(flat):
        return None
    rows = [[k, *(option_text(options.get(k)) for options in flat)] for k in differ]
    return tag(
        "div",
        tag("h3", "Options that differ"),
        table(["option", *names], rows[:_MOST_DIFFERENCES]),
    )


def option_text(value: object) -> str:
    if value is None:
        return NONE
    return value[:300] if isinstance(value, str) else shown(value)


def curves(runs: Sequence[RunData], names: Sequence[str]) -> Markup | None:
    """Return the curves of all runs over epochs; None if no run has any."""
    losses: list[Line] = []
    columns: dict[str, list[Line]] = {
        name: [] for name in ("eval_top1", "eval_map", "eval_top5", "lr", "images_per_second")
    }
    columns["data_wait_fraction"] = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        training, evaluations = with_places(run.training, run.evaluations)
        before = f"{name}: " if len(runs) > 1 else ""
        losses.append(Line(training, "loss", f"{before}training", number))
        losses.append(Line(evaluations, "eval_loss", f"{before}evaluation", number, dashed=True))
        for column, lines in columns.items():
            rows = evaluations if column.startswith("eval_") else training
            lines.append(Line(rows, column, name, number))
    charts = [
        draw_curves("Loss", losses, percent=False),
        draw_curves("Top-1 accuracy, %", columns["eval_top1"], percent=True),
        draw_curves("Mean average precision, %", columns["eval_map"], percent=True),
        draw_curves("Top-5 accuracy, %", columns["eval_top5"], percent=True),
        draw_curves("Learning rate", columns["lr"], percent=False),
        draw_curves("Training speed, images/s", columns["images_per_second"], percent=False),
        draw_curves("Waiting for data, % of the time", columns["data_wait_fraction"], percent=True),
    ]
    figures = [tag("figure", Markup(chart)) for chart in charts if chart]
    if not figures:
        return None
    return tag(
        "section", tag("h2", "Learning curves"), tag("div", figures, class_="grid"), id="curves"
    )
