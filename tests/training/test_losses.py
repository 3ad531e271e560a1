"""Losses as sums: their definitions, agreement with timm, and parts that add up to the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from vitbase.data.loader import IGNORED_LABEL
from vitbase.data.mix import Mix, one_hot
from vitbase.training.losses import Loss, build_loss

B, C = 8, 5
LOSSES = {
    "softmax": build_loss("softmax", C),
    "softmax, smoothed, weighted": build_loss(
        "softmax", C, label_smoothing=0.1, class_weights=torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
    ),
    "sigmoid": build_loss("sigmoid", C),
    "sigmoid, smoothed, weighted": build_loss(
        "sigmoid",
        C,
        label_smoothing=0.2,
        over_classes="mean",
        class_weights=torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]),
    ),
    "sigmoid, binary": build_loss("sigmoid", C, target_threshold=0.0, over_classes="mean"),
}


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 4, 2, 2, 1, 3, 0, 1])


@pytest.fixture
def mixed(labels) -> torch.Tensor:
    return Mix("mixup", 0.3).targets(labels, C, label_smoothing=0.1)


def test_plain_softmax_is_torchs_summed(logits, labels):
    expected = F.cross_entropy(logits, labels, reduction="sum")
    assert torch.equal(LOSSES["softmax"](logits, labels), expected)


def test_softmax_by_definition(logits, labels, mixed):
    log_probabilities = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    expected = -(mixed.double() * log_probabilities).sum()
    assert LOSSES["softmax"](logits, mixed).item() == pytest.approx(expected.item(), rel=1e-6)
    mean = SoftTargetCrossEntropy()(logits, mixed)
    assert LOSSES["softmax"](logits, mixed).item() == pytest.approx(B * mean.item(), rel=1e-6)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
    weighted = build_loss("softmax", C, class_weights=weights)(logits, labels)
    terms = [-weights[label] * log_probabilities[row, label] for row, label in enumerate(labels)]
    assert weighted.item() == pytest.approx(sum(term.item() for term in terms), rel=1e-6)


def test_sigmoid_by_definition(logits, mixed):
    """The sum over classes is big_vision's sigmoid_xent before its mean over images."""
    p, t = logits.double().sigmoid(), mixed.double()
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).sum()
    summed, averaged = (
        build_loss("sigmoid", C, over_classes=over)(logits, mixed) for over in ("sum", "mean")
    )
    assert summed.item() == pytest.approx(expected.item(), rel=1e-6)
    assert averaged.item() == pytest.approx(expected.item() / C, rel=1e-6)
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])
    expected = -(weights.double() * t * p.log() + (1 - t) * (1 - p).log()).sum()
    weighted = build_loss("sigmoid", C, class_weights=weights)(logits, mixed)
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("over_classes", ["sum", "mean"])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_sigmoid_agrees_with_timm(logits, labels, mixed, over_classes, threshold):
    ours = build_loss(
        "sigmoid",
        C,
        label_smoothing=0.1,
        over_classes=over_classes,
        target_threshold=threshold,
    )
    theirs = BinaryCrossEntropy(
        smoothing=0.1, target_threshold=threshold, sum_classes=over_classes == "sum"
    )
    for targets in (labels, mixed):
        expected = B * theirs(logits, targets).item()
        assert ours(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_deit_iii_counts_both_labels_of_a_mixed_image_in_full(logits, labels):
    targets = Mix("mixup", 0.3).targets(labels, C)
    both = one_hot(labels, C)
    both[0::2], both[1::2] = both[0::2] + both[1::2], both[0::2] + both[1::2]
    expected = F.binary_cross_entropy_with_logits(logits, both.clamp(max=1)) * B
    got = LOSSES["sigmoid, binary"](logits, targets)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_labels_are_the_fast_path_of_their_targets(loss: Loss, logits, labels):
    targets = one_hot(labels, C, loss.label_smoothing)
    torch.testing.assert_close(loss(logits, labels), loss(logits, targets), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@given(cut=st.integers(1, B - 1))
def test_parts_add_up_to_the_whole_and_to_its_gradient(loss: Loss, cut: int):
    generator = torch.Generator().manual_seed(cut)
    logits = torch.randn(B, C, generator=generator).requires_grad_()
    labels = torch.randint(C, (B,), generator=generator)
    whole = loss(logits, labels)
    parts = loss(logits[:cut], labels[:cut]) + loss(logits[cut:], labels[cut:])
    torch.testing.assert_close(whole, parts)
    for total in (whole, parts):
        (total / B).backward()
    doubled = logits.grad
    logits.grad = None
    (loss(logits, labels) / B).backward()
    torch.testing.assert_close(doubled, 2 * logits.grad)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_image_that_could_not_be_read_adds_nothing(loss: Loss, logits, labels):
    readable = torch.tensor([True, False, True, True, False, True, True, True])
    expected = loss(logits[readable], labels[readable])
    spoilt = logits.clone()
    spoilt[~readable] = torch.inf  # whatever the model says of it
    spoilt.requires_grad_()
    marked = labels.masked_fill(~readable, IGNORED_LABEL)
    targets = one_hot(marked, C, loss.label_smoothing)
    for got in (
        loss(logits, marked),
        loss(logits, labels, readable),
        loss(logits, targets, readable),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    if loss.kind == "sigmoid":
        got = loss(spoilt, targets, readable)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_an_image_without_any_label_counts_for_sigmoid(logits):
    none = torch.zeros(B, C)
    expected = F.softplus(logits).sum()
    torch.testing.assert_close(LOSSES["sigmoid"](logits, none), expected)
    assert LOSSES["softmax"](logits, none) == 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_logits_are_summed_in_float32(loss: Loss, logits, labels):
    got = loss(logits.bfloat16(), labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss(logits.bfloat16().float(), labels))


def test_weights_of_average_1_leave_the_loss_of_an_even_model_alone(labels):
    counts = torch.bincount(labels, minlength=C)
    weights = len(labels) / (C * counts)
    even = torch.zeros(B, C)
    weighted = build_loss("softmax", C, class_weights=weights)
    torch.testing.assert_close(weighted(even, labels), LOSSES["softmax"](even, labels))


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 5 classes"):
        build_loss("softmax", C, class_weights=torch.ones(3))
    with pytest.raises(ValueError, match="belong to loss 'sigmoid'"):
        build_loss("softmax", C, target_threshold=0.0)
    with pytest.raises(ValueError, match="belong to loss 'sigmoid'"):
        build_loss("softmax", C, over_classes="mean")
    with pytest.raises(ValueError, match="lifts every one of 5 classes"):
        build_loss("sigmoid", C, label_smoothing=0.1, target_threshold=0.0)
