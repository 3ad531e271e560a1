"""Agreement with Pillow, which timm and torchvision (on PIL images) call, over the whole ranges."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
import torchvision.transforms.v2.functional as tv_tensor
from hypothesis import given
from hypothesis import strategies as st
from made_images import photo
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data import auto_augment as timm_augment

from vitbase.data.policies import operations, warps

FACTORS = (0.0, 0.1, 0.37, 0.5, 0.999, 1.0, 1.3, 1.5, 1.9, 2.5)
CASES = {
    "invert": (operations.invert, ImageOps.invert, [()]),
    "posterize": (operations.posterize, ImageOps.posterize, [(bits,) for bits in range(1, 9)]),
    "solarize": (
        operations.solarize,
        ImageOps.solarize,
        [(t,) for t in (0, 1, 64, 99.5, 128, 254, 255, 256)],
    ),
    "solarize_add": (
        operations.solarize_add,
        timm_augment.solarize_add,
        [(a, t) for a in (0, 1, 55, 110, 128, 255) for t in (0, 100, 128, 255)],
    ),
    "brightness": (operations.brightness, timm_augment.brightness, [(f,) for f in FACTORS]),
    "contrast": (operations.contrast, timm_augment.contrast, [(f,) for f in FACTORS]),
    "saturation": (operations.saturation, timm_augment.color, [(f,) for f in FACTORS]),
    "sharpness": (operations.sharpness, timm_augment.sharpness, [(f,) for f in FACTORS]),
    "autocontrast": (operations.autocontrast, ImageOps.autocontrast, [()]),
    "equalize": (operations.equalize, ImageOps.equalize, [()]),
    "grayscale": (operations.grayscale, lambda i: ImageEnhance.Color(i).enhance(0.0), [()]),
    "shift_hue": (
        operations.shift_hue,
        tv.adjust_hue,
        [(t,) for t in (-0.5, -0.25, -0.1, 0.0, 0.003, 0.2, 0.5)],
    ),
    "blur": (
        operations.blur,
        lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
        [(s,) for s in (0.0, 0.1, 0.3, 0.5, 0.77, 1.0, 1.37, 2.0, 3.3)],
    ),
}
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SHEARS = (-0.3, -0.2174, -0.01, 0.0, 0.0333, 0.1501, 0.3)
DISTANCES = (-300.0, -40.03, -1.62, -0.5, 0.0, 0.25, 7.0, 19.47, 60.0, 300.0)
WARPS = {
    "shear_x": (
        lambda p, *a: warps.shear(p, "x", *a),
        timm_augment.shear_x,
        SHEARS,
    ),
    "shear_y": (lambda p, *a: warps.shear(p, "y", *a), timm_augment.shear_y, SHEARS),
    "translate_x": (
        lambda p, *a: warps.translate(p, "x", *a),
        timm_augment.translate_x_abs,
        DISTANCES,
    ),
    "translate_y": (
        lambda p, *a: warps.translate(p, "y", *a),
        timm_augment.translate_y_abs,
        DISTANCES,
    ),
    "rotate": (warps.rotate, timm_augment.rotate, (-30.0, -4.4, 0.0, 13.7, 30.0, 45.0)),
}


def images() -> list[np.ndarray]:
    """Photo-like, random, of few levels, of one colour, tiny; RGB and grey; read-only."""
    rng = np.random.default_rng(0)
    found = [
        photo(61, 97, seed=1),
        photo(97, 61, seed=2, channels=1),
        rng.integers(0, 256, (50, 71, 3), dtype=np.uint8),
        rng.integers(0, 256, (71, 50, 1), dtype=np.uint8),
        (photo(40, 50, seed=3) // 3 + 60).astype(np.uint8),
        np.full((9, 9, 3), 77, np.uint8),
        np.full((12, 20, 3), 255, np.uint8),
        np.zeros((1, 1, 3), np.uint8) + np.arange(3, dtype=np.uint8),
        photo(2, 5, seed=4),
        photo(60, 70, seed=5)[3:40, 5:50],  # a part: not contiguous
    ]
    for pixels in found:
        pixels.flags.writeable = False
    return found


def as_pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def differences(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    expected = np.asarray(image).reshape(pixels.shape)
    return abs(pixels.astype(int) - expected.astype(int))


@pytest.mark.parametrize("name", CASES)
def test_colours_equal_pillows(name):
    ours, theirs, arguments = CASES[name]
    for pixels in images():
        for values in arguments:
            result = ours(pixels, *values)
            assert result.shape == pixels.shape
            assert result.dtype == np.uint8
            assert differences(result, theirs(as_pil(pixels), *values)).max() == 0, values


def test_no_bits_are_black():
    for pixels in images():
        assert not operations.posterize(pixels, 0).any()


def test_contrast_with_a_grey_of_its_own():
    pixels = photo(20, 30)
    assert (operations.contrast(pixels, 0.0, 196) == 196).all()
    grey = Image.new("RGB", (30, 20), (196, 196, 196))
    expected = Image.blend(grey, as_pil(pixels), 1.7)
    assert differences(operations.contrast(pixels, 1.7, 196), expected).max() == 0


@pytest.mark.parametrize("resampling", RESAMPLING)
@pytest.mark.parametrize("name", WARPS)
def test_geometry_is_pillows(name, resampling):
    ours, theirs, values = WARPS[name]
    unequal = total = 0
    for pixels in images():
        fill = (124, 116, 104)[: pixels.shape[-1]]
        for value in values:
            result = ours(pixels, value, fill, resampling)
            assert result.shape == pixels.shape
            expected = theirs(
                as_pil(pixels),
                value,
                resample=RESAMPLING[resampling],
                fillcolor=fill if len(fill) == 3 else fill[0],
            )
            apart = differences(result, expected)
            exact = resampling == "nearest" or (name == "rotate" and resampling == "bicubic")
            assert apart.max() <= (0 if exact else 1)
            unequal += np.count_nonzero(apart)
            total += apart.size
    assert unequal <= total / 100


def test_geometry_at_distances_of_many_digits():
    pixels = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    for number, (axis, resampling) in enumerate(
        (axis, resampling) for axis in ("x", "y") for resampling in ("bilinear", "bicubic")
    ):
        for value in np.random.default_rng(number).uniform(-0.3, 0.3, 8).tolist():
            result = warps.shear(pixels, axis, value, (1, 2, 3), resampling, value)
            matrix = (1, value, value, 0, 1, 0) if axis == "x" else (1, 0, 0, value, 1, value)
            expected = as_pil(pixels).transform(
                (120, 100),
                Image.Transform.AFFINE,
                matrix,
                RESAMPLING[resampling],
                fillcolor=(1, 2, 3),
            )
            apart = differences(result, expected)
            assert apart.max() <= 1
            assert np.count_nonzero(apart) <= apart.size / 1000


@given(data=st.data())
def test_images_of_any_size_move_any_distance(data):
    """Also of one pixel, and beyond the image."""
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    channels = data.draw(st.sampled_from((1, 3)))
    seed = data.draw(st.integers(0, 2**16))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    axis = data.draw(st.sampled_from(("x", "y")))
    resampling = data.draw(st.sampled_from(tuple(RESAMPLING)))
    # Of odd multiples of 1/1024, no nearest pixel is a tie.
    odd = st.integers(-12_000, 12_000).map(lambda number: (2 * number + 1) / 1024)
    distance, factor = data.draw(odd), data.draw(st.just(0.0) | odd.map(lambda share: share / 16))
    fill = (9, 8, 7)[:channels]
    result = warps.shear(pixels, axis, factor, fill, resampling, distance)
    matrix = (1, factor, distance, 0, 1, 0) if axis == "x" else (1, 0, 0, factor, 1, distance)
    expected = as_pil(pixels).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        RESAMPLING[resampling],
        fillcolor=fill if channels == 3 else fill[0],
    )
    assert result.dtype == np.uint8
    assert differences(result, expected).max() <= 1


def test_torchvisions_tensors_are_near():
    """What operations.py says of them."""
    pixels = photo(61, 97, seed=1)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)

    def apart(ours: np.ndarray, theirs: torch.Tensor) -> int:
        return int(abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int)).max())

    assert apart(operations.invert(pixels), tv_tensor.invert(tensor)) == 0
    assert apart(operations.posterize(pixels, 3), tv_tensor.posterize(tensor, 3)) == 0
    assert apart(operations.solarize(pixels, 100), tv_tensor.solarize(tensor, 100)) == 0
    assert apart(operations.autocontrast(pixels), tv_tensor.autocontrast(tensor)) == 0
    assert apart(operations.equalize(pixels), tv_tensor.equalize(tensor)) == 0
    for f in FACTORS:
        nearly = 1 if f <= 2 else 2
        assert apart(operations.brightness(pixels, f), tv_tensor.adjust_brightness(tensor, f)) == 0
        sharp = apart(operations.sharpness(pixels, f), tv_tensor.adjust_sharpness(tensor, f))
        assert sharp <= nearly
        contrast = apart(operations.contrast(pixels, f), tv_tensor.adjust_contrast(tensor, f))
        assert contrast <= nearly
        color = apart(operations.saturation(pixels, f), tv_tensor.adjust_saturation(tensor, f))
        assert color <= nearly
