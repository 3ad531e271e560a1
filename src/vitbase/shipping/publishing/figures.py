"""The figures of a run's report as PNG, for a card; none of them shows an image of the data."""

from __future__ import annotations

from typing import NamedTuple

from vitbase.errors import ConfigError
from vitbase.evaluation.report.charts import (
    Line,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_recalls,
    with_places,
)
from vitbase.evaluation.report.details import order_of_classes
from vitbase.evaluation.report.inputs import RunData
from vitbase.evaluation.report.scored import Scored
from vitbase.evaluation.report.svg import check_charts, pictured


class Picture(NamedTuple):
    """A figure: the name of its file, what it shows, and the PNG."""

    name: str
    title: str
    png: bytes


def draw_pictures(run: RunData | None, scored: Scored | None) -> tuple[list[Picture], str | None]:
    """Draw how a run has learned, and what its evaluation found.

    Args:
      scored: the evaluation of the weights that the card is of; None: there is none to draw.
    Returns: the figures; why there are none, where they cannot be drawn.
    """
    if run is None:
        return [], None
    try:
        check_charts()
    except ConfigError as error:
        return [], f"The card has no figures. {error}"
    training, evaluations = with_places(run.training, run.evaluations)
    with pictured() as found:
        losses = [
            Line(training, "loss", "training", 0),
            Line(evaluations, "eval_loss", "evaluation", 0, dashed=True),
        ]
        draw_curves("Loss", losses, percent=False)
        for column, title in (
            ("eval_top1", "Top-1 accuracy, %"),
            ("eval_map", "Mean average precision, %"),
        ):
            draw_curves(title, [Line(evaluations, column, "", 0)], percent=True)
        if scored is not None:
            if "recall" in scored.per_class and (order := order_of_classes(scored)):
                draw_recalls(scored, order)
            if len(scored.confusion):
                draw_confusion(scored)
            if scored.calibration is not None and scored.calibration.bins:
                draw_calibration(scored.calibration)
    return [
        Picture(f"figures/{number:02}.png", title, png)
        for number, (title, png) in enumerate(found.items(), 1)
    ], None
