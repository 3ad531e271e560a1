import io
import math

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from made_images import encode, photo
from PIL import Image

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import (
    EvalTransform,
    TrainTransform,
    centre_window,
    cut,
    draw_window,
    eval_size,
    mirror,
    resize,
    shift,
)
from vitbase.data.normalize import normalize
from vitbase.data.order import sample_generator
from vitbase.errors import ImageError

INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(height=32, width=32, channels=3, **options) -> Preprocess:
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return Preprocess(height=height, width=width, channels=channels, **statistics, **options)


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(abs(a.astype(int) - b.astype(int)).max())


class Recorded:
    """Stands in for torch's uniform draws, so that torchvision makes the same choices."""

    def __init__(self, uniforms):
        self.uniforms = iter(uniforms)

    def uniform_(self, low, high):
        return torch.tensor([low + (high - low) * next(self.uniforms)], dtype=torch.float64)

    def randint(self, low, high, size):
        return torch.tensor([low + int(next(self.uniforms) * (high - low))])


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (28, 28), (40, 900), (900, 40), (1, 1)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
def test_windows_are_torchvisions(monkeypatch, size, area):
    image = Image.new("RGB", size[::-1])
    for position in range(200):
        uniforms = Recorded(sample_generator(0, 0, position).random(100))
        monkeypatch.setattr(
            torch, "empty", lambda _, u=uniforms: type("", (), {"uniform_": u.uniform_})
        )
        monkeypatch.setattr(torch, "randint", uniforms.randint)
        expected = tv.RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3])
        monkeypatch.undo()
        assert draw_window(size, area, sample_generator(0, 0, position)) == tuple(expected)


def test_window_statistics():
    windows = np.array(
        [draw_window((400, 400), (0.08, 1.0), sample_generator(1, 0, p)) for p in range(4000)]
    )
    top, left, height, width = windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 400).all()
    assert 0.07 < (height * width / 400**2).min() < 0.1
    assert abs(np.log(width / height)).max() < math.log(4 / 3) + 0.02
    assert abs(np.log(width / height).mean()) < 0.01


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((375, 500), (256, 341)),
        ((375, 500), (224, 224)),
        ((60, 90), (224, 200)),  # up
        ((61, 300), (120, 100)),  # up one way, down the other
        ((1200, 900), (32, 32)),  # far down
        ((33, 35), (32, 32)),
        ((5, 7), (64, 64)),
    ],
)
def test_resize_is_pillows(size, target, interpolation):
    for seed, channels in ((0, 3), (1, 1)):
        pixels = photo(*size, seed=seed, channels=channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        expected = np.asarray(image.resize(target[::-1], INTERPOLATION[interpolation]))
        assert levels_apart(resize(pixels, *target, interpolation).squeeze(), expected) <= 2


def test_resize_of_a_part_of_a_read_only_image():
    pixels = photo(60, 80)
    expected = resize(pixels[5:45, 10:70].copy(), 32, 32, "bilinear")
    pixels.flags.writeable = False
    assert np.array_equal(resize(cut(pixels, (5, 10, 40, 60)), 32, 32, "bilinear"), expected)
    assert resize(pixels, 60, 80, "bilinear") is pixels


@pytest.mark.parametrize("train_crop", ["random_resized", "pad", "center"])
def test_read_only_images_of_the_right_size(train_crop):
    pixels = photo(32, 32)
    pixels.flags.writeable = False
    for position in range(20):
        options = {"train_crop": train_crop, "crop_area_min": 1.0, "crop_pad": 0}
        out = augmented(pixels, position, preprocess(crop_ratio=1.0), **options)
        if train_crop != "random_resized":
            assert any(np.array_equal(out, view) for view in (pixels, pixels[:, ::-1]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(75, 100), (100, 75), (33, 33), (20, 300), (31, 17)])
def test_evaluation_is_torchvisions(size, crop_ratio, interpolation):
    data = encode(photo(*size), "PNG")
    out = np.zeros((56, 56, 3), np.uint8)
    needs = preprocess(56, 56, crop_ratio=crop_ratio, interpolation=interpolation)
    EvalTransform(needs)(data, None, out)
    peer = tv.Compose(
        [
            tv.Resize(math.floor(56 / crop_ratio), tv.InterpolationMode(interpolation)),
            tv.CenterCrop(56),
        ]
    )
    assert levels_apart(out, np.asarray(peer(Image.open(io.BytesIO(data))))) <= 2


def test_evaluation_sizes_are_timms():
    from timm.data import create_transform

    image = Image.fromarray(photo(75, 101))
    for side in (32, 64, 96):
        for crop_ratio in (0.85, 0.875, 0.88, 0.9, 0.93, 0.94, 0.95, 0.96, 0.965, 0.98, 1.0):
            peer = create_transform(side, crop_pct=crop_ratio, interpolation="bilinear")
            resized = peer.transforms[0](image)
            needs = preprocess(side, side, crop_ratio=crop_ratio)
            assert eval_size((75, 101), needs) == resized.size[::-1]


def test_a_computed_crop_ratio_costs_no_pixel():
    for side in range(16, 600):
        for larger in (side + 1, side + 8, side + 32):
            needs = preprocess(side, side, crop_ratio=side / larger)
            assert eval_size((1000, 1000), needs) == (larger, larger)


@pytest.mark.parametrize("target", [(32, 64), (64, 32), (50, 31)])
@pytest.mark.parametrize("size", [(75, 100), (40, 40), (10, 500)])
def test_evaluation_covers_a_target_that_is_not_square(size, target):
    needs = preprocess(*target, crop_ratio=0.9)
    height, width = eval_size(size, needs)
    goal = (math.floor(target[0] / 0.9), math.floor(target[1] / 0.9))
    assert height >= goal[0]
    assert width >= goal[1]
    assert height == goal[0] or width == goal[1]
    assert abs(math.log(height / width) - math.log(size[0] / size[1])) < 0.05
    out = np.zeros((*target, 3), np.uint8)
    EvalTransform(needs)(photo(*size), None, out)
    window = centre_window((height, width), *target)
    assert np.array_equal(out, cut(resize(photo(*size), height, width, "bilinear"), window))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 4), (-9, 0), (0, 30)])
def test_shift_is_padding_and_cropping(down, right):
    pixels = photo(8, 9)
    padded = np.zeros((8 + 80, 9 + 80, 3), np.uint8)
    padded[40:48, 40:49] = pixels
    out = np.full_like(pixels, 77)
    shift(pixels, down, right, out)
    assert np.array_equal(out, padded[40 - down : 48 - down, 40 - right : 49 - right])


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror(channels):
    pixels = photo(7, 8, channels=channels)
    assert np.array_equal(mirror(pixels), pixels[:, ::-1])


def augmented(raw, position=0, needs=None, **options) -> np.ndarray:
    needs = needs or preprocess()
    out = np.full((needs.height, needs.width, needs.channels), 99, np.uint8)
    transform = TrainTransform(needs, AugmentSection(**options))
    transform(raw, sample_generator(0, 0, position), out)
    return out


def test_training_crop_is_resized_and_mirrored():
    pixels = photo(80, 100)
    data = encode(pixels, "PNG")
    mirrored = 0
    for position in range(40):
        generator = sample_generator(0, 0, position)
        flip = generator.random() < 0.5
        window = draw_window((80, 100), (0.08, 1.0), generator)
        expected = resize(cut(pixels, window), 32, 32, "bilinear")
        if flip:
            expected = expected[:, ::-1]
        # From the file or from pixels: the same.
        for raw in (data, pixels):
            assert np.array_equal(augmented(raw, position, train_crop="random_resized"), expected)
        # Without flips the windows are the same.
        unflipped = augmented(data, position, flip=False)
        assert np.array_equal(unflipped, expected[:, ::-1] if flip else expected)
        mirrored += flip
    assert 10 < mirrored < 30


def test_pad_moves_every_way():
    pixels = photo(32, 32)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    seen = set()
    for position in range(600):
        out = augmented(pixels, position, train_crop="pad", crop_pad=2)
        (place,) = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (1, -1)
            if np.array_equal(out[:, ::flip], padded[top : top + 32, left : left + 32])
        ]
        seen.add(place)
    assert len(seen) == 50


def test_pad_fits_other_sizes_first():
    pixels = photo(50, 80)
    fitted = np.zeros((32, 32, 3), np.uint8)
    EvalTransform(preprocess(crop_ratio=1.0))(pixels, None, fitted)
    out = augmented(pixels, train_crop="pad", crop_pad=0, flip=False)
    assert np.array_equal(out, fitted)


def test_center_is_evaluations_view():
    expected = np.zeros((32, 32, 3), np.uint8)
    EvalTransform(preprocess())(photo(50, 80), None, expected)
    views = {augmented(photo(50, 80), p, train_crop="center").tobytes() for p in range(20)}
    assert views == {expected.tobytes(), expected[:, ::-1].tobytes()}


@pytest.mark.parametrize("train_crop", ["random_resized", "pad", "center"])
@pytest.mark.parametrize(("of_source", "of_model"), [(1, 3), (3, 1)])
def test_channels_are_those_of_the_model(train_crop, of_source, of_model):
    pixels = photo(40, 40, channels=of_source)
    needs = preprocess(channels=of_model)
    out = augmented(pixels, needs=needs, train_crop=train_crop)
    assert out.std() > 5
    assert np.array_equal(out[..., 0], out[..., -1])
    assert np.array_equal(out, augmented(encode(pixels, "PNG"), needs=needs, train_crop=train_crop))


@pytest.mark.parametrize("train_crop", ["random_resized", "pad", "center"])
def test_truncated_images_are_errors(train_crop):
    data = encode(photo(60, 60))
    with pytest.raises(ImageError, match="truncated"):
        augmented(data[:-100], train_crop=train_crop)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize(channels, dtype):
    images = torch.from_numpy(np.stack([photo(6, 7, s, channels) for s in range(3)]))
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    needs = Preprocess(height=6, width=7, channels=channels, mean=mean, std=std)
    result = normalize(images, needs, dtype)
    expected = tv.Normalize(mean, std)(images.permute(0, 3, 1, 2) / 255)
    assert result.dtype == dtype
    assert result.shape == (3, channels, 6, 7)
    torch.testing.assert_close(
        result.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0
    )
