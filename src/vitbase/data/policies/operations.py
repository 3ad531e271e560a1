"""Single operations on the colours of an image, uint8 [H, W, C] in and out, C being 1 or 3.

Each equals Pillow's operation of the same meaning (ImageOps, ImageEnhance, ImageFilter) in every
pixel. Where Pillow is slow, numpy calculates over whole rows; where it is not, it does the work
itself. A result may be the image itself where nothing changes, and may be read-only; an argument
is never written to. Geometry is in warps.py.

Every call of numpy on a whole image gives the interpreter's lock away and waits for it again, while
other threads prepare other images: few calls matter more than little arithmetic.

torchvision's operations on PIL images are Pillow's. Those on tensors give the same, but saturation,
contrast and sharpness, which they round otherwise: up to 1 level apart, 2 for factors beyond 2.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitbase.data.decode import Pixels

_LEVELS = np.arange(256.0)


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
        luma = pixels if pixels.shape[-1] == 1 else np.asarray(_image(pixels).convert("L"))
        grey = int(int(luma.sum()) / luma.size + 0.5)
    return _blend(grey, pixels, factor)


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the grey image: 0 gives that, 1 the image."""
    if factor == 1 or pixels.shape[-1] == 1:
        return pixels
    image = _image(pixels)
    return np.asarray(Image.blend(_grey(image), image, factor))


def grayscale(pixels: Pixels) -> Pixels:
    """Return the luma (ITU-R 601-2) in every channel."""
    if pixels.shape[-1] == 1:
        return pixels
    return np.asarray(_grey(_image(pixels)))


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
    result[1:-1, inner] = _blend(sums, rows[1:-1, inner], factor)
    return result.reshape(pixels.shape)


def autocontrast(pixels: Pixels) -> Pixels:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    lows = rows.min(axis=0).reshape(width, channels).min(axis=0).tolist()
    highs = rows.max(axis=0).reshape(width, channels).max(axis=0).tolist()
    if all(high <= low or high - low == 255 for low, high in zip(lows, highs, strict=True)):
        return pixels
    table = np.empty((channels, 256), np.uint8)
    factors, summands = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    same = True
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
        scale = 255.0 / (high - low) if high > low else 1.0
        start = -low * scale if high > low else 0.0
        # In double precision, truncated: Pillow's 255 is now and then a 254.
        table[channel] = np.clip(_LEVELS * scale + start, 0, 255)
        # Arithmetic is faster than a look-up, where single precision gives the same levels.
        factors[channel], summands[channel] = scale, start + 1e-3
        single = _LEVELS[low : high + 1].astype(np.float32) * factors[channel] + summands[channel]
        same &= bool((single.astype(np.uint8) == table[channel, low : high + 1]).all())
    if not same:
        return _look_up(pixels, table)
    stretched = scratch(rows.shape, np.float32, 0)
    stretched[...] = rows
    stretched *= np.tile(factors, width)
    stretched += np.tile(summands, width)
    return stretched.astype(np.uint8).reshape(pixels.shape)


def equalize(pixels: Pixels) -> Pixels:
    """Spread each channel's values so that their histogram becomes as even as it can."""
    channels = pixels.shape[-1]
    image = _image(pixels)
    counts = np.array(image.histogram()).reshape(channels, 256)
    table = np.empty((channels, 256), np.uint8)
    for channel, count in enumerate(counts):
        up_to = count.cumsum()
        brightest = int(count[up_to.searchsorted(up_to[-1])])
        step = (int(up_to[-1]) - brightest) // 255
        if step == 0:
            table[channel] = _LEVELS
        else:
            table[channel] = np.minimum((up_to - count + step // 2) // step, 255)
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


def _blend(start: NDArray[np.uint16] | int, end: Pixels, factor: float) -> Pixels:
    """Go from one image to another, or beyond, in float32 and truncated, as Pillow does."""
    if factor == 1:
        return end
    exact = np.float32(factor)
    mixed = scratch(end.shape, np.float32, 0)
    if isinstance(start, int) and start == 0:
        np.multiply(end, exact, out=mixed, dtype=np.float32)
    else:
        mixed[...] = end
        origin: Any = np.float32(start)
        if not isinstance(start, int):
            origin = scratch(end.shape, np.float32, 1)
            origin[...] = start
        mixed -= origin
        mixed *= exact
        mixed += origin
    if not 0 <= factor <= 1:
        np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)


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


def _all_ones(condition: NDArray[np.bool_]) -> Pixels:
    """Turn true into 255, in place."""
    bits = condition.view(np.uint8)
    return np.negative(bits, out=bits)


def _image(pixels: Pixels) -> Image.Image:
    height, width, channels = pixels.shape
    mode = "L" if channels == 1 else "RGB"
    data = np.ascontiguousarray(pixels)
    return Image.frombuffer(mode, (width, height), data, "raw", mode, 0, 1)


def _grey(image: Image.Image) -> Image.Image:
    """Return the luma of an image in RGB, in every channel."""
    luma = image.convert("L")
    return Image.merge("RGB", (luma, luma, luma))


def _look_up(pixels: Pixels, table: Pixels, image: Image.Image | None = None) -> Pixels:
    """Replace values by a table's, [C, 256]."""
    result = (image or _image(pixels)).point(table.ravel().tolist())
    return np.asarray(result).reshape(pixels.shape)
