"""Maps over images, at any size.

Shape legend: h and w rows and columns of a map, y and x pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitbase.errors import ConfigError
from vitbase.inspection.looked import Array, Pixels

# Nine points of inferno (Smith and van der Walt's, CC0), between which colours are interpolated.
HEAT = (
    *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
    *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
)


def scaled(map_hw: Array) -> Array:
    """Return a map from 0, its smallest value, to 1, its largest; 0 where all are equal."""
    low, high = float(map_hw.min()), float(map_hw.max())
    return ((map_hw - low) / max(high - low, 1e-30)).astype(np.float32)


def enlarge(map_hw: Array, size_yx: tuple[int, int]) -> Array:
    """Resize a map, bilinearly, to so many rows and columns of pixels."""
    found_11yx = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(map_hw, np.float32))[None, None],
        size=size_yx,
        mode="bilinear",
        align_corners=False,
    )
    enlarged: Array = found_11yx[0, 0].numpy()
    return enlarged


def heat(map_yx: Array) -> Pixels:
    """Return the colours of values from 0 (black) to 1 (yellow), uint8 [y, x, 3]."""
    return _table()[(255 * map_yx).round().astype(np.uint8)]


@functools.cache
def _table() -> Pixels:
    """Return the colours of 256 values, [256, 3]."""
    at, to = np.linspace(0, 1, len(HEAT)), np.linspace(0, 1, 256)
    channels = [np.interp(to, at, column) for column in zip(*HEAT, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def resized(pixels_yxC: Pixels, size_yx: tuple[int, int]) -> Pixels:
    """Return an image in another size, uint8 [y, x, 3]; grey becomes three equal channels."""
    if pixels_yxC.shape[-1] == 1:
        pixels_yxC = pixels_yxC.repeat(3, -1)
    if pixels_yxC.shape[:2] == size_yx:
        return pixels_yxC
    image = Image.fromarray(pixels_yxC).resize(size_yx[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def overlay(
    pixels_yxC: Pixels,
    map_hw: NDArray[np.floating],
    size_yx: tuple[int, int] | None = None,
    *,
    strength: float = 0.6,
) -> Pixels:
    """Lay a map over the image that it was made of.

    Args:
      pixels_yxC: the image, uint8, of one channel or three.
      map_hw: of any size; its smallest value is black, its largest yellow.
      size_yx: of the result, in pixels; None: the image's.
      strength: of the map, from 0 to 1.
    Returns: uint8 [y, x, 3].
    Raises: ConfigError if that is no size.
    """
    height, width = pixels_yxC.shape[:2] if size_yx is None else size_yx
    if not (1 <= height <= 1 << 14 and 1 <= width <= 1 << 14):
        raise ConfigError(f"An overlay of {height}x{width} pixels: expected 1 to 16384 each.")
    map_yx = enlarge(scaled(np.asarray(map_hw, np.float32)), (height, width))
    under = resized(pixels_yxC, (height, width)).astype(np.float32)
    return ((1 - strength) * under + strength * heat(map_yx)).round().astype(np.uint8)
