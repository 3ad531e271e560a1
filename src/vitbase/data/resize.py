"""A resized image, or a window of it that costs no more than the window needs.

Ordinary images go through torch's uint8 antialiased resize, whole. A long and narrow one would
become millions of pixels of which a crop shows few, so there the window alone is computed, by the
same arithmetic (its weights, their fixed-point precision, the rounding between the two passes):
the pixels are the same, and the memory is a small multiple of the image and the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitbase.data.decode import Pixels, Window, cut

Interpolation = Literal["bilinear", "bicubic"]
Rounding = Literal["nearest", "truncate"]
Values = NDArray[np.float64]

_MOST_WASTE = 4
"""Pixels that resizing the whole may make, for each of the image and the window."""
_FEW = 1 << 22
"""Pixels that resizing the whole may make in any case: 12 MB, made faster than the window alone."""
_BLOCK = 1 << 20
"""Values under way at a time where the window alone is computed."""
_PHASES = 8192
"""Places of a result that are looked at for its largest weight, where that is not at the border."""
_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}


def resize(
    pixels: Pixels, height: int, width: int, interpolation: Interpolation, flip: bool = False
) -> Pixels:
    """Resize with antialiasing; within 2 of Pillow's result in every pixel.

    Args:
      pixels: uint8 [H, W, C].
      height: of the result.
      width: of the result.
      interpolation: bilinear or bicubic.
      flip: left to right, after the resize.
    """
    if pixels.shape[:2] == (height, width):
        return mirror(pixels) if flip else pixels
    resized_1CHW = F.interpolate(
        _as_tensor(pixels), size=(height, width), mode=interpolation, antialias=True
    )
    return _as_pixels(resized_1CHW.flip(3) if flip else resized_1CHW)


def resize_window(
    pixels: Pixels, size: tuple[int, int], window: Window, interpolation: Interpolation
) -> Pixels:
    """Resize, and cut a window from the result; what lies outside it costs little or nothing.

    Args:
      pixels: uint8 [H, W, C].
      size: (height, width) of the whole result.
      window: within that.
      interpolation: bilinear or bicubic.
    Returns: the pixels of ``cut(resize(pixels, *size, interpolation), window)``.
    """
    needed = pixels.shape[0] * pixels.shape[1] + window[2] * window[3]
    # torch resizes the rows first, all of them, then the columns.
    made = (pixels.shape[0] + size[0]) * size[1]
    if made <= max(_FEW, _MOST_WASTE * needed):
        return cut(resize(pixels, *size, interpolation), window)
    top, left, height, width = window
    channels = pixels.shape[2]
    rows = _Axis(pixels.shape[0], size[0], interpolation)
    total: Values = np.full((height, width * channels), 0.5 * (1 << rows.precision))
    first, last = rows.span(range(top, top + height))
    at_once = max(1, _BLOCK // (width * channels))
    coming = enumerate(rows.weights(range(top, top + height)))
    row_next = next(coming, None)
    under_way: list[tuple[int, tuple[int, Values]]] = []
    for start in range(first, last, at_once):
        stop = min(start + at_once, last)
        between = _resize_rows(pixels[start:stop], size[1], left, width, interpolation)
        block = between.reshape(stop - start, -1).astype(np.float64)
        while row_next is not None and row_next[1][0] < stop:
            under_way.append(row_next)
            row_next = next(coming, None)
        weighted = np.zeros((len(under_way), stop - start))
        for some, (_, (begin, weights)) in zip(weighted, under_way, strict=True):
            here, end = max(begin, start), min(begin + len(weights), stop)
            some[here - start : end - start] = weights[here - begin : end - begin]
        row = under_way[0][0]
        # Whole numbers below 2**53: exact, in any order.
        product = torch.from_numpy(weighted) @ torch.from_numpy(block)  # a loader's thread has one
        total[row : row + len(under_way)] += product.numpy()
        under_way = [one for one in under_way if one[1][0] + len(one[1][1]) > stop]
    return rows.rounded(total).reshape(height, width, channels)


def sample_window(
    pixels: Pixels, size: tuple[int, int], window: Window, rounding: Rounding
) -> Pixels:
    """Resize as TensorFlow does by default, bilinear without antialiasing, and cut a window.

    A pixel of the result is made of four at most, however much smaller the image becomes.

    Args:
      pixels: uint8 [H, W, C].
      size: (height, width) of the whole result.
      window: within that; no more is computed.
      rounding: of the result: nearest, or truncate, which is what a cast to integers does.
    Source: TensorFlow's resize_bilinear_op.cc, with half-pixel centres, in the same arithmetic.
    """
    top, left, height, width = window
    above, below, down = _neighbours(pixels.shape[0], size[0], range(top, top + height))
    before, behind, right = _neighbours(pixels.shape[1], size[1], range(left, left + width))
    sides, right = (before, behind), right[:, None]

    def row_of(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        first, second = (pixels[np.ix_(rows, places)].astype(np.float32) for places in sides)
        mixed: NDArray[np.float32] = first + (second - first) * right
        return mixed

    upper = row_of(above)
    result = upper + (row_of(below) - upper) * down[:, None, None]
    if rounding == "nearest":
        result = np.rint(result)
    return result.astype(np.uint8)


def _neighbours(
    size_in: int, size_out: int, places: range
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for some places of a result the pixels on either side, and how far the second is."""
    scale = np.float32(size_in) / np.float32(size_out)
    centres = (np.arange(places.start, places.stop).astype(np.float32) + np.float32(0.5)) * scale
    centres = centres - np.float32(0.5)
    floors = np.floor(centres)
    first = np.maximum(floors.astype(np.int64), 0)
    second = np.minimum(np.ceil(centres).astype(np.int64), size_in - 1)
    return first, second, centres - floors


def _resize_rows(
    pixels: Pixels, size: int, left: int, width: int, interpolation: Interpolation
) -> Pixels:
    """Return some columns of an image whose width alone is changed to ``size``."""
    height, width_in, channels = pixels.shape
    if size <= _MOST_WASTE * (width_in + width):
        return resize(pixels, height, size, interpolation)[:, left : left + width]
    columns = _Axis(width_in, size, interpolation)
    total: Values = np.full((width, height, channels), 0.5 * (1 << columns.precision))
    for column, (begin, weights) in enumerate(columns.weights(range(left, left + width))):
        total[column] += np.tensordot(weights, pixels[:, begin : begin + len(weights)], (0, 1))
    return columns.rounded(total).swapaxes(0, 1)


class _Axis:
    """How one axis is resized: which pixels make a pixel of the result, and with which weights.

    Weights are whole numbers, of 2**precision in all.

    Source: ATen's UpSampleKernel.cpp, ``_compute_index_ranges_int16_weights``.
    """

    def __init__(self, size_in: int, size_out: int, interpolation: Interpolation) -> None:
        self.size_in = size_in
        self.interpolation = interpolation
        self.scale = size_in / size_out
        self.support = _RADIUS[interpolation] * max(self.scale, 1.0)
        # The precision follows from the largest weight. That is at the border, where the filter is
        # cut off and what is left adds up to 1 again; or, if a pixel of the result is made of few,
        # where it happens to lie on the middle of one of them.
        few = _PHASES if 1 < self.scale < 8 else 0
        border = range(min(size_out, max(few, math.ceil(self.support / self.scale) + 2)))
        largest = max(float(weights.max()) for _, weights in self._weights(border))
        self.precision = 0
        while self.precision < 22 and int(0.5 + largest * (2 << self.precision)) < 1 << 15:
            self.precision += 1

    def span(self, places: range) -> tuple[int, int]:
        """Return the first pixel that some places of the result are made of, and the last + 1."""
        first, last = self._bounds(np.array([places.start, places.stop - 1]))
        return int(first[0]), int(last[1])

    def weights(self, places: range) -> Iterator[tuple[int, Values]]:
        """Yield, for some places of the result, the first pixel and the weights from it on."""
        for begin, weights in self._weights(places):
            yield begin, np.trunc(weights * (1 << self.precision) + np.copysign(0.5, weights))

    def rounded(self, total: Values) -> Pixels:
        """Return the pixels of weighted sums, to which a half has been added."""
        return np.clip(np.floor(total / (1 << self.precision)), 0, 255).astype(np.uint8)

    def _bounds(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        centres = self.scale * (places + 0.5)
        first = np.maximum((centres - self.support + 0.5).astype(np.int64), 0)
        return first, np.minimum((centres + self.support + 0.5).astype(np.int64), self.size_in)

    def _weights(self, places: range) -> Iterator[tuple[int, Values]]:
        step = max(1, _BLOCK // (16 * math.ceil(self.support)))
        for start in range(places.start, places.stop, step):
            some = np.arange(start, min(start + step, places.stop))
            first, last = self._bounds(some)
            taps = np.arange(int((last - first).max()))
            distances = taps + (first - self.scale * (some + 0.5))[:, None] + 0.5
            distances = distances * (1 / max(self.scale, 1.0))
            weights = _filter(distances.astype(np.float64), self.interpolation)
            weights[taps >= (last - first)[:, None]] = 0
            weights /= weights.sum(1, keepdims=True)
            for begin, end, row in zip(first.tolist(), last.tolist(), weights, strict=True):
                yield begin, row[: end - begin]


def _filter(distances: Values, interpolation: Interpolation) -> Values:
    """Return the triangle, or Keys' cubic with a = -0.5, at some distances."""
    x: Values = np.abs(distances)
    if interpolation == "bilinear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    result: Values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return result


def mirror(pixels: Pixels) -> Pixels:
    """Return the image flipped left to right; 8 times faster than numpy's strided copy."""
    return _as_pixels(_as_tensor(pixels).flip(3))


def _as_tensor(pixels: Pixels) -> torch.Tensor:
    """Return [1, C, H, W] in channels-last memory, which torch's operators keep to.

    The batch axis comes by a reshape, which gives it a stride: only so does torch see that memory
    format, which makes a resize 1.7 times, and the copy of its result 60 times faster. Views are
    numpy's, as torch gives away the interpreter's lock for each of its own.
    """
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # torch has no read-only tensors, and warns
    return torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))


def _as_pixels(image_1CHW: torch.Tensor) -> Pixels:
    result: Pixels = image_1CHW.numpy()[0].transpose(1, 2, 0)
    return result
