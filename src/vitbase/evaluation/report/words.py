"""How figures are named and written in a report."""

from __future__ import annotations

import math
import re

from vitbase.evaluation.report.scored import Figure

_LABELS = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "map": "Mean average precision",
    "f1": "F1, mean over classes",
    "f1_macro": "F1, mean over classes",
    "precision_macro": "Precision, mean over classes",
    "f1_micro": "F1 of all labels",
    "loss": "Loss",
    "nll": "Negative log-likelihood",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}
NONE = "\N{EN DASH}"
"""What stands where there is no number."""

_PLAIN = re.compile(r"loss|nll|brier|entropy|kappa|mcc|temperature|images|seconds")
_FIRST = tuple(_LABELS)
_LOWER_IS_BETTER = re.compile(r"loss|nll|ece|brier|error")


def label_of(name: str) -> str:
    """Return a figure's name as people say it."""
    return _LABELS.get(name, name.replace("_", " "))


def rank_of(name: str) -> int:
    """Return where a figure stands among the others: what people look at first comes first."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def is_share(name: str) -> bool:
    return _PLAIN.search(name) is None


def lower_is_better(name: str) -> bool:
    return _LOWER_IS_BETTER.search(name) is not None


def figure_text(name: str, figure: Figure) -> str:
    return number_text(name, figure.value)


def interval_text(name: str, figure: Figure) -> str:
    """Return the interval of a figure, or "" if it has none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number_text(name, figure.low)} to {number_text(name, figure.high)}"


def number_text(name: str, value: float) -> str:
    if math.isnan(value):
        return NONE
    if is_share(name) and -1 <= value <= 1:
        return percent_text(value)
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def percent_text(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{100 * value:.2f}%"


def count_text(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.0f}"
