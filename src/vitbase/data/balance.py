"""Classes of unequal size: an order in which they come equally often, or weights that make up.

The order is arithmetic as that of `order.py`: a function of (seed, epoch, position), which may
never change, and tests hold it against recorded values. Shape legend: P positions, N samples,
C classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitbase.data.order import epoch_permutation, key_of

_BALANCE_KEY = 0x62616C616E6365  # "balance": keeps this shuffle apart from every other
_RADIX_CLASSES = 2**16  # numpy sorts 16-bit numbers by radix, seven times as fast


def balanced_order(
    seed: int,
    epoch: int,
    labels_N: NDArray[np.int64],
    num_positions: int,
    *,
    power: float = 0.0,
) -> NDArray[np.int64]:
    """Return the order of an epoch in which each class has its share: position -> sample index.

    The run is one long sequence of rounds. In a round each class has a number of turns, spread
    evenly; at its turn it gives the next of its images, shuffled once, and begins again when all
    were given. Epoch e is the e-th piece of ``num_positions`` of that sequence, shuffled. So after
    any number of epochs the images of a class have come equally often, to within one, and with
    power 0 the classes, too.

    Args:
      seed: of the run.
      epoch: counted from 0.
      labels_N: int [N], one label each; a class may have no sample.
      num_positions: P, as many as an epoch has; those a run drops at the end of it were drawn.
      power: a class's share is proportional to (number of its samples) ** power. 0: all classes
        alike; 1: as in the data, and with P = N every sample once; 0.5: half-way.
    Returns: int64 [P].
    Raises: ValueError if there is no sample, or samples have several labels.
    Source: the shares are those of Kang et al., Decoupling (arXiv 1910.09217) section 3.
    """
    if labels_N.ndim != 1 or not len(labels_N):
        raise ValueError(f"labels should be one a sample, and are of shape {labels_N.shape}")
    counts_C = np.bincount(labels_N)
    turns_C = _turns(counts_C, num_positions, power)
    classes_T, places_T = _round(turns_C)

    shuffled_N = epoch_permutation(key_of(_BALANCE_KEY, seed), 0, len(labels_N))
    small = np.uint16 if len(counts_C) <= _RADIX_CLASSES else np.int64
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N].astype(small), kind="stable")]
    starts_C = np.cumsum(counts_C) - counts_C

    sequence_P = epoch_permutation(seed, epoch, num_positions) + epoch * num_positions
    rounds_P, turns_P = np.divmod(sequence_P, len(classes_T))
    classes_P = classes_T[turns_P]
    given_P = rounds_P * turns_C[classes_P] + places_T[turns_P]
    order_P: NDArray[np.int64] = by_class_N[starts_C[classes_P] + given_P % counts_C[classes_P]]
    return order_P


def _turns(counts_C: NDArray[np.int64], num_positions: int, power: float) -> NDArray[np.int64]:
    """Return each class's turns in a round of about one epoch; any that has samples has one."""
    weights_C = np.where(counts_C > 0, counts_C.astype(np.float64) ** power, 0.0)
    # fsum: its result is exact, and so the same on every machine.
    shares_C = num_positions * weights_C / math.fsum(weights_C)
    turns_C = np.where(counts_C > 0, np.maximum(1, np.rint(shares_C)), 0).astype(np.int64)
    shortest: NDArray[np.int64] = turns_C // np.gcd.reduce(turns_C)
    return shortest


def _round(turns_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each turn of a round whose it is, and which of that class's turns."""
    classes_T = np.repeat(np.arange(len(turns_C)), turns_C)
    places_T = np.arange(len(classes_T)) - np.repeat(np.cumsum(turns_C) - turns_C, turns_C)
    order_T = np.argsort((2 * places_T + 1) / (2 * turns_C[classes_T]), kind="stable")
    return classes_T[order_T], places_T[order_T]


def are_unequal(counts_C: NDArray[np.int64]) -> bool:
    """Tell whether some class has more than twice the samples of another that has any."""
    present = counts_C[counts_C > 0]
    return bool(len(present) and present.max() > 2 * present.min())


def balanced_class_weights(counts_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights for a softmax loss, with which each class counts the same.

    N / (classes * count), as scikit-learn's "balanced", over the classes that have samples; a
    class without any has weight 0. Their average over the samples is 1, so that the learning rate
    keeps its meaning.

    Args:
      counts_C: int [C], samples of each class.
    """
    present = np.count_nonzero(counts_C)
    weights_C = counts_C.sum() / (max(present, 1) * np.maximum(counts_C, 1))
    return np.where(counts_C > 0, weights_C, 0.0)


def balanced_positive_weights(counts_C: NDArray[np.int64], num_samples: int) -> NDArray[np.float64]:
    """Return weights of the positive answers for a sigmoid loss, with which yes and no count alike.

    Samples without the label / samples with it, as torch's `pos_weight`; 1 where that is 0 or
    undefined, because no sample has the label or all have.

    Args:
      counts_C: int [C], samples that have each label.
      num_samples: N.
    """
    weights_C = (num_samples - counts_C) / np.maximum(counts_C, 1)
    return np.where((counts_C > 0) & (counts_C < num_samples), weights_C, 1.0)
