"""Predictions as a model may have made them, of given probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitbase.evaluation.predictions import Predictions


def predicted(
    p_NC: np.ndarray,
    labels: Sequence[int],
    *,
    ids: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    unreadable: Sequence[int] = (),
    features: np.ndarray | None = None,
    **more: Any,
) -> Predictions:
    """Return what is kept of probabilities [N, C]: the five most probable, and the label's."""
    p_NC = np.asarray(p_NC, np.float32)
    images, count = p_NC.shape
    labels_N = np.asarray(labels, np.int64)
    top = np.argsort(-p_NC, axis=1, kind="stable")[:, :5]
    top_NK, p_NK = np.full((images, 5), -1), np.full((images, 5), np.nan, np.float32)
    top_NK[:, : top.shape[1]] = top
    p_NK[:, : top.shape[1]] = np.take_along_axis(p_NC, top, axis=1)
    p_label = np.where(labels_N >= 0, p_NC[np.arange(images), labels_N], np.nan)
    readable = ~np.isin(np.arange(images), unreadable)
    top_NK[~readable], p_NK[~readable], p_label[~readable] = -1, np.nan, np.nan
    return Predictions(
        ids=list(ids) or [f"{number:04}.png" for number in range(images)],
        labels=labels_N,
        predictions=top_NK[:, 0].copy(),
        top_K=top_NK.astype(np.int64),
        p_K=p_NK,
        p_label=p_label.astype(np.float32),
        loss=-np.log(np.maximum(p_label, 1e-30)).astype(np.float32),
        readable=readable,
        classes=tuple(classes if classes is not None else map("c{}".format, range(count))),
        features=None if features is None else features.astype(np.float32),
        **more,
    )


def answering(right: Sequence[bool], labels: Sequence[int], count: int = 3, **more: Any) -> Any:
    """Return predictions that are right where they should be, and else of the next class."""
    labels_N = np.asarray(labels)
    guesses = np.where(right, labels_N, (labels_N + 1) % count)
    p_NC = np.full((len(labels_N), count), 0.3 / (count - 1))
    p_NC[np.arange(len(labels_N)), guesses] = 0.7
    return predicted(p_NC, labels_N, **more)
