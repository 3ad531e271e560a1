"""Labels that are likely wrong, by what a model says of images that it did not train on.

Confident learning: a class's threshold is the mean probability that the model gives it on the
images labelled so. An image is doubted if the model takes another class than its label for most
probable, and gives some other class at least that class's threshold. So a class that the model is
rarely sure of needs less to be believed.

Shape legend: N images, M of them looked at, K the 5 most probable classes, S suspects, T classes
that are the label of some image looked at.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError
from vitbase.evaluation.predictions import Predictions

_EQUAL = 1e-6
"""Probabilities so close count as equal, as in cleanlab."""


class LabelDoubts(NamedTuple):
    """Images whose label is doubted, the worst first.

    Attributes:
      suspects: int64 [S], indices of the images.
      likely: int64 [S], the most probable other class that reaches its threshold.
      p_likely: float32 [S], its probability.
      margins: float64 [S], (1 + p(label) - p(most probable other class)) / 2; 0: surely wrong.
      looked_at: readable images with a known label.
      undecided: images that are none of the suspects, but might be, were more than the five most
        probable classes known.
    """

    suspects: NDArray[np.int64]
    likely: NDArray[np.int64]
    p_likely: NDArray[np.float32]
    margins: NDArray[np.float64]
    looked_at: int
    undecided: int

    def pairs(self, labels: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Return (label, likely class, images), the most frequent first.

        Args:
          labels: int64 [N] of all images.
        """
        given = labels[self.suspects].tolist()
        counted = Counter(zip(given, self.likely.tolist(), strict=True))
        return [(*pair, count) for pair, count in sorted(counted.items(), key=_by_count)]


def _by_count(item: tuple[tuple[int, int], int]) -> tuple[int, tuple[int, int]]:
    return -item[1], item[0]


def find_label_errors(predictions: Predictions) -> LabelDoubts:
    """Find the images whose label is likely wrong.

    Of five classes or fewer these are the images of cleanlab's `find_label_issues` with
    `filter_by="confident_learning"`. Of more, thresholds and margins are as exact, and so is every
    suspect; what the five most probable classes cannot tell is counted as undecided.

    Source: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset
      labels" (arXiv 1911.00068), section 3.1; cleanlab 2.9, `filter.py` and `count.py`.
    Raises: DataError if no image has a known label and its probability.
    """
    looked_at_M = np.flatnonzero(
        predictions.readable & (predictions.labels >= 0) & np.isfinite(predictions.p_label)
    )
    if not len(looked_at_M):
        raise DataError(
            "No readable image has a known label with a probability, so no label can be doubted."
        )
    labels_M = predictions.labels[looked_at_M]
    p_label_M = predictions.p_label[looked_at_M].astype(np.float64)
    top_MK, p_MK = predictions.top_K[looked_at_M], predictions.p_K[looked_at_M]
    classes_T, place_M = np.unique(labels_M, return_inverse=True)
    thresholds_T = np.bincount(place_M, p_label_M) / np.bincount(place_M)
    thresholds_T = np.maximum(thresholds_T, 2 * _EQUAL)

    place_MK = np.searchsorted(classes_T, top_MK).clip(max=len(classes_T) - 1)
    is_known_MK = classes_T[place_MK] == top_MK
    is_other_MK = (top_MK >= 0) & (top_MK != labels_M[:, None])
    reaches_MK = (p_MK >= thresholds_T[place_MK] - _EQUAL) & is_known_MK & is_other_MK
    differs_M = is_other_MK[:, 0] & (p_MK[:, 0] > p_label_M + _EQUAL)
    suspected_M = differs_M & reaches_MK.any(axis=1)

    at_S = np.flatnonzero(suspected_M)
    margins_S = (1 + p_label_M[at_S] - p_MK[at_S, 0]) / 2
    order = np.argsort(margins_S, kind="stable")
    at_S = at_S[order]
    best_S = reaches_MK[at_S].argmax(axis=1)  # the first is the most probable one
    beyond_M = _may_lie_beyond(top_MK, p_MK, labels_M, p_label_M, classes_T, thresholds_T)
    return LabelDoubts(
        suspects=looked_at_M[at_S],
        likely=top_MK[at_S, best_S],
        p_likely=p_MK[at_S, best_S],
        margins=margins_S[order],
        looked_at=len(looked_at_M),
        undecided=int(np.count_nonzero(differs_M & ~suspected_M & beyond_M)),
    )


def _may_lie_beyond(
    top_MK: NDArray[np.int64],
    p_MK: NDArray[np.float32],
    labels_M: NDArray[np.int64],
    p_label_M: NDArray[np.float64],
    classes_T: NDArray[np.int64],
    thresholds_T: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return [M], whether a class that is not among the most probable may reach its threshold.

    Such a class has at most the probability of the last one that is known, and at most what all
    that are known leave.
    """
    is_label_MK = top_MK == labels_M[:, None]
    known_M = np.nansum(p_MK, axis=1, dtype=np.float64)
    known_M += np.where(is_label_MK.any(axis=1), 0, p_label_M)
    most_M = np.minimum(np.nan_to_num(p_MK[:, -1], nan=0.0), np.maximum(0, 1 - known_M))
    # Six classes are known at most, so one of the seven with the lowest thresholds is not.
    lowest = np.argsort(thresholds_T, kind="stable")[: top_MK.shape[1] + 2]
    is_known = (top_MK[:, :, None] == classes_T[lowest]).any(axis=1)
    is_known |= labels_M[:, None] == classes_T[lowest]
    reaches = most_M[:, None] >= thresholds_T[lowest] - 2 * _EQUAL  # they are rounded, too
    return np.asarray((reaches & ~is_known).any(axis=1))
