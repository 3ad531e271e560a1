import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbase.data.balance import (
    balanced_class_weights,
    balanced_order,
    balanced_positive_weights,
)

seeds = st.integers(0, 2**63 - 1)
class_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


def labels_of(sizes: list[int]) -> np.ndarray:
    """Sorted as a folder of class folders is, but for every third sample."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels[::3] = labels[::3][::-1]
    return labels


def spread(counts: np.ndarray) -> int:
    return int(counts.max() - counts.min())


def test_recorded_values():
    # Part of every run's identity: if these change, no old run can be continued.
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    assert balanced_order(0, 0, labels, 9).tolist() == [7, 7, 6, 6, 7, 4, 3, 5, 0]
    assert balanced_order(0, 1, labels, 9).tolist() == [7, 5, 3, 2, 7, 7, 5, 6, 1]
    assert balanced_order(2**63 - 1, 4, labels, 8, power=0.5).tolist() == [7, 7, 6, 4, 2, 1, 0, 5]
    many = np.arange(100_000) % 317 * (np.arange(100_000) % 2)
    assert int(balanced_order(1, 2, many, 100_000)[:1000].sum()) == 50868007


@given(seeds, class_sizes, st.integers(1, 60), st.integers(1, 5))
def test_classes_come_equally_often_and_so_do_the_images_of_each(seed, sizes, positions, epochs):
    labels = labels_of(sizes)
    present = np.unique(labels)
    seen = np.zeros(len(labels), dtype=np.int64)
    for epoch in range(epochs):
        order = balanced_order(seed, epoch, labels, positions)
        assert order.dtype == np.int64
        assert len(order) == positions
        assert spread(np.bincount(labels[order], minlength=len(sizes))[present]) <= 1
        seen += np.bincount(order, minlength=len(labels))
        # Also over all epochs so far: what one epoch leaves out is the next one's.
        of_class = [seen[labels == label] for label in present]
        assert spread(np.array([images.sum() for images in of_class])) <= 1
        assert all(spread(images) <= 1 for images in of_class)


@given(seeds, class_sizes, st.integers(1, 60), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_images_of_a_class_come_equally_often_with_any_power(seed, sizes, positions, power):
    labels = labels_of(sizes)
    orders = [balanced_order(seed, epoch, labels, positions, power=power) for epoch in range(3)]
    seen = np.bincount(np.concatenate(orders), minlength=len(labels))
    assert all(spread(seen[labels == label]) <= 1 for label in np.unique(labels))


@given(seeds, class_sizes, st.integers(0, 3))
def test_power_1_is_every_sample_once(seed, sizes, epoch):
    labels = labels_of(sizes)
    order = balanced_order(seed, epoch, labels, len(labels), power=1.0)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))


def test_power_half_is_half_way():
    labels = np.repeat(np.arange(3), [1600, 100, 400])
    for epoch in range(3):
        order = balanced_order(3, epoch, labels, 2100, power=0.5)
        assert np.bincount(labels[order]).tolist() == [1200, 300, 600]


def test_rare_and_frequent_classes_alternate_without_a_pattern():
    labels = np.repeat([0, 1], [5000, 50])
    order = balanced_order(0, 0, labels, 5000)
    first = labels[order][:-1] == labels[order][1:]
    assert 0.45 < first.mean() < 0.55  # as often followed by its own class as not
    rare = order[labels[order] == 1]
    gaps = np.diff(np.flatnonzero(rare == rare[0]))
    assert gaps.min() < 50 < gaps.max()  # not in turn


def test_orders_differ_by_seed_and_epoch():
    labels = labels_of([40, 5, 9])
    orders = {
        tuple(balanced_order(seed, epoch, labels, 54)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_more_classes_than_16_bits_can_name():
    labels = np.array([70_000, 3, 3, 70_000, 3])
    order = balanced_order(0, 0, labels, 12)
    assert np.bincount(labels[order])[[3, 70_000]].tolist() == [6, 6]


def test_several_labels_have_no_such_order():
    for labels in (np.zeros((4, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)):
        with pytest.raises(ValueError, match="one a sample"):
            balanced_order(0, 0, labels, 4)


@given(class_sizes)
def test_weights_give_each_class_the_same_sum_and_average_1(sizes):
    counts = np.array(sizes)
    weights = balanced_class_weights(counts)
    sums = (weights * counts)[counts > 0]
    assert sums == pytest.approx(np.full(len(sums), counts.sum() / len(sums)))
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert (weights[counts == 0] == 0).all()


def test_positive_weights_are_torchs():
    weights = balanced_positive_weights(np.array([100, 300, 0, 400]), 400)
    assert weights.tolist() == pytest.approx([3.0, 1 / 3, 1.0, 1.0])
