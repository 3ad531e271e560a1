"""The charts of a report: curves, intervals, classes, confusions, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.evaluation.report.scored import Bin, Calibration, Figure, Scored, as_finite
from vitbase.evaluation.report.svg import BAD, FAINT, GOOD, INK, SERIES, charted, shortened

_MOST_POINTS = 300
"""Of a curve; more than the page has room for, and few enough to be small."""

FEW_CLASSES = 20
"""Up to so many, a matrix says its numbers and names."""

MOST_CELLS = 125
"""Rows of a matrix that the eye still tells apart; more classes share them."""

_SIDE, _WIDE = 6.0, 5.5
_COLOURS = {GOOD: (42, 157, 120), BAD: (222, 92, 40)}
"""Of a matrix, in pixels: both are seen on white and on black."""

Rows = Sequence[Mapping[str, Any]]


def curve(rows: Rows, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (epochs, values) of a column, thinned by means of equally many rows."""
    found = [
        (epoch, value)
        for row in rows
        if (value := as_finite(row.get(name))) is not None
        if (epoch := as_finite(row.get("at", row.get("epoch")))) is not None
    ]
    points = np.asarray(found, np.float64).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        parts = np.array_split(points, _MOST_POINTS)
        points = np.stack([part.mean(0) for part in parts])
    return points[:, 0], points[:, 1]


def with_places(training: Rows, evaluations: Rows) -> tuple[Rows, Rows]:
    """Add to rows where they stand in epochs, as a fraction: rows of training tell whole ones."""
    placed = [row for row in (evaluations or training) if _has_epoch(row)]
    last = max(placed, key=lambda row: row["epoch"], default=None)
    steps = last["step"] / last["epoch"] if last else 0.0
    if not steps:
        return training, evaluations
    at = [[{**row, "at": row["step"] / steps} for row in rows] for rows in (training, evaluations)]
    return at[0], at[1]


def _has_epoch(row: Mapping[str, Any]) -> bool:
    return type(row.get("epoch")) is int and 0 < row["epoch"] < 1 << 40


class Line(NamedTuple):
    """A curve of a chart: rows, their column, whose colour, and how it is drawn."""

    rows: Rows
    column: str
    label: str
    run: int
    dashed: bool = False


def draw_curves(title: str, lines: Sequence[Line], *, percent: bool, log: bool = False) -> str:
    """Return a chart of curves over epochs; "" if none of them has a value."""
    drawn = [(line, *curve(line.rows, line.column)) for line in lines]
    drawn = [(line, x, y) for line, x, y in drawn if len(x)]
    if not drawn:
        return ""
    with charted(5, 3, title) as chart:
        axes = chart.axes
        for line, x, y in drawn:
            axes.plot(
                x,
                100 * y if percent else y,
                color=SERIES[line.run],
                label=shortened(line.label, 30),
                linestyle="--" if line.dashed else "-",
                marker="o" if len(x) < 8 else None,
                markersize=3,
            )
        if log and all((y > 0).all() for _, _, y in drawn):
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        if len(drawn) > 1:
            axes.legend(fontsize=8)
    return chart.svg


def draw_intervals(title: str, figures: Sequence[tuple[str, int, Figure]]) -> str:
    """Return a chart of one share of several runs, with its intervals."""
    with charted(_WIDE, 0.6 + 0.34 * len(figures), title) as chart:
        for row, (_, run, figure) in enumerate(figures):
            low = figure.value if figure.low is None else figure.low
            high = figure.value if figure.high is None else figure.high
            chart.axes.plot([100 * low, 100 * high], [row, row], color=SERIES[run], linewidth=2)
            chart.axes.plot([100 * figure.value], [row], "o", color=SERIES[run], markersize=6)
        chart.axes.set_yticks(range(len(figures)), [shortened(name) for name, _, _ in figures])
        chart.axes.set_ylim(len(figures) - 0.5, -0.5)
        chart.axes.set_title(title)
        chart.axes.grid(visible=False, axis="y")
    return chart.svg


def draw_recalls(scored: Scored, order: Sequence[int]) -> str:
    """Return a chart of the recall of each class: bars of a few, or how many classes have which."""
    recall = scored.per_class["recall"]
    if len(order) > FEW_CLASSES:
        with charted(_WIDE, 2.6, "Classes by recall") as chart:
            shares = 100 * recall[~np.isnan(recall)]
            chart.axes.hist(
                shares, bins=[4.0 * number for number in range(26)], color=SERIES[0], rwidth=0.9
            )
            chart.axes.set_xlabel("recall, %")
            chart.axes.set_ylabel("classes")
        return chart.svg
    with charted(
        _WIDE, 0.8 + 0.26 * len(order), "Recall of each class, the hardest first"
    ) as chart:
        chart.axes.barh(range(len(order)), 100 * recall[list(order)], color=SERIES[0], height=0.7)
        names = [shortened(scored.classes[number]) for number in order]
        chart.axes.set_yticks(range(len(order)), names)
        chart.axes.set_ylim(len(order) - 0.5, -0.5)
        chart.axes.set_xlabel("recall, %")
        chart.axes.grid(visible=False, axis="y")
    return chart.svg


class Matrix(NamedTuple):
    """A drawn confusion matrix, and where its cells are: fractions of the picture."""

    svg: str
    cells: int
    left: float
    top: float
    width: float
    height: float


def shares_of(scored: Scored, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (diagonal [cells], others [cells, cells]): shares of the true classes' images.

    Of the classes that share a cell, the diagonal is their mean, another the largest.
    """
    classes = len(scored.classes)
    true, seen, count = scored.confusion.T
    totals = np.bincount(true, count.astype(np.float64), minlength=classes)
    share = count / np.maximum(totals[true], 1)
    group = np.arange(classes) * cells // classes
    right = true == seen
    hits = np.bincount(true[right], share[right], minlength=classes)
    with_images = np.bincount(group, totals > 0, minlength=cells)
    diagonal = np.bincount(group, hits, minlength=cells) / np.maximum(with_images, 1)
    others = np.zeros((cells, cells))
    np.maximum.at(others, (group[true[~right]], group[seen[~right]]), share[~right])
    return diagonal, others


def draw_confusion(scored: Scored) -> Matrix:
    """Return the confusion matrix: rows are true classes, columns what they were taken for."""
    classes = len(scored.classes)
    cells = min(classes, MOST_CELLS)
    diagonal, others = shares_of(scored, cells)
    image = np.zeros((cells, cells, 4), np.uint8)
    image[..., :3] = _COLOURS[BAD]
    image[..., 3] = np.where(others > 0, 30 + 215 * np.sqrt(others.clip(0, 1)), 0)
    at = np.arange(cells)
    wrong = image[at, at, 3].copy()
    image[at, at, :3] = _COLOURS[GOOD]
    image[at, at, 3] = 60 + 180 * diagonal.clip(0, 1)
    if classes > cells:  # a mix-up of neighbours lies in the same cell as their hits
        mixed = wrong > image[at, at, 3]
        image[at[mixed], at[mixed]] = (*_COLOURS[BAD], 255)
    few = classes <= FEW_CLASSES
    with charted(_SIDE, _SIDE, "Confusion matrix") as chart:
        axes = chart.axes
        chart.figure.set_layout_engine("none")
        left, bottom = (0.19, 0.16) if few else (0.17, 0.14)
        width = 0.98 - left
        axes.set_position((left, bottom, width, width))
        axes.imshow(image, interpolation="none", aspect="auto", extent=(0, classes, classes, 0))
        axes.grid(visible=False)
        every = range(classes) if few else _spread(classes, 10)
        names = [shortened(scored.classes[number], 13) for number in every]
        middle = [number + 0.5 for number in every]
        axes.set_yticks(middle, names, fontsize=8)
        axes.set_xticks(middle, names, fontsize=8, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_ylabel("true class", labelpad=2)
        axes.set_title("taken for", loc="right", pad=4)
        if few:
            _write_counts(axes, scored, 9 if classes <= 12 else 6)
    return Matrix(chart.svg, cells, left, 1 - bottom - width, width, width)


def _spread(classes: int, most: int) -> list[int]:
    """Return some class numbers, equally far from each other."""
    return [round(number) for number in np.linspace(0, classes - 1, most)]


def _write_counts(axes: Any, scored: Scored, size: float) -> None:
    middle = {"ha": "center", "va": "center", "fontsize": size, "color": INK}
    for true, seen, count in scored.confusion:
        if count:
            axes.text(seen + 0.5, true + 0.5, f"{count}", **middle)


def draw_calibration(calibration: Calibration) -> str:
    """Return the reliability diagram: how often answers of a confidence are right."""
    with charted(5, 4.4, "Calibration") as chart:
        axes = chart.axes
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=":")
        drawn: list[tuple[str, Sequence[Bin], str]] = [
            ("as it is", calibration.bins, BAD),
            ("after temperature scaling", calibration.bins_after, GOOD),
        ]
        for label, bins, colour in drawn:
            if bins:
                most = max(one.count for one in bins)
                axes.plot(
                    [100 * one.confidence for one in bins],
                    [100 * one.accuracy for one in bins],
                    color=colour,
                    label=label,
                )
                axes.scatter(
                    [100 * one.confidence for one in bins],
                    [100 * one.accuracy for one in bins],
                    s=[12 + 90 * one.count / most for one in bins],
                    color=colour,
                )
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("of these right, %")
        axes.legend(fontsize=8, loc="upper left")
    return chart.svg
