"""RandAugment beside its origins, 3-Augment, colour jitter, erasing."""

import math
import random
from collections import Counter
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from made_images import photo
from PIL import Image
from timm.data import auto_augment as timm_augment
from timm.data.random_erasing import RandomErasing as TimmErasing
from torchvision.transforms import autoaugment as tv_augment

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import build_policy
from vitbase.data.decode import cut
from vitbase.data.order import sample_generator
from vitbase.data.policies.policies import (
    ColorJitter,
    RandomErasing,
    Step,
    ThreeAugment,
    apply_steps,
    cut_reflected,
    draw_simple_window,
)
from vitbase.data.policies.randaugment import (
    BIG_VISION,
    KINDS,
    TIMM,
    TIMM_INCREASING,
    TORCHVISION,
    RandAugment,
)

COLOUR, GREY = default_preprocess(48, 40, 3), default_preprocess(48, 40, 1)
MEAN_COLOUR = (124, 116, 104)
TIMM_NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize_add",
    "Color": "saturation",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_share_x",
    "TranslateYRel": "translate_share_y",
}
TORCHVISION_NAMES = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_bin_x",
    "TranslateY": "translate_bin_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}


class Numbers:
    """Stands in for a generator: gives the numbers it was made of."""

    def __init__(self, *numbers: float):
        self.numbers = list(numbers)

    def random(self, count=None):
        if count is None:
            return self.numbers.pop(0)
        found, self.numbers = self.numbers[:count], self.numbers[count:]
        return np.array(found)


def one_step(policy: RandAugment, place: int, *, negative: bool, sampling: float = 0.0) -> Step:
    """Return the step of a row of the policy's table, as if it had been drawn."""
    choice = (place + 0.5) / len(policy.rows)
    numbers = (0.0, choice, 0.5, 0.25 if negative else 0.75, sampling, 0.5, 0.5)
    return policy.draw(Numbers(*numbers * policy.num_layers))[0]


def apart(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    return abs(pixels.astype(int) - np.asarray(image).reshape(pixels.shape).astype(int))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0, 0.3, 4, 7.77, 9, 10, 12])
def test_steps_are_timms(monkeypatch, increasing, magnitude, negative):
    pixels = photo(48, 40)
    monkeypatch.setattr(random, "random", lambda: 1.0 if negative else 0.0)
    names = timm_augment.rand_augment_choices("", increasing=increasing)
    rows = TIMM_INCREASING if increasing else TIMM
    assert [TIMM_NAMES[name.replace("Increasing", "")] for name in names] == [r.name for r in rows]
    for resampling in ("bilinear", "bicubic"):
        policy = RandAugment("timm", 1, magnitude, increasing=increasing, preprocess=COLOUR)
        for place, name in enumerate(names):
            step = one_step(
                policy, place, negative=negative, sampling=0.0 if resampling == "bilinear" else 0.9
            )
            assert step.resampling == resampling
            result = apply_steps(pixels, [step], policy.fill)
            if step.name == "posterize" and step.value == 0:  # Pillow now refuses 0 bits
                assert not result.any()
                continue
            hparams = {
                "img_mean": MEAN_COLOUR,
                "interpolation": Image.Resampling[resampling.upper()],
            }
            theirs = timm_augment.AugmentOp(name, 1.0, magnitude, hparams)
            found = apart(result, theirs(Image.fromarray(pixels)))
            geometric = step.name.startswith(("shear", "translate", "rotate"))
            assert found.max() <= (1 if geometric else 0), (name, step)
            assert np.count_nonzero(found) <= found.size / 10


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("magnitude", [0, 1, 7, 9, 15, 22, 30])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_steps_are_torchvisions(resampling, magnitude, negative):
    pixels = photo(48, 40)
    policy = RandAugment("torchvision", 1, magnitude, interpolation=resampling, preprocess=COLOUR)
    space = tv_augment.RandAugment()._augmentation_space(31, (48, 40))
    assert sorted(TORCHVISION_NAMES[name] for name in space) == sorted(r.name for r in TORCHVISION)
    assert {TORCHVISION_NAMES[n] for n, (_, signed) in space.items() if signed} == {
        row.name for row in TORCHVISION if row.signed
    }
    names = {ours: theirs for theirs, ours in TORCHVISION_NAMES.items()}
    for place, row in enumerate(TORCHVISION):
        step = one_step(policy, place, negative=negative)
        magnitudes, signed = space[names[row.name]]
        value = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
        expected = tv_augment._apply_op(
            Image.fromarray(pixels),
            names[row.name],
            -value if signed and negative else value,
            tv.InterpolationMode(resampling),
            None,
        )
        found = apart(apply_steps(pixels, [step], policy.fill), expected)
        assert found.max() <= (1 if row.name.startswith(("shear", "rotate")) else 0), (step, value)
        assert np.count_nonzero(found) <= found.size / 50


def test_steps_are_big_visions():
    """Its own numbers at magnitude 15, and at 10 where they stay in range."""
    expected = {
        "autocontrast": 0,
        "equalize": 0,
        "invert": 0,
        "rotate": 45,
        "posterize": 6,
        "solarize": 384,
        "saturation": 2.8,
        "contrast_with_constant": 2.8,
        "brightness": 2.8,
        "sharpness": 2.8,
        "shear_about_pixel_x": 0.45,
        "shear_about_pixel_y": 0.45,
        "translate_x": 150,
        "translate_y": 150,
        "cutout": 60,
        "solarize_add": 165,
    }
    policy = RandAugment("big_vision", 2, 15, preprocess=COLOUR)
    assert policy.fill == (128, 128, 128)
    signed = ("rotate", "shear", "translate")
    pixels = photo(224, 224)
    for place, row in enumerate(BIG_VISION):
        for negative in (False, True):
            step = one_step(policy, place, negative=negative)
            sign = -1 if negative and row.name.startswith(signed) else 1
            assert step.value == pytest.approx(sign * expected.pop(row.name, abs(step.value)))
            result = apply_steps(pixels, [step], policy.fill)
            assert result.shape == pixels.shape
            if row.name == "cutout":
                assert (result[52:172, 52:172] == 128).all()
                assert (result == pixels).mean() > 0.7
            if row.name == "contrast_with_constant":
                grey = Image.new("RGB", (224, 224), (196,) * 3)
                assert not apart(result, Image.blend(grey, Image.fromarray(pixels), 2.8)).any()
            if row.name == "shear_about_pixel_x":
                assert np.array_equal(result[0], pixels[0])
                moved = round(step.value * 100)
                inside = slice(max(0, -moved), 224 - max(0, moved))
                source = pixels[100, max(0, moved) : 224 + min(0, moved)]
                assert np.array_equal(result[100, inside], source)
    assert not expected


@pytest.mark.parametrize("kind", ["timm", "torchvision", "big_vision"])
@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
def test_any_image_of_any_number_of_channels(kind, preprocess):
    policy = RandAugment(kind, 2, 9, preprocess=preprocess)
    for size in ((48, 40), (1, 1), (3, 70)):
        pixels = photo(*size, channels=preprocess.channels)
        before = pixels.copy()
        for position in range(60):
            result = policy(pixels, sample_generator(0, 0, position))
            assert result.shape == pixels.shape
            assert result.dtype == np.uint8
            assert np.array_equal(pixels, before)
            again = policy(pixels, sample_generator(0, 0, position))
            assert np.array_equal(result, again)


def within_chance(counts: dict, expected: dict, total: int) -> bool:
    """Whether all counts lie within 4 standard deviations."""
    return set(counts) <= set(expected) and all(
        abs(counts.get(key, 0) - total * share) < 4 * math.sqrt(total * share * (1 - share))
        for key, share in expected.items()
    )


@pytest.mark.parametrize("kind", ["timm", "torchvision", "big_vision"])
def test_choices_are_the_origins(kind):
    count, layers = 6000, 2
    policy = RandAugment(kind, layers, 9, preprocess=COLOUR)
    drawn = [policy.draw(sample_generator(3, 0, position)) for position in range(count)]
    probability = 0.5 if kind == "timm" else 1.0
    names = Counter(step.name for steps in drawn for step in steps)
    share = probability / len(policy.rows)
    assert within_chance(names, {row.name: share for row in policy.rows}, layers * count)
    if kind == "timm":  # each layer is left out on its own
        lengths = Counter(len(steps) for steps in drawn)
        assert within_chance(lengths, {0: 0.25, 1: 0.5, 2: 0.25}, count)
        samplings = Counter(step.resampling for steps in drawn for step in steps)
        total = sum(samplings.values())
        assert within_chance(samplings, {"bilinear": 0.5, "bicubic": 0.5}, total)
    else:  # with replacement
        same = sum(len(steps) == 2 and steps[0].name == steps[1].name for steps in drawn)
        assert within_chance({1: same}, {1: 1 / len(policy.rows)}, count)
    signs = Counter(
        step.value < (1 if row.start else 0)
        for steps in drawn
        for step in steps
        for row in policy.rows
        if row.signed and row.name == step.name
    )
    assert within_chance(signs, {True: 0.5, False: 0.5}, sum(signs.values()))


def test_magnitudes_are_timms():
    """Normal, clipped to 0 to 10; beyond 100, uniform."""
    count = 6000

    def magnitudes(mean, std):
        policy = RandAugment("timm", 1, mean, std, preprocess=COLOUR)
        drawn = [policy.draw(sample_generator(5, 0, position)) for position in range(count)]
        return np.array([abs(s[0].value) / 3 for s in drawn if s and s[0].name == "rotate"])

    found = magnitudes(9, 0.5)
    assert len(found) == pytest.approx(count / 30, rel=0.3)
    for limit in (8.25, 8.75, 9.0, 9.5):
        share = NormalDist(9, 0.5).cdf(limit)
        error = 4 * math.sqrt(share * (1 - share) / len(found))
        assert abs((found <= limit).mean() - share) < error
    assert found.max() == pytest.approx(10)
    uniform = magnitudes(8, 101)
    assert uniform.max() < 8
    assert abs(uniform.mean() - 4) < 4 * 8 / math.sqrt(12 * len(uniform))
    assert (magnitudes(9, 0.0) == 9).all()


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="belongs to RandAugment of timm"):
        RandAugment("torchvision", 2, 9, 0.5, preprocess=COLOUR)
    for magnitude in (31, -1, 4.5):
        with pytest.raises(ValueError, match="whole number 0 to 30"):
            RandAugment("torchvision", 2, magnitude, preprocess=COLOUR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_runs_randaugment_moves_pixels_as_its_recipes_do(kind, interpolation):
    """timm's and torchvision's training scripts hand the resize's interpolation on."""
    preprocess = COLOUR.model_copy(update={"interpolation": interpolation})
    options = AugmentSection.model_validate({"policy": kind})
    moves = "nearest" if KINDS[kind] == "big_vision" else interpolation
    expected = RandAugment(KINDS[kind], 2, 9, interpolation=moves, preprocess=preprocess)
    policy = build_policy(preprocess, options)
    pixels = photo(24, 24)
    for position in range(40):
        drawn = [draw(pixels, sample_generator(0, 0, position)) for draw in (policy, expected)]
        assert np.array_equal(*drawn)


def test_draws_never_change():
    """They are part of a run's identity."""
    policy = RandAugment("timm", 2, 9, 0.5, preprocess=COLOUR)
    drawn = [policy.draw(sample_generator(1, 2, position)) for position in range(3)]
    assert [[(s.name, round(s.value, 6), s.resampling) for s in steps] for steps in drawn] == [
        [("solarize_add", 97, "bilinear"), ("solarize_add", 95, "bicubic")],
        [("autocontrast", 0.0, "bicubic")],
        [("equalize", 0.0, "bilinear")],
    ]


def test_three_augment():
    count = 3000
    policy = ThreeAugment(0.3)
    drawn = [policy.draw(sample_generator(0, 0, position)) for position in range(count)]
    first = Counter(steps[0].name for steps in drawn)
    assert within_chance(first, dict.fromkeys(("grayscale", "solarize", "blur"), 1 / 3), count)
    sigmas = np.array([steps[0].value for steps in drawn if steps[0].name == "blur"])
    assert 0.1 <= sigmas.min() < 0.15
    assert 1.95 < sigmas.max() <= 2
    assert abs(sigmas.mean() - 1.05) < 0.08
    orders = Counter(tuple(step.name for step in steps[1:]) for steps in drawn)
    assert len(orders) == 6
    assert within_chance(orders, dict.fromkeys(orders, 1 / 6), count)
    factors = np.array([[step.value for step in steps[1:]] for steps in drawn])
    assert abs(factors.mean() - 1) < 0.01
    assert 0.7 <= factors.min() < 0.702
    assert 1.298 < factors.max() <= 1.3
    assert all(
        len(steps) == 1 for steps in map(ThreeAugment(0.0).draw, [sample_generator(0, 0, 0)])
    )


def test_colour_jitter_is_torchvisions():
    pixels = photo(48, 40)
    jitter = ColorJitter(0.4, 0.3, 1.2, 0.1)
    for position in range(20):
        steps = jitter.draw(sample_generator(0, 0, position))
        assert {step.name for step in steps} == {"brightness", "contrast", "saturation", "hue"}
        expected = Image.fromarray(pixels)
        for step in steps:
            expected = getattr(tv.functional, f"adjust_{step.name}")(expected, step.value)
        assert not apart(apply_steps(pixels, steps, (0, 0, 0)), expected).any()
        values = {step.name: step.value for step in steps}
        assert 0.6 <= values["brightness"] <= 1.4
        assert 0 <= values["saturation"] <= 2.2
        assert -0.1 <= values["hue"] <= 0.1
    assert ColorJitter(0, 0, 0).draw(sample_generator(0, 0, 0)) == []


def test_simple_crop_is_torchvisions(monkeypatch):
    pixels = photo(40, 60)
    read = partial(cut, pixels)
    for position in range(40):
        down, right = sample_generator(0, 0, position).random(2).tolist()
        drawn = iter([int(down * 17), int(right * 37)])
        monkeypatch.setattr(torch, "randint", lambda *a, d=drawn, **k: torch.tensor([next(d)]))
        crop = tv.RandomCrop(32, padding=4, padding_mode="reflect")
        expected = np.asarray(crop(Image.fromarray(pixels)))
        monkeypatch.undo()
        top, left = draw_simple_window((40, 60), 32, 32, 4, sample_generator(0, 0, position))
        assert np.array_equal(cut_reflected(read, (40, 60), (top, left, 32, 32)), expected)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), "reflect")
    assert np.array_equal(cut_reflected(read, (40, 60), (-4, -4, 48, 68)), padded)


def test_erased_windows_are_timms(monkeypatch):
    erase = RandomErasing(0.6, "const", COLOUR)
    theirs = TimmErasing(0.6, mode="const", device="cpu")
    erased = 0
    for position in range(300):
        numbers = iter(sample_generator(2, 0, position).random(50).tolist())
        monkeypatch.setattr(random, "random", lambda n=numbers: next(n))
        monkeypatch.setattr(random, "uniform", lambda a, b, n=numbers: a + (b - a) * next(n))
        monkeypatch.setattr(
            random, "randint", lambda a, b, n=numbers: a + int(next(n) * (b - a + 1))
        )
        expected = theirs(torch.ones(3, 48, 40))
        monkeypatch.undo()
        pixels = np.zeros((48, 40, 3), np.uint8)
        erase(pixels, sample_generator(2, 0, position))
        assert np.array_equal(pixels[..., 0] == 124, (expected[0] == 0).numpy())
        erased += pixels.any()
    assert within_chance({1: erased}, {1: 0.6}, 300)


@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
def test_noise_has_the_datas_distribution(preprocess):
    erase = RandomErasing(1.0, "pixel", preprocess, area_range=(0.3, 0.3))
    channels = preprocess.channels
    marked = np.zeros((200, 200, channels), np.uint8)
    window = erase.draw((200, 200), sample_generator(0, 0, 0))
    erase(marked, sample_generator(0, 0, 0))
    top, left, rows, columns = window
    noise = marked[top : top + rows, left : left + columns].reshape(-1, channels).astype(float)
    assert not marked[:top].any()
    assert not marked[:, :left].any()
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        normal = NormalDist(255 * mean, 255 * std)
        for level in (20, 80, 120, 200, 254):
            share = normal.cdf(level + 0.5)
            error = 4 * math.sqrt(share * (1 - share) / len(noise)) + 1e-3
            assert abs((noise[:, channel] <= level).mean() - share) < error
    if channels == 3:
        assert abs(np.corrcoef(noise.T)[0, 1]) < 0.05
    one = np.zeros((200, 200, channels), np.uint8)
    RandomErasing(1.0, "rand", preprocess, area_range=(0.3, 0.3))(one, sample_generator(0, 0, 0))
    block = one[top : top + rows, left : left + columns].reshape(-1, channels)
    assert (block == block[0]).all()
