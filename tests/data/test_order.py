import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitbase.data.order import (
    epoch_permutation,
    key_of,
    micro_batches,
    repeat_places,
    sample_generator,
    steps_per_epoch,
)

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10_000)


def test_recorded_values():
    # Part of every run's identity: if these change, no old run can be continued.
    assert epoch_permutation(0, 0, 10).tolist() == [5, 9, 2, 7, 1, 8, 3, 0, 4, 6]
    assert epoch_permutation(2**63 - 1, 3, 10).tolist() == [5, 0, 9, 4, 2, 1, 8, 3, 7, 6]
    assert int(epoch_permutation(1, 2, 1_281_167)[:1000].sum()) == 612_884_823
    assert key_of(1, 2) == 15444438625902686236
    assert sample_generator(0, 0, 1).random(2).tolist() == [0.6627158078159519, 0.5555372989063048]


@given(seeds, epochs, st.integers(0, 2000))
def test_every_sample_once(seed, epoch, n):
    order = epoch_permutation(seed, epoch, n)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


@given(seeds, epochs)
def test_orders_differ(seed, epoch):
    order = epoch_permutation(seed, epoch, 100)
    assert not np.array_equal(order, epoch_permutation(seed, epoch + 1, 100))
    assert not np.array_equal(order, epoch_permutation(seed ^ 1, epoch, 100))
    # A sum of seed and epoch would give these two the same order.
    assert not np.array_equal(order, epoch_permutation(seed ^ 1, epoch ^ 1, 100))


def test_order_is_uniform():
    # Each of 8 samples at each of 8 places: 4000 epochs, expected 500 each, deviation about 21.
    orders = np.stack([epoch_permutation(7, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])
    assert abs(counts - 500).max() < 100
    # Nor does one place follow from the one before: all 56 ordered pairs are about as frequent.
    pairs = np.bincount(orders[:, 0] * 8 + orders[:, 1], minlength=64)
    assert abs(pairs[pairs > 0] - 4000 / 56).max() < 45
    assert (pairs > 0).sum() == 56


@given(
    st.lists(st.tuples(seeds, epochs, st.integers(0, 10**7)), min_size=2, max_size=20, unique=True)
)
def test_samples_have_streams_of_their_own(keys):
    draws = [tuple(sample_generator(*key).random(4).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)


def test_epoch_and_position_do_not_collide():
    draws = {
        sample_generator(seed, epoch, position).random()
        for seed in range(12)
        for epoch in range(12)
        for position in range(12)
    }
    assert len(draws) == 12**3


def test_a_generator_starts_anew():
    first = sample_generator(3, 1, 5).random(7)
    sample_generator(3, 1, 6).random(3)
    again = sample_generator(3, 1, 5)
    # One by one or many at once: the same numbers.
    assert [again.random() for _ in range(7)] == first.tolist()


def test_threads_do_not_share_a_generator():
    mine = sample_generator(0, 0, 0)
    others = []
    thread = threading.Thread(target=lambda: others.append(sample_generator(0, 0, 1)))
    thread.start()
    thread.join()
    assert others[0] is not mine
    assert mine.random() == sample_generator(0, 0, 0).random()


@given(
    st.integers(1, 50),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_steps_cut_the_epoch_into_even_slices(n, batch_size, accumulation):
    global_batch = batch_size * accumulation
    steps = steps_per_epoch(n, global_batch)
    places = [
        position
        for step in range(steps)
        for slice_ in micro_batches(step, global_batch, batch_size)
        for position in slice_
    ]
    assert places == list(range(n // global_batch * global_batch))


@given(st.integers(1, 8), st.integers(1, 400))
def test_repeated_samples_are_close_but_never_partners(repeats, blocks):
    positions = np.arange(blocks * repeats * 3)
    places = repeat_places(positions, repeats)
    assert np.array_equal(np.bincount(places), np.full(blocks * 3, repeats))
    assert (places <= positions).all()
    even = places[: len(places) // 2 * 2].reshape(-1, 2)
    assert repeats == 1 or (even[:, 0] != even[:, 1]).all()
    for place in (0, blocks * 3 - 1):
        found = np.flatnonzero(places == place)
        assert found[-1] - found[0] == 3 * (repeats - 1) or repeats == 1


def test_repeated_order_is_recorded():
    assert repeat_places(np.arange(12), 3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert repeat_places(np.arange(7), 2).tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert repeat_places(np.arange(5), 1).tolist() == [0, 1, 2, 3, 4]
