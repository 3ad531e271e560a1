"""What a page tells of one run: classes, confusions, images, calibration, data, options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitbase.evaluation.report.charts import draw_calibration, draw_confusion, draw_recalls
from vitbase.evaluation.report.inputs import RunData, Shown
from vitbase.evaluation.report.markup import Child, Markup, data, number, table, tag
from vitbase.evaluation.report.scored import Scored, most_confused
from vitbase.evaluation.report.summary import option_text
from vitbase.evaluation.report.svg import shortened
from vitbase.evaluation.report.words import NONE, count_text, number_text, percent_text

_COLUMNS = ("recall", "precision", "f1", "average_precision")
_MOST_CLASS_ROWS = 2000
_ROWS_AT_FIRST = 20
_MOST_PAIRS = 30
_MOST_CELLS_TOLD = 40_000

_KINDS = {
    "worst": "Worst images: the least probability of their label",
    "hardest": "The worst image of each of the hardest classes",
    "best": "Best images: the greatest probability of their label",
}


def details(run: RunData, place: str) -> list[Child]:
    """Return the sections of one run; `place` begins the ids of its elements."""
    sections: list[tuple[str, str, Child]] = [
        ("missing", "Not in this report", _missing(run)),
        ("classes", "Classes", _classes(run.scored)),
        ("confusion", "Confusion matrix", _confusion(run.scored)),
        ("images", "Images", _images(run.shown)),
        ("calibration", "Calibration", _calibration(run.scored)),
        ("doubts", "Data findings", _doubts(run)),
        ("config", "Configuration", _config(run)),
        ("environment", "Environment", _environment(run)),
    ]
    return [
        tag("section", tag("h3", title), body, id=f"{place}-{name}", class_=name)
        for name, title, body in sections
        if body
    ]


def _missing(run: RunData) -> Child:
    if not run.missing and not run.notes:
        return None
    rows = [
        tag("li", f"{one.what}: ", tag("code", one.command, class_="command"))
        for one in run.missing
    ]
    return tag("ul", rows, [tag("li", note) for note in run.notes])


def order_of_classes(scored: Scored) -> list[int]:
    """Return the classes that have images, the hardest first."""
    recall = scored.per_class["recall"]
    images = scored.images_per_class
    sizes = np.zeros(len(recall)) if images is None else images
    order = np.lexsort((np.arange(len(recall)), -sizes, recall))
    return [int(one) for one in order if not math.isnan(recall[one])]


def _classes(scored: Scored | None) -> Child:
    if scored is None or "recall" not in scored.per_class:
        return None
    order = order_of_classes(scored)
    if not order:
        return None
    images = scored.images_per_class
    taken = _taken_for(scored)
    columns = [name for name in _COLUMNS if name in scored.per_class]
    rows: list[list[Child]] = []
    for one in order[:_MOST_CLASS_ROWS]:
        shares = [scored.per_class[name][one] for name in columns]
        rows.append(
            [
                scored.classes[one],
                *([number(count_text(images[one]), images[one])] if images is not None else []),
                *(number(percent_text(v), -1 if math.isnan(v) else v) for v in shares),
                ", ".join(taken.get(one, ())),
            ]
        )
    head = [
        "class",
        *(["images"] if images is not None else []),
        *(name.replace("_", " ") for name in columns),
        "most taken for",
    ]
    tools: list[Child] = []
    if len(rows) > _ROWS_AT_FIRST:
        tools = [
            tag(
                "input",
                type="search",
                class_="filter",
                placeholder="Find a class",
                aria_label="Find a class",
            ),
            tag("button", f"Show all {len(rows):,}", type="button", class_="all"),
        ]
    cut = f" The {len(rows):,} hardest of {len(order):,} are listed." * (len(rows) < len(order))
    return [
        tag("figure", Markup(draw_recalls(scored, order)), class_="wide"),
        tag("p", f"The hardest come first; a click on a column's head sorts by it.{cut}"),
        tag("div", tools, class_="tools") if tools else None,
        table(head, rows, "sortable"),
    ]


def _taken_for(scored: Scored) -> dict[int, list[str]]:
    """Return for each class up to three others that its images were taken for most."""
    found: dict[int, list[str]] = {}
    for true, seen, count in most_confused(scored.confusion, len(scored.confusion)):
        others = found.setdefault(true, [])
        if len(others) < 3:
            others.append(f"{scored.classes[seen][:40]} ({count:,})")
    return found


def _confusion(scored: Scored | None) -> Child:
    if scored is None or not len(scored.confusion):
        return None
    matrix = draw_confusion(scored)
    confusion = scored.confusion
    told = confusion[np.argsort(-confusion[:, 2], kind="stable")[:_MOST_CELLS_TOLD]]
    pairs = most_confused(confusion, _MOST_PAIRS)
    sizes = scored.images_per_class
    assert sizes is not None
    rows = [
        [
            scored.classes[true],
            scored.classes[seen],
            number(f"{count:,}", count),
            number(percent_text(count / max(sizes[true], 1)), count / max(sizes[true], 1)),
        ]
        for true, seen, count in pairs
    ]
    shared = ""
    if matrix.cells < len(scored.classes):
        shared = (
            f" Each cell is {len(scored.classes) / matrix.cells:.3g} classes wide: green is their "
            f"mean, orange the worst mix-up inside."
        )
    names = [shortened(name, 60) for name in scored.classes]
    inside = {
        "classes": names,
        "cells": matrix.cells,
        "box": [round(side, 4) for side in matrix[2:]],
        "confusion": told.tolist(),
    }
    return [
        tag(
            "p",
            "A row is a true class, a column what its images were taken for; green is right, "
            f"orange wrong, stronger is more of the row.{shared} Point at a cell to read it.",
        ),
        tag(
            "div",
            tag("p", "", class_="reading", aria_live="polite"),
            tag("figure", Markup(matrix.svg), data(inside), class_="matrix"),
            class_="confusable",
        ),
        tag("h4", "Most often mixed up") if rows else None,
        table(["true class", "taken for", "images", "of the class"], rows, "sortable")
        if rows
        else tag("p", "No image was taken for one of another class."),
    ]


def _images(shown: Sequence[Shown]) -> Child:
    kinds = dict.fromkeys([*_KINDS, *(one.kind for one in shown)])
    parts: list[Child] = []
    for kind in kinds:
        found = [_picture(one) for one in shown if one.kind == kind]
        if found:
            parts.append(tag("h4", _KINDS.get(kind, kind)))
            parts.append(tag("div", found, class_="pictures"))
    return parts


def _picture(one: Shown) -> Markup:
    right = one.label == one.prediction
    words = [f"{name}: {percent_text(share)}" for name, share in one.top]
    seen = percent_text(one.p_label)
    return tag(
        "figure",
        tag("img", src=Markup(one.picture), alt=f"{one.label}: {one.id}")
        if one.picture
        else tag("div", "not readable", class_="nopicture"),
        tag(
            "figcaption",
            tag("b", one.label),
            f", p {seen}",
            None if right else [tag("br"), "seen as ", tag("b", one.prediction, class_="wrong")],
            tag(
                "details",
                tag("summary", "more"),
                tag("code", one.id),
                [tag("div", w) for w in words],
            ),
        ),
        class_="picture",
        title=" · ".join([one.id, *words]),
    )


def _calibration(scored: Scored | None) -> Child:
    if scored is None or scored.calibration is None:
        return None
    found = scored.calibration
    labels = (
        ("ece", "Calibration error (ECE)"),
        ("temperature", "Temperature that fits best"),
        ("ece_after", "Calibration error with it"),
    )
    rows: list[list[Child]] = [
        [tag("th", label, scope="row"), number_text(name, found.numbers[name])]
        for name, label in labels
        if name in found.numbers
    ]
    chart = None
    if found.bins or found.bins_after:
        chart = tag("figure", Markup(draw_calibration(found)), class_="middle")
    return [
        tag("p", "On the dotted line, answers are right as often as their probability says."),
        chart,
        table(["", ""], rows, "facts") if rows else None,
    ]


def _doubts(run: RunData) -> Child:
    if not run.doubts:
        return None
    rows = [
        [
            one.kind,
            one.id,
            one.label,
            one.prediction,
            number(NONE if one.score is None else f"{one.score:.3g}", one.score),
        ]
        for one in run.doubts
    ]
    return [
        tag("p", f"{len(rows):,} images whose label or content somebody should look at."),
        tag(
            "div",
            tag("button", f"Show all {len(rows):,}", type="button", class_="all"),
            class_="tools",
        )
        if len(rows) > _ROWS_AT_FIRST
        else None,
        table(["finding", "image", "label", "seen as", "score"], rows, "sortable"),
    ]


def _config(run: RunData) -> Child:
    parts = [
        tag(
            "details",
            tag("summary", f"{section} ({len(options)})"),
            table(["option", "value"], [[k, option_text(v)] for k, v in options.items()]),
        )
        for section, options in list(run.config.items())[:50]
    ]
    return parts or None


def _environment(run: RunData) -> Child:
    if not run.environment:
        return None
    rows = [[tag("th", k, scope="row"), v] for k, v in run.environment.items()]
    return table(["", ""], rows, "facts")
