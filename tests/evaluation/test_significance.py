"""Intervals and tests agree with scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vitbase.evaluation.significance import (
    FEW,
    benjamini_hochberg,
    bootstrap_difference,
    mcnemar,
)


@given(only_a=st.integers(0, 60), only_b=st.integers(0, 60))
def test_mcnemar_s_test_is_scipy_s(only_a, only_b):
    found = mcnemar(only_a, only_b)
    count = only_a + only_b
    assert found.exact == (count < FEW)
    if count == 0:
        assert found.p == 1
    elif found.exact:
        assert found.p == pytest.approx(stats.binomtest(only_a, count).pvalue, rel=1e-12)
    else:
        statistic = max(0, abs(only_a - only_b) - 1) ** 2 / count
        assert found.p == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_correction_is_scipy_s(p):
    expected = stats.false_discovery_control(p, method="bh")
    assert benjamini_hochberg(np.array(p)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cells", [(700, 60, 90, 150), (5, 3, 4, 8), (10, 0, 0, 2)])
def test_the_bootstrap_of_counts_is_that_of_images(cells):
    """Of images drawn one by one, with scipy; both are random, to a tenth of their width."""
    answers = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], cells, axis=0)
    difference = answers[:, 1] - answers[:, 0]
    low, high = bootstrap_difference(*cells)
    if not difference.any():
        assert (low, high) == (0, 0)
        return
    expected = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    near = 0.1 * (high - low) + 1e-9
    assert (low, high) == pytest.approx(tuple(expected), abs=max(near, 1.01 / len(difference)))
    assert bootstrap_difference(*cells) == (low, high)
    assert low <= (cells[2] - cells[1]) / sum(cells) <= high
