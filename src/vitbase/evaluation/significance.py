"""How sure a difference is: intervals and tests of counts, without a statistics package.

Shape legend: R draws of a bootstrap, T tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW = 25
"""Images on which two models differ, below which McNemar's test is exact."""

_DRAWS = 10_000


class Interval(NamedTuple):
    """A range that holds the true value in 95% of samples."""

    low: float
    high: float


class McNemar(NamedTuple):
    """McNemar's test of two models on the same images."""

    p: float
    exact: bool


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Test whether two models are right equally often, by the images that one of them has right.

    Fewer than :data:`FEW` of these are tested by the exact binomial distribution, more by the
    chi-square distribution with a continuity correction.

    Args:
      only_first: images that only the first model has right.
      only_second: likewise.
    Returns: the two-sided p value.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
      or percentages" (1947); Edwards' correction (1948).
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count < FEW:
        tail = sum(math.comb(count, hits) for hits in range(fewer + 1))
        return McNemar(min(1.0, 2 * tail / 2**count), exact=True)
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / count
    return McNemar(math.erfc(math.sqrt(statistic / 2)), exact=False)


def bootstrap_difference(
    both: int, only_first: int, only_second: int, neither: int, *, seed: int = 0
) -> Interval:
    """Return the 95% interval of the second model's accuracy minus the first's.

    Images drawn again with their pair of answers are four counts of a multinomial distribution: so
    a draw costs four numbers, however many images there are.

    Args:
      both: images that both models have right.
      only_first: those that only the first one has right.
      only_second: likewise.
      neither: those that none has right.
      seed: of what is drawn.
    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979), percentile interval.
    """
    counts = np.array([both, only_first, only_second, neither], np.int64)
    images = int(counts.sum())
    drawn_R4 = np.random.default_rng(seed).multinomial(images, counts / images, size=_DRAWS)
    differences_R = (drawn_R4[:, 2] - drawn_R4[:, 1]) / images
    low, high = np.quantile(differences_R, (0.025, 0.975)).tolist()
    return Interval(low, high)


def benjamini_hochberg(p_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correct the p values of several tests for their number: at most 5% of those at or below
    0.05 afterwards are expected to be false.

    Args:
      p_T: [T] float64 of tests that are independent, or depend on each other positively.
    Returns: [T] float64 in the same order, at most 1.
    Source: Benjamini and Hochberg, "Controlling the false discovery rate" (1995).
    """
    order = np.argsort(p_T, kind="stable")
    scaled_T = p_T[order] * len(p_T) / np.arange(1, len(p_T) + 1)
    corrected_T = np.empty(len(p_T))
    corrected_T[order] = np.minimum(np.minimum.accumulate(scaled_T[::-1])[::-1], 1)
    return corrected_T
