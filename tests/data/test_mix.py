import itertools
import math

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup
from timm.loss import BinaryCrossEntropy

from vitbase.data.mix import Mix, beta_quantile, binarize, cutmix_box, draw_mix, one_hot

BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
MIXES = [Mix(), Mix("mixup", 0.3), Mix("cutmix", 1 - 5 * 7 / (12 * 16), (2, 3, 5, 7))]


def batch(count: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 12, 16, 3, generator=generator).permute(0, 3, 1, 2)
    return images, torch.randint(0, 10, (count,), generator=generator)


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.kind)
def test_slices_mix_by_themselves(mix):
    images, labels = batch()
    labels[3] = -100
    before = images.clone()
    whole, targets = mix.images(images, labels), mix.targets(labels, 10, 0.1)
    assert torch.equal(images, before)
    assert whole.stride() == images.stride()
    for cuts in ([0, 4, 8, 12], [0, 2, 12], [0, 6, 12]):
        slices = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(whole, torch.cat([mix.images(images[s], labels[s]) for s in slices]))
        parts = [mix.targets(labels[s], 10, 0.1) for s in slices]
        assert torch.equal(targets, torch.cat(parts))


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.kind)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixing_is_timms(monkeypatch, mix, smoothing):
    """Of a batch of two, timm's partners are ours: it mixes position i with B - 1 - i."""
    images, labels = batch(2)
    theirs = timm_mixup.Mixup(num_classes=10, label_smoothing=smoothing)
    top, left, height, width = mix.box
    box = (top, top + height, left, left + width)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (mix.lam, mix.kind == "cutmix"))
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *a, **k: (box, mix.lam))
    expected_images, expected_targets = theirs(images.clone(), labels)
    torch.testing.assert_close(mix.images(images, labels), expected_images, rtol=0, atol=1e-6)
    targets = mix.targets(labels, 10, smoothing)
    torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(2))


def test_several_labels_are_mixed_as_timms(monkeypatch):
    several = (torch.arange(20).view(2, 10) % 3 == 0).long()
    theirs = timm_mixup.mixup_target(several, 10, 0.3, 0.1, multi_label=True)
    torch.testing.assert_close(Mix("mixup", 0.3).targets(several, 10, 0.1), theirs)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.83, 1.0])
def test_boxes_are_timms(monkeypatch, lam):
    generator = np.random.default_rng(0)
    for _ in range(50):
        down, right = generator.random(2).tolist()
        centres = iter([int(down * 24), int(right * 31)])
        monkeypatch.setattr(np.random, "randint", lambda *a, c=centres, **k: next(c))
        (top, bottom, left, end), expected_lam = timm_mixup.cutmix_bbox_and_lam((3, 24, 31), lam)
        monkeypatch.undo()
        box = cutmix_box((24, 31), lam, down, right)
        assert box == (top, left, bottom - top, end - left)
        assert 1 - box[2] * box[3] / (24 * 31) == pytest.approx(expected_lam)


@pytest.mark.parametrize("mix", MIXES[1:], ids=lambda mix: mix.kind)
def test_a_bad_image_poisons_nothing(mix):
    images, labels = batch(6)
    images[2] = 1e4
    labels[2] = -100
    mixed, targets = mix.images(images, labels), mix.targets(labels, 10)
    assert torch.equal(mixed[2:4], images[2:4])
    assert not torch.equal(mixed[:2], images[:2])
    assert torch.equal(targets[2], torch.zeros(10))
    assert torch.equal(targets[3], one_hot(labels, 10)[3])
    assert targets[4].sum() == 1
    several = one_hot(labels.clamp(min=0), 10).long()
    several[2] = -100
    assert torch.equal(mix.targets(several, 10), targets)
    assert torch.equal(mix.images(images, several), mixed)


@pytest.mark.parametrize("mix", MIXES)
def test_numbers_on_the_device_mix_alike(mix):
    images, labels = torch.randn(8, 3, 12, 16), torch.tensor([1, 2, 3, -1, 4, 5, 0, 0])
    device = torch.device("cpu")
    there = mix.on_device(device)
    assert torch.equal(there.images(images, labels), mix.images(images, labels))
    assert torch.equal(there.targets(labels, 10, 0.1), mix.targets(labels, 10, 0.1))


def test_an_odd_batch_is_mixed_by_nobody():
    images, labels = batch(3)
    assert Mix().images(images, labels) is images
    assert Mix().targets(labels, 10).shape == (3, 10)
    for mix in MIXES:
        if mix.kind == "none":
            continue
        with pytest.raises(ValueError, match="even"):
            mix.images(images, labels)
        with pytest.raises(ValueError, match="even"):
            mix.targets(labels, 10)


def test_binary_targets_are_timms():
    labels = batch(8)[1]
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    targets = Mix("mixup", 0.3).targets(labels, 10)
    expected = BinaryCrossEntropy(target_threshold=0.0)(logits, targets)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, binarize(targets))
    assert loss == expected
    assert set(binarize(targets).sum(1).tolist()) <= {1.0, 2.0}
    assert torch.equal(binarize(targets, 0.5).sum(1), torch.ones(8))


def test_a_draw_is_a_function_of_seed_epoch_and_step():
    draws = [
        draw_mix(seed, epoch, step, (32, 48), **BOTH)
        for seed, epoch, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))
    ]
    assert draws[0] == draws[4]
    assert len(set(draws[:4])) == 4
    # These numbers are part of a run's identity.
    recorded = [draw_mix(8, 2, step, (224, 224), **BOTH) for step in range(3)]
    assert [(mix.kind, mix.box) for mix in recorded] == [
        ("cutmix", (156, 183, 40, 40)),
        ("mixup", (0, 0, 0, 0)),
        ("mixup", (0, 0, 0, 0)),
    ]
    assert [mix.lam for mix in recorded] == pytest.approx(
        [0.9681122448979592, 0.2709945993221723, 0.20409386270782903], abs=1e-11
    )


def test_draws_have_the_probabilities_asked_for():
    count = 2000

    def kinds(**options):
        mixes = [draw_mix(0, 0, step, (64, 64), **options) for step in range(count)]
        return [
            sum(mix.kind == kind for mix in mixes) / count for kind in ("none", "mixup", "cutmix")
        ]

    assert kinds() == [1, 0, 0]
    assert kinds(mixup_alpha=0.5) == [0, 1, 0]
    assert kinds(cutmix_alpha=0.5) == [0, 0, 1]
    expected = [0.2, 0.8 * 0.3, 0.8 * 0.7]
    found = kinds(**BOTH, mix_probability=0.8, mix_switch_probability=0.7)
    assert all(
        abs(a - b) < 4 * math.sqrt(b * (1 - b) / count)
        for a, b in zip(found, expected, strict=True)
    )


def test_lambdas_have_betas_moments():
    for alpha in (0.2, 0.8, 1.0):
        lams = np.array([draw_mix(1, 0, s, (9, 9), mixup_alpha=alpha).lam for s in range(2000)])
        assert abs(lams.mean() - 0.5) < 0.03
        assert abs(lams.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_quantiles_in_closed_form():
    for u in (1e-9, 0.001, 0.1, 0.37, 0.5, 0.62, 0.99, 1 - 1e-9):
        assert beta_quantile(1.0, u) == pytest.approx(u, abs=1e-12)
        assert beta_quantile(0.5, u) == pytest.approx(math.sin(math.pi * u / 2) ** 2, abs=1e-12)
        x = beta_quantile(2.0, u)
        assert 3 * x**2 - 2 * x**3 == pytest.approx(u, abs=1e-11)
    assert beta_quantile(0.2, 0.0) == pytest.approx(0, abs=1e-12)
    assert beta_quantile(0.2, 1.0) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0, 20.0])
def test_quantiles_by_integration(alpha):
    power = min(alpha, 1)  # over x ** power, the density is smooth up to the middle

    def mass(x: float) -> float:
        end = x**power
        places = ((np.arange(20_000) + 0.5) * (end / 20_000)) ** (1 / power)
        return float((places ** (alpha - power) * (1 - places) ** (alpha - 1)).sum()) * end

    for u in (0.05, 0.3, 0.45):
        x = beta_quantile(alpha, u)
        assert mass(x) / mass(0.5) / 2 == pytest.approx(u, abs=1e-7)
        assert beta_quantile(alpha, 1 - u) == pytest.approx(1 - x, abs=1e-12)
