"""Single operations on the colours of an image, uint8 [H, W, C] in and out, C being 1 or 3.

Each equals Pillow's operation of the same meaning (ImageOps, ImageEnhance, ImageFilter) in every
pixel. Where Pillow is slow, numpy and torch calculate over whole rows; where it is not, it does the
work itself. A result may be the image itself where nothing changes, and may be read-only; an
argument is never written to. Geometry is in warps.py.

torchvision's operations on PIL images are Pillow's. Those on tensors give the same, but saturation,
contrast and sharpness, which they round otherwise: up to 1 level apart, 2 for factors beyond 2.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitbase.data.decode import Pixels


def invert(pixels: Pixels) -> Pixels:
    """Return the negative."""
    return ~pixels


def posterize(pixels: Pixels, bits: int) -> Pixels:
    """Keep the upper ``bits`` of every value: 8 changes nothing, 0 gives black."""
    if bits >= 8:
        return pixels
    result: Pixels = pixels & np.uint8((0xFF << (8 - max(bits, 0))) & 0xFF)
    return result


def solarize(pixels: Pixels, threshold: float) -> Pixels:
    """Invert the values at or above a threshold; from 256 on, nothing is."""
    lowest = math.ceil(threshold)
    if lowest > 255:
        return pixels
    if lowest <= 0:
        return ~pixels
    return pixels ^ _all_ones(pixels >= np.uint8(lowest))


def solarize_add(pixels: Pixels, addition: int, threshold: int = 128) -> Pixels:
    """Add to the values below a threshold, up to 255.

    Args:
      pixels: uint8 [H, W, C].
      addition: from 0.
      threshold: 0 to 255.
    """
    addition = min(addition, 255)
    below = _all_ones(pixels < np.uint8(threshold))
    if threshold + addition <= 256:  # none of them can pass 255
        below &= np.uint8(addition)
        return np.add(pixels, below, out=below)
    added = np.minimum(pixels, np.uint8(255 - addition))
    added += np.uint8(addition)
    added ^= pixels
    added &= below
    added ^= pixels
    return added


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Blend with black: 0 gives black, 1 the image."""
    return _blend(0, pixels, factor)


def contrast(pixels: Pixels, factor: float, grey: int | None = None) -> Pixels:
    """Blend with one grey.

    Args:
      pixels: uint8 [H, W, C].
      factor: 0 gives the grey, 1 the image.
      grey: its level; none: the image's mean luma, rounded.
    """
    if factor == 1:
        return pixels
    if grey is None:
        luma = _luma(pixels)
        grey = int(float(luma.sum(dtype=np.uint64)) / luma.size + 0.5)
    return _blend(grey, pixels, factor)


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the grey image: 0 gives that, 1 the image."""
    if factor == 1 or pixels.shape[-1] == 1:
        return pixels
    return _blend(grayscale(pixels), pixels, factor)


def grayscale(pixels: Pixels) -> Pixels:
    """Return the luma (ITU-R 601-2) in every channel."""
    if pixels.shape[-1] == 1:
        return pixels
    return np.asarray(_image(pixels).convert("L").convert("RGB"))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Blend with a smoothed image: 0 gives that, 1 the image.

    The smoothing is the mean of 3 x 3 values, the middle one weighing five times as much; values
    on the border stay.
    """
    height, width, channels = pixels.shape
    if factor == 1 or height < 3 or width < 3:
        return pixels
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    inner = slice(channels, -channels)
    wide = scratch(rows.shape, np.uint16, 2)
    wide[...] = rows
    across = scratch((height, (width - 2) * channels), np.uint16, 3)
    np.add(wide[:, : -2 * channels], wide[:, inner], out=across)
    across += wide[:, 2 * channels :]
    sums = scratch((height - 2, (width - 2) * channels), np.uint16, 4)
    np.add(across[:-2], across[1:-1], out=sums)
    sums += across[2:]
    middle = wide[1:-1, inner]
    middle *= np.uint16(4)
    sums += middle
    sums += np.uint16(6)  # the nearest whole number: 13 is odd, there are no ties
    sums //= np.uint16(13)
    result = rows.copy()
    result[1:-1, inner] = _blend(sums.astype(np.uint8), rows[1:-1, inner], factor)
    return result.reshape(pixels.shape)


def autocontrast(pixels: Pixels) -> Pixels:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    lows = rows.min(axis=0).reshape(width, channels).min(axis=0).tolist()
    highs = rows.max(axis=0).reshape(width, channels).max(axis=0).tolist()
    levels = np.arange(256.0)
    table = np.empty((channels, 256), np.uint8)
    scales, starts = np.ones(channels), np.zeros(channels)
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if high > low:
            scales[channel] = 255.0 / (high - low)
            starts[channel] = -low * scales[channel]
        # In double precision, truncated: Pillow's 255 is now and then a 254.
        stretched = (levels * scales[channel] + starts[channel]).astype(np.int64)
        table[channel] = np.clip(stretched, 0, 255)
    if (scales == 1).all() and not starts.any():
        return pixels
    # Arithmetic is faster than a look-up, where single precision gives the same levels.
    factor, summand = scales.astype(np.float32), (starts + 1e-3).astype(np.float32)
    single = np.clip(levels.astype(np.float32)[:, None] * factor + summand, 0, 255)
    used = (levels[:, None] >= lows) & (levels[:, None] <= highs)
    if ((single.astype(np.uint8) != table.T) & used).any():
        return _look_up(pixels, table)
    stretched = floats_of(rows, 0)
    stretched.mul_(torch.from_numpy(np.tile(factor, width)))
    stretched.add_(torch.from_numpy(np.tile(summand, width)))
    return stretched.numpy().astype(np.uint8).reshape(pixels.shape)


def equalize(pixels: Pixels) -> Pixels:
    """Spread each channel's values so that their histogram becomes as even as it can."""
    channels = pixels.shape[-1]
    image = _image(pixels)
    counts = np.array(image.histogram()).reshape(channels, 256)
    table = np.empty((channels, 256), np.uint8)
    for channel, count in enumerate(counts):
        used = count.nonzero()[0]
        step = int(count.sum() - count[used[-1]]) // 255 if len(used) > 1 else 0
        if step == 0:
            table[channel] = np.arange(256)
            continue
        below = np.cumsum(count) - count
        table[channel] = np.minimum((below + step // 2) // step, 255)
    return _look_up(pixels, table, image)


def shift_hue(pixels: Pixels, turn: float) -> Pixels:
    """Turn the hue by a share of the circle, -0.5 to 0.5; grey images stay."""
    if pixels.shape[-1] == 1:
        return pixels
    hsv = np.array(_image(pixels).convert("HSV"))
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Blur by an approximate Gaussian: three box filters of fractional width along each axis.

    Args:
      pixels: uint8 [H, W, C].
      sigma: standard deviation in pixels, which Pillow calls the radius.
    Source: Gwosdek et al., Theoretical Foundations of Gaussian Convolution by Extended Box
      Filtering (SSVM 2011).
    """
    radius = _box_radius(sigma)
    if radius == 0:
        return pixels
    result = _Boxes(pixels.shape, radius, axis=1)(pixels)
    return _Boxes(pixels.shape, radius, axis=0)(result)


def _box_radius(sigma: float) -> np.float32:
    """Return the radius of the box filter that, three times, has a Gaussian's variance.

    In float32, as Pillow computes it: with a radius of, say, 0.25 ties abound.
    """
    one = np.float32(1)
    variance = np.float32(sigma) * np.float32(sigma) / np.float32(3)
    length = np.float32(math.sqrt(12.0 * float(variance) + 1.0))
    whole = np.float32(math.floor((float(length) - 1.0) / 2.0))
    part = (2 * whole + one) * (whole * (whole + one) - 3 * variance)
    result: np.float32 = whole + part / (6 * (variance - (whole + one) * (whole + one)))
    return result


class _Boxes:
    """Three box filters along an axis of [H, W, C], in memory that they share.

    Each averages over 2 * radius + 1 neighbours, the two outermost ones in part, in Pillow's fixed
    point of 24 bits, and rounds.
    """

    def __init__(self, shape: tuple[int, ...], radius: np.float32, axis: int) -> None:
        height, width, channels = shape
        self.whole = int(radius)
        weight = int(np.float32(1 << 24) / (radius * 2 + np.float32(1)))
        self.weight = np.uint32(weight)
        self.edge_weight = np.uint32(((1 << 24) - (self.whole * 2 + 1) * weight) // 2)
        self.axis, self.pad = axis, self.whole + 1
        self.step = channels if axis else 1  # between neighbours in [H, W * C]
        size = [height, width * channels]
        self.sums = scratch((size[0], size[1]), np.uint16, 0)
        self.totals = scratch((size[0], size[1]), np.uint32, 1)
        self.parts = scratch((size[0], size[1]), np.uint32, 2)
        self.size = size[axis]
        size[axis] += 2 * self.pad * self.step
        self.wide = scratch((size[0], size[1]), np.uint16, 3)

    def __call__(self, pixels: Pixels) -> Pixels:
        wide, pad, step = self.wide, self.pad, self.step
        inner = self._neighbours(0)
        inner[...] = pixels.reshape(inner.shape)
        for filter_ in range(3):
            for place in range(pad):  # the border's values go on
                if self.axis:
                    wide[:, place * step : (place + 1) * step] = inner[:, :step]
                    wide[:, self.size + (pad + place) * step :][:, :step] = inner[:, -step:]
                else:
                    wide[place] = inner[0]
                    wide[self.size + pad + place] = inner[-1]
            self._average()
            if filter_ < 2:
                inner[...] = self.totals
        return self.totals.astype(np.uint8).reshape(pixels.shape)

    def _neighbours(self, number: int) -> NDArray[np.uint16]:
        first = (self.pad + number) * self.step
        at = slice(first, first + self.size)
        return self.wide[:, at] if self.axis else self.wide[at]

    def _average(self) -> None:
        whole, sums, totals, parts = self.whole, self.sums, self.totals, self.parts
        inside = self._neighbours(-whole)
        for number in range(1 - whole, whole + 1):
            inside = np.add(inside, self._neighbours(number), out=sums)
        np.multiply(inside, self.weight, out=totals, dtype=np.uint32)
        np.add(self._neighbours(-whole - 1), self._neighbours(whole + 1), out=sums)
        np.multiply(sums, self.edge_weight, out=parts, dtype=np.uint32)
        totals += parts
        totals += np.uint32(1 << 23)
        totals >>= np.uint32(24)


def _blend(start: Pixels | int, end: Pixels, factor: float) -> Pixels:
    """Go from one image to another, or beyond, in float32 and truncated, as Pillow does."""
    if factor == 1:
        return end
    exact = np.float32(factor)
    if isinstance(start, int) and start == 0:
        values = scratch(end.shape, np.float32, 0)
        mixed = torch.from_numpy(np.multiply(end, exact, out=values, dtype=np.float32))
    elif isinstance(start, int):
        mixed = floats_of(end, 0).sub_(start).mul_(float(exact)).add_(start)
    else:
        origin = floats_of(start, 1)
        mixed = floats_of(end, 0).sub_(origin).mul_(float(exact)).add_(origin)
    if not 0 <= factor <= 1:
        mixed.clamp_(0, 255)
    return mixed.numpy().astype(np.uint8)


class _Scratch(threading.local):
    """A thread's memory for intermediate values: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.uint8]] = {}


_scratch = _Scratch()


def scratch(shape: tuple[int, ...], dtype: type[np.generic], slot: int) -> NDArray[Any]:
    """Return memory that the thread's next call with this slot will use again."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _scratch.memory.get(slot)
    if memory is None or memory.size < size:
        memory = _scratch.memory[slot] = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)


def floats_of(pixels: Pixels, slot: int) -> torch.Tensor:
    """Return the values in float32, in scratch memory.

    numpy converts, which torch takes 7 times as long for; torch calculates.
    """
    values = scratch(pixels.shape, np.float32, slot)
    values[...] = pixels
    return torch.from_numpy(values)


def _all_ones(condition: NDArray[np.bool_]) -> Pixels:
    """Turn true into 255, in place."""
    bits = condition.view(np.uint8)
    return np.negative(bits, out=bits)


def _image(pixels: Pixels) -> Image.Image:
    height, width, channels = pixels.shape
    mode = "L" if channels == 1 else "RGB"
    data = np.ascontiguousarray(pixels)
    return Image.frombuffer(mode, (width, height), data, "raw", mode, 0, 1)


def _look_up(pixels: Pixels, table: Pixels, image: Image.Image | None = None) -> Pixels:
    """Replace values by a table's, [C, 256]."""
    result = (image or _image(pixels)).point(table.ravel().tolist())
    return np.asarray(result).reshape(pixels.shape)


def _luma(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[-1] == 1 else np.asarray(_image(pixels).convert("L"))
