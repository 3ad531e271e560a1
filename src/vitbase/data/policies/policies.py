"""Random operations on an image: steps and how to take them, 3-Augment, colour jitter, erasing.

A policy draws from the sample's generator, by ``.random()`` only. What RandAugment, 3-Augment and
colour jitter drew is a list of steps, which any image can be put through; they draw the same number
of times for every image. RandAugment's tables are in randaugment.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from vitbase.config.preprocess import Preprocess
from vitbase.data.decode import Pixels, Window
from vitbase.data.policies import operations, warps
from vitbase.data.policies.warps import Axis, Colour, Resampling

EraseMode = Literal["const", "rand", "pixel"]


class Step(NamedTuple):
    """An operation and its one number: a factor, degrees, pixels, a share of the side, ..."""

    name: str
    value: float = 0.0
    resampling: Resampling = "nearest"
    at: tuple[float, float] = (0.0, 0.0)  # of cutout: its centre, as shares of height and width


def apply_steps(pixels: Pixels, steps: list[Step], fill: Colour) -> Pixels:
    """Put an image through some steps.

    Args:
      pixels: uint8 [H, W, C]; never written to.
      steps: in order.
      fill: colour of what a step uncovers or cuts out, one value per channel.
    Returns: uint8 [H, W, C]; the image itself, or read-only, where that saves a copy.
    """
    for step in steps:
        pixels = _OPERATIONS[step.name](pixels, step, fill)
    return pixels


def _move(pixels: Pixels, step: Step, fill: Colour) -> Pixels:
    kind, letter = step.name.rsplit("_", 1)
    axis, value, resampling = cast(Axis, letter), step.value, step.resampling
    size = pixels.shape[1 if axis == "x" else 0]
    if kind == "shear":
        return warps.shear(pixels, axis, value, fill, resampling)
    if kind == "shear_about_pixel":
        return warps.shear(pixels, axis, value, fill, resampling, -value / 2)
    if kind == "translate_share":
        value *= size
    elif kind == "translate_bin":
        # torchvision's magnitude is one of 31 numbers, in float32, of which the whole part counts.
        value = math.copysign(int(linear_bin(150 / 331 * size, abs(value))), -value)
    return warps.translate(pixels, axis, value, fill, resampling)


def linear_bin(end: float, number: float) -> float:
    """Return the ``number``-th of 31 values from 0 to ``end``, as torch.linspace rounds it."""
    step = np.float32(end) / np.float32(30)
    if number < 31 // 2:
        return float(step * np.float32(number))
    return float(np.float32(end) - step * np.float32(30 - number))


def _cutout(pixels: Pixels, step: Step, fill: Colour) -> Pixels:
    """Fill a square of side 2 * value, cut at the border."""
    height, width = pixels.shape[:2]
    row, column, half = int(step.at[0] * height), int(step.at[1] * width), int(step.value)
    result = pixels.copy()
    result[max(0, row - half) : row + half, max(0, column - half) : column + half] = fill
    return result


def _contrast_with_constant(pixels: Pixels, step: Step, fill: Colour) -> Pixels:
    # TensorFlow's version takes the mean of the histogram's 256 counts for that of the image: a
    # grey that depends on the image's size alone, 196 at 224 x 224.
    grey = min(255, pixels.shape[0] * pixels.shape[1] // 256)
    return operations.contrast(pixels, step.value, grey)


_OPERATIONS: dict[str, Callable[[Pixels, Step, Colour], Pixels]] = {
    "identity": lambda pixels, step, fill: pixels,
    "autocontrast": lambda pixels, step, fill: operations.autocontrast(pixels),
    "equalize": lambda pixels, step, fill: operations.equalize(pixels),
    "invert": lambda pixels, step, fill: operations.invert(pixels),
    "posterize": lambda pixels, step, fill: operations.posterize(pixels, int(step.value)),
    "solarize": lambda pixels, step, fill: operations.solarize(pixels, step.value),
    "solarize_add": lambda pixels, step, fill: operations.solarize_add(pixels, int(step.value)),
    "brightness": lambda pixels, step, fill: operations.brightness(pixels, step.value),
    "contrast": lambda pixels, step, fill: operations.contrast(pixels, step.value),
    "contrast_with_constant": _contrast_with_constant,
    "saturation": lambda pixels, step, fill: operations.saturation(pixels, step.value),
    "sharpness": lambda pixels, step, fill: operations.sharpness(pixels, step.value),
    "hue": lambda pixels, step, fill: operations.shift_hue(pixels, step.value),
    "grayscale": lambda pixels, step, fill: operations.grayscale(pixels),
    "blur": lambda pixels, step, fill: operations.blur(pixels, step.value),
    "cutout": _cutout,
    "rotate": lambda pixels, step, fill: warps.rotate(pixels, step.value, fill, step.resampling),
}
for _kind in ("shear", "shear_about_pixel", "translate", "translate_share", "translate_bin"):
    _OPERATIONS |= {f"{_kind}_x": _move, f"{_kind}_y": _move}


class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order.

    Args:
      brightness: the factor is uniform in [1 - brightness, 1 + brightness], and not below 0.
      contrast: the same.
      saturation: the same.
      hue: a turn in [-hue, hue], at most 0.5.
    Source: torchvision's ColorJitter.
    """

    def __init__(
        self, brightness: float, contrast: float, saturation: float, hue: float = 0.0
    ) -> None:
        self.ranges = {
            name: (max(0.0, 1 - reach), 1 + reach)
            for name, reach in (
                ("brightness", brightness),
                ("contrast", contrast),
                ("saturation", saturation),
            )
            if reach > 0
        }
        if hue > 0:
            self.ranges["hue"] = (-hue, hue)

    def draw(self, generator: np.random.Generator) -> list[Step]:
        """Draw the steps for one image, with 8 numbers."""
        numbers = generator.random(8).tolist()
        steps = [
            (order, Step(name, low + (high - low) * share))
            for order, share, (name, (low, high)) in zip(
                numbers, numbers[4:], self.ranges.items(), strict=False
            )
        ]
        return [step for _, step in sorted(steps)]


class ThreeAugment:
    """Grey, solarised or blurred, one of the three with equal probability; then colour jitter.

    Args:
      color_jitter: of brightness, contrast and saturation; 0 for none.
    Source: DeiT III (arXiv 2204.07118) section 3.2; its code has sigma uniform in [0.1, 2] and
      the threshold 128.
    """

    def __init__(self, color_jitter: float = 0.3) -> None:
        self.jitter = ColorJitter(color_jitter, color_jitter, color_jitter)

    def draw(self, generator: np.random.Generator) -> list[Step]:
        """Draw the steps for one image, with 10 numbers."""
        choice, share = generator.random(2).tolist()
        first = (Step("grayscale"), Step("solarize", 128), Step("blur", 0.1 + 1.9 * share))
        return [first[int(choice * 3)], *self.jitter.draw(generator)]


def draw_simple_window(
    size: tuple[int, int], height: int, width: int, pad: int, generator: np.random.Generator
) -> tuple[int, int]:
    """Draw where a simple random crop begins in a resized image.

    Args:
      size: (height, width) of the resized image, which covers the crop.
      height: of the crop.
      width: of the crop.
      pad: how far the crop may reach beyond the border.
      generator: gives 2 numbers.
    Returns: (top, left), from -pad on.
    Source: DeiT III (arXiv 2204.07118) section 3.2.
    """
    down, right = generator.random(2).tolist()
    top = int(down * (size[0] + 2 * pad - height + 1)) - pad
    return top, int(right * (size[1] + 2 * pad - width + 1)) - pad


def cut_reflected(
    read: Callable[[Window], Pixels], size: tuple[int, int], window: Window
) -> Pixels:
    """Cut a window that may reach beyond the border, where the image is mirrored.

    The border's own pixels are not repeated, as with numpy's and torchvision's "reflect".

    Args:
      read: gives a window within the image.
      size: (height, width) of the image.
      window: that is wanted.
    """

    def places(first: int, count: int, size: int) -> NDArray[np.int64]:
        mirrored = np.abs(np.arange(first, first + count))
        result: NDArray[np.int64] = np.minimum(mirrored, 2 * (size - 1) - mirrored)
        return result

    top, left, height, width = window
    rows = places(top, height, size[0])
    columns = places(left, width, size[1])
    inner_top, inner_left = int(rows.min()), int(columns.min())
    rows, columns = rows - inner_top, columns - inner_left
    inner = read((inner_top, inner_left, int(rows.max()) + 1, int(columns.max()) + 1))
    if inner.shape[:2] == (height, width):
        return inner
    result: Pixels = inner[rows[:, None], columns]
    return result


class RandomErasing:
    """Cover a rectangle with noise, or with the mean colour.

    timm does so after normalisation, where the noise is normal with mean 0 and variance 1. Here
    pixels are still whole numbers from 0 to 255, so the noise is normal with the data's mean and
    standard deviation, rounded and clipped to that range: with ImageNet's statistics, 4% of the
    values lie beyond it. Mode "const" is the mean colour, rounded: 0 after normalisation, to within
    half a level.

    Args:
      probability: of an image to have a rectangle.
      mode: const, rand (one colour drawn for the rectangle) or pixel (a colour for each pixel).
      preprocess: its mean and std.
      area_range: of the rectangle's share of the image.
      aspect_min: its aspect (height / width) is log-uniform from this to its inverse.
    Source: Zhong et al., Random Erasing (arXiv 1708.04896); the numbers are timm's.
    """

    def __init__(
        self,
        probability: float,
        mode: EraseMode,
        preprocess: Preprocess,
        area_range: tuple[float, float] = (0.02, 1 / 3),
        aspect_min: float = 0.3,
    ) -> None:
        self.probability = probability
        self.mode = mode
        self.area_range = area_range
        self.log_aspect = math.log(aspect_min)
        self.colour = mean_colour(preprocess)
        self.table = _noise_table(preprocess.mean, preprocess.std)

    def draw(
        self, size: tuple[int, int], generator: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """Draw (top, left, height, width), or None; after ten that do not fit, also None."""
        random = generator.random
        if random() >= self.probability:
            return None
        height, width = size
        low, high = self.area_range
        for _ in range(10):
            share, aspect = random(2).tolist()
            area = (low + (high - low) * share) * height * width
            ratio = math.exp(self.log_aspect * (1 - 2 * aspect))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                down, right = random(2).tolist()
                top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
                return top, left, rows, columns
        return None

    def __call__(self, pixels: Pixels, generator: np.random.Generator) -> None:
        """Erase a rectangle of an image, uint8 [H, W, C], in place, if one is drawn."""
        window = self.draw(pixels.shape[:2], generator)
        if window is None:
            return
        top, left, rows, columns = window
        target = pixels[top : top + rows, left : left + columns]
        if self.mode == "const":
            target[...] = self.colour
            return
        channels = pixels.shape[-1]
        shape = (rows, columns, channels) if self.mode == "pixel" else (channels,)
        numbers = (generator.random(shape) * len(self.table)).astype(np.intp)
        target[...] = self.table[numbers, np.arange(channels)]


def mean_colour(preprocess: Preprocess) -> Colour:
    """Return the mean as a colour, one value per channel."""
    return tuple(min(255, round(255 * mean)) for mean in preprocess.mean)


@lru_cache(maxsize=4)
def _noise_table(mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """Return 4096 equally probable levels of each channel's normal distribution, [4096, C].

    A table, as it depends on no version's logarithms, and its look-up is fast.
    """
    normal = NormalDist()
    places = np.array([normal.inv_cdf((place + 0.5) / 4096) for place in range(4096)])[:, None]
    levels = 255 * (np.array(mean) + np.array(std) * places)
    result: Pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return result
