"""Order is arithmetic: which sample stands where, and its random numbers, are functions of numbers.

Nothing here keeps a state that a resume would have to restore. The numbers these functions return
are part of a run's identity: they may never change, and tests hold them against recorded values.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1
_ORDER_KEY = 0x6F72646572  # "order": keeps the shuffle apart from every other use of the seed
_IN_TURN = 3  # samples whose copies take turns
_SAMPLE_KEY = 0x73616D706C65  # "sample"


def mix64(value: int) -> int:
    """Return a well-mixed 64-bit integer; a bijection of 64-bit integers.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014; variant 13 of Stafford).
    """
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key_of(*parts: int) -> int:
    """Return a 64-bit key of a tuple of integers; (a, b) and (b, a) have different keys."""
    key = 0
    for part in parts:
        # Chained, never summed: each part is mixed with the digest of all parts before it.
        key = mix64((key * 0x9E3779B97F4A7C15 + mix64((part + 1) & _MASK) + 1) & _MASK)
    return key


def _mix64_in_place(values: NDArray[np.uint64]) -> None:
    """Apply :func:`mix64` to every element."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)


def epoch_permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order of all samples in an epoch: position -> sample index.

    Every index gets a 64-bit number, and the indices are sorted by it. That number is a bijection
    of the index, so there are no ties, and any sorting algorithm gives the same order.

    Args:
      seed: seed of the run.
      epoch: counted from 0.
      n: number of samples.
    Returns: int64 [n], a permutation of range(n).
    """
    ranks = np.arange(n, dtype=np.uint64)
    for round_ in range(2):
        ranks ^= np.uint64(key_of(_ORDER_KEY, seed, epoch, round_))
        _mix64_in_place(ranks)
    order: NDArray[np.int64] = np.argsort(ranks).astype(np.int64, copy=False)
    return order


def repeat_places(positions: NDArray[np.int64], repeats: int) -> NDArray[np.int64]:
    """Return the places in the permutation whose samples stand at some positions.

    With repeated augmentation each sample comes ``repeats`` times, with other random numbers, as
    these belong to the position: a, b, c, a, b, c, ... Copies are close, so that they meet in one
    batch, but never at positions 2k and 2k + 1, which MixUp and CutMix mix with each other; with
    an odd number of samples in turn, a copy has another partner than the copy before it. An epoch
    keeps its number of positions, so it shows the ``repeats``-th part of the samples.

    Args:
      positions: int64 [P], of an epoch.
      repeats: copies of each sample, 1 for none.
    Returns: int64 [P]; none is larger than its position.
    Source: Hoffer et al., Augment your batch (arXiv 1901.09335); Berman et al., MultiGrain
      (arXiv 1902.05509) section 3.3.
    """
    if repeats == 1:
        return positions
    turn, within = np.divmod(positions, repeats * _IN_TURN)
    places: NDArray[np.int64] = turn * _IN_TURN + within % _IN_TURN
    return places


def steps_per_epoch(n: int, global_batch: int) -> int:
    """Return floor(n / global_batch): what is left of the permutation is dropped that epoch."""
    return n // global_batch


def micro_batches(step: int, global_batch: int, batch_size: int) -> list[range]:
    """Return the positions of a step's forward passes: contiguous, even slices in order.

    Args:
      step: within the epoch, from 0.
      global_batch: images per update, a multiple of ``batch_size``.
      batch_size: images per forward pass.
    """
    start = step * global_batch
    return [
        range(first, first + batch_size) for first in range(start, start + global_batch, batch_size)
    ]


class _Reusable(threading.local):
    """One generator per thread, whose state is set anew: ten times cheaper than building one."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.generator = np.random.Generator(self.philox)
        self.state = self.philox.state
        self.state["buffer_pos"] = 4  # the buffer counts as used up
        self.counter: NDArray[np.uint64] = self.state["state"]["counter"]
        self.key: NDArray[np.uint64] = self.state["state"]["key"]


_reusable = _Reusable()


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Return the random numbers of the sample at a position of an epoch.

    Philox is a counter-based generator: seed goes into its key, epoch and position into the upper
    words of its counter, so that no two tuples share a stream. Draw with ``.random()`` only, whose
    values stay the same across versions of numpy.

    The generator belongs to the calling thread and is valid until the thread's next call.
    """
    reusable = _reusable
    counter, key = reusable.counter, reusable.key
    counter[0] = 0  # the generator counts up here
    counter[1] = 0
    counter[2] = position
    counter[3] = epoch
    key[0] = seed
    key[1] = _SAMPLE_KEY
    reusable.philox.state = reusable.state
    return reusable.generator
