"""RandAugment as its three origins have it: their operations, ranges, probabilities and fills.

They differ more than their common name says (L layers, magnitude M):

| | timm | torchvision | big_vision |
|---|---|---|---|
| operations | 15 | 14, one of them does nothing | 16, with cutout |
| each is taken | half of the time | always | always |
| magnitude | of 10; normal with ``magnitude_std`` | one of 31 bins | of 10, may exceed it |
| strength grows with magnitude | with ``increasing`` | yes | not of posterize, solarize, factors |
| uncovered | the mean colour | black | grey 128 |
| between pixels, alone | bilinear or bicubic at random | nearest | nearest |
| between pixels, in its recipes | as the resize before | as the resize before | nearest |
| greatest translation | 45% of the side | 150/331 of the side | 100 pixels at 10 |

Source: RandAugment (arXiv 1909.13719); timm's ``auto_augment.py``, torchvision's
``autoaugment.py``, big_vision's ``pp/autoaugment.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from vitbase.config.preprocess import Preprocess
from vitbase.data.decode import Pixels
from vitbase.data.policies.policies import Step, apply_steps, linear_bin, mean_colour
from vitbase.data.policies.warps import Colour, Resampling

Kind = Literal["timm", "torchvision", "big_vision"]
KINDS: dict[str, Kind] = {
    "randaugment_timm": "timm",
    "randaugment_torchvision": "torchvision",
    "randaugment_big_vision": "big_vision",
}
"""The policies of that name, by option."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "random"]


class Row(NamedTuple):
    """An operation, and its number as a function of the magnitude."""

    name: str
    value: Callable[[float], float] = lambda magnitude: 0.0
    signed: bool = False  # negated half of the time
    start: float = 0.0  # added after that


def _factors(names: tuple[str, ...], value: Callable[[float], float]) -> list[Row]:
    """Rows whose factor departs from 1, where nothing changes, to either side."""
    return [Row(name, value, signed=True, start=1.0) for name in names]


def _along_axes(name: str, value: Callable[[float], float]) -> list[Row]:
    return [Row(f"{name}_{axis}", value, signed=True) for axis in ("x", "y")]


def _old_factor(magnitude: float) -> float:
    return magnitude / 10 * 1.8 + 0.1


_TIMM_GEOMETRY = [
    *_along_axes("shear", lambda magnitude: magnitude / 10 * 0.3),
    *_along_axes("translate_share", lambda magnitude: magnitude / 10 * 0.45),
]
_COLOURS = ("saturation", "contrast", "brightness", "sharpness")
_SHARED = [
    Row("autocontrast"),
    Row("equalize"),
    Row("invert"),
    Row("rotate", lambda magnitude: magnitude / 10 * 30, signed=True),
]

TIMM_INCREASING = [
    *_SHARED,
    Row("posterize", lambda magnitude: 4 - int(magnitude / 10 * 4)),
    Row("solarize", lambda magnitude: 256 - min(256, int(magnitude / 10 * 256))),
    Row("solarize_add", lambda magnitude: min(128, int(magnitude / 10 * 110))),
    *_factors(_COLOURS, lambda magnitude: magnitude / 10 * 0.9),
    *_TIMM_GEOMETRY,
]

TIMM = [
    *_SHARED,
    Row("posterize", lambda magnitude: int(magnitude / 10 * 4)),
    Row("solarize", lambda magnitude: min(256, int(magnitude / 10 * 256))),
    Row("solarize_add", lambda magnitude: min(128, int(magnitude / 10 * 110))),
    *(Row(name, _old_factor) for name in _COLOURS),
    *_TIMM_GEOMETRY,
]

TORCHVISION = [
    Row("identity"),
    *_along_axes("shear", lambda magnitude: linear_bin(0.3, magnitude)),
    *_along_axes("translate_bin", lambda magnitude: magnitude),
    Row("rotate", lambda magnitude: linear_bin(30.0, magnitude), signed=True),
    *_factors(_COLOURS, lambda magnitude: linear_bin(0.9, magnitude)),
    Row("posterize", lambda magnitude: 8 - round(magnitude / 7.5)),
    Row("solarize", lambda magnitude: 255 - linear_bin(255.0, magnitude)),
    Row("autocontrast"),
    Row("equalize"),
]

BIG_VISION = [
    *_SHARED,
    Row("posterize", lambda magnitude: int(magnitude / 10 * 4)),
    Row("solarize", lambda magnitude: int(magnitude / 10 * 256)),
    Row("saturation", _old_factor),
    Row("contrast_with_constant", _old_factor),
    Row("brightness", _old_factor),
    Row("sharpness", _old_factor),
    *_along_axes("shear_about_pixel", lambda magnitude: magnitude / 10 * 0.3),
    *_along_axes("translate", lambda magnitude: magnitude / 10 * 100),
    Row("cutout", lambda magnitude: int(magnitude / 10 * 40)),
    Row("solarize_add", lambda magnitude: int(magnitude / 10 * 110)),
]

_DRAWS = 7  # numbers per layer


class RandAugment:
    """Some operations, drawn with replacement, at one magnitude.

    Args:
      kind: whose RandAugment.
      num_layers: operations drawn for an image.
      magnitude: of timm 0 to 10, of big_vision from 0, of torchvision a whole number 0 to 30.
      magnitude_std: of timm only: the magnitude is normal around ``magnitude``, clipped to 0 to 10;
        above 100, uniform from 0 to ``magnitude``.
      increasing: of timm only: every operation is stronger at a greater magnitude ("inc1").
      interpolation: between pixels of what is moved; none: the origin's default.
      fill: colour of what is uncovered; none: the origin's default.
      preprocess: of which timm's fill is the mean, and whose channels every fill has.
    Raises: ValueError if an argument does not belong to the kind.
    """

    def __init__(
        self,
        kind: Kind,
        num_layers: int,
        magnitude: float,
        magnitude_std: float = 0.0,
        *,
        increasing: bool = True,
        interpolation: Interpolation | None = None,
        fill: Colour | None = None,
        preprocess: Preprocess,
    ) -> None:
        if magnitude_std and kind != "timm":
            raise ValueError(f"magnitude_std belongs to RandAugment of timm, not of {kind}")
        if kind == "torchvision" and not (0 <= magnitude <= 30 and magnitude == int(magnitude)):
            raise ValueError(f"torchvision's magnitude is a whole number 0 to 30, not {magnitude}")
        self.kind = kind
        self.num_layers = num_layers
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        tables = {
            "timm": TIMM_INCREASING if increasing else TIMM,
            "torchvision": TORCHVISION,
            "big_vision": BIG_VISION,
        }
        self.rows = tables[kind]
        self.probability = 0.5 if kind == "timm" else 1.0
        self.interpolation = interpolation or ("random" if kind == "timm" else "nearest")
        channels = preprocess.channels
        fills = {
            "timm": mean_colour(preprocess),
            "torchvision": (0,) * channels,
            "big_vision": (128,) * channels,
        }
        self.fill = fill or fills[kind]

    def __call__(self, pixels: Pixels, generator: np.random.Generator) -> Pixels:
        """Return an image, uint8 [H, W, C], after the steps that are drawn for it."""
        return apply_steps(pixels, self.draw(generator), self.fill)

    def draw(self, generator: np.random.Generator) -> list[Step]:
        """Draw the steps for one image, with 7 numbers per layer."""
        numbers = generator.random(_DRAWS * self.num_layers).tolist()
        layers = [numbers[first : first + _DRAWS] for first in range(0, len(numbers), _DRAWS)]
        return [self._step(*layer) for layer in layers if layer[0] < self.probability]

    def _step(
        self,
        _: float,
        choice: float,
        spread: float,
        sign: float,
        sampling: float,
        row: float,
        column: float,
    ) -> Step:
        name, value_of, signed, start = self.rows[int(choice * len(self.rows))]
        value = value_of(self._drawn_magnitude(spread))
        if signed and sign < 0.5:
            value = -value
        if start:
            value = max(0.1, start + value)
        return Step(name, value, self._resampling(sampling), (row, column))

    def _drawn_magnitude(self, number: float) -> float:
        if self.kind != "timm":
            return self.magnitude
        magnitude = self.magnitude
        if self.magnitude_std > 100:
            magnitude *= number
        elif self.magnitude_std:
            # The inverse of its distribution, where 0 and 1 have none.
            inside = min(max(number, 2**-53), 1 - 2**-53)
            magnitude = NormalDist(magnitude, self.magnitude_std).inv_cdf(inside)
        return max(0.0, min(magnitude, 10.0))

    def _resampling(self, number: float) -> Resampling:
        if self.interpolation == "random":
            return "bilinear" if number < 0.5 else "bicubic"
        return self.interpolation
