"""What happens to one image: uint8 [H, W, C] in, uint8 [height, width, C] out.

Windows are drawn before the image is decoded, from the size in its header. Every random choice
comes from the sample's own generator, by ``.random()``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess
from vitbase.data.decode import Pixels, Window, cut, decode, decode_window, read_size, to_channels
from vitbase.data.policies.policies import (
    ColorJitter,
    RandomErasing,
    Step,
    ThreeAugment,
    apply_steps,
    cut_reflected,
    draw_simple_window,
    mean_colour,
)
from vitbase.data.policies.randaugment import KINDS, RandAugment
from vitbase.data.resize import Rounding, mirror, resize, resize_window, sample_window

ASPECT_RANGE = (3 / 4, 4 / 3)
CROP_TRIES = 10


def draw_window(
    size: tuple[int, int], area_range: tuple[float, float], generator: np.random.Generator
) -> Window:
    """Draw the window of a random resized crop.

    Its share of the image's area is uniform, its aspect (width / height) log-uniform; after ten
    windows that do not fit, it is the largest central one within the range of aspects.

    Source: Inception (arXiv 1409.4842) section 6; the numbers are torchvision's.
    """
    height, width = size
    low, high = math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])
    random = generator.random
    for _ in range(CROP_TRIES):
        area = height * width * (area_range[0] + (area_range[1] - area_range[0]) * random())
        aspect = math.exp(low + (high - low) * random())
        window_width = round(math.sqrt(area * aspect))
        window_height = round(math.sqrt(area / aspect))
        if 0 < window_width <= width and 0 < window_height <= height:
            top = int(random() * (height - window_height + 1))
            left = int(random() * (width - window_width + 1))
            return top, left, window_height, window_width
    window_height, window_width = height, width
    if width < ASPECT_RANGE[0] * height:
        window_height = round(width / ASPECT_RANGE[0])
    elif width > ASPECT_RANGE[1] * height:
        window_width = round(height * ASPECT_RANGE[1])
    top, left = (height - window_height) // 2, (width - window_width) // 2
    return top, left, window_height, window_width


def eval_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Return the (height, width) an image is resized to before its central crop.

    The target is floor(side / crop_ratio), as in timm; the image covers it, keeping its aspect,
    one side exactly. The other side is rounded down, as in torchvision. With crop_mode "squash"
    the image becomes the target itself.
    """
    height, width = size
    # The ratio may have been computed as, say, 224 / 232: its rounding must not cost a pixel.
    target_height = math.floor(preprocess.height / preprocess.crop_ratio + 1e-6)
    target_width = math.floor(preprocess.width / preprocess.crop_ratio + 1e-6)
    if preprocess.crop_mode == "squash":
        return target_height, target_width
    if target_height * width <= target_width * height:
        return max(target_height, int(target_width * height / width)), target_width
    return target_height, max(target_width, int(target_height * width / height))


def centre_window(size: tuple[int, int], height: int, width: int) -> Window:
    """Return the central window; half pixels are rounded to even, as in torchvision."""
    return round((size[0] - height) / 2), round((size[1] - width) / 2), height, width


def shift(pixels: Pixels, down: int, right: int, out: Pixels) -> None:
    """Write an image moved by some pixels; what is uncovered is black."""
    height, width = pixels.shape[:2]
    top, bottom = max(0, down), min(height, height + down)
    left, end = max(0, right), min(width, width + right)
    out.fill(0)
    if top < bottom and left < end:
        out[top:bottom, left:end] = pixels[top - down : bottom - down, left - right : end - right]


class EvalTransform:
    """Resize, central crop. Draws nothing.

    Args:
      preprocess: what an image becomes.
      sampled: resize as TensorFlow does by default, and round its numbers so; None: antialiased.
      crops: 1, or 5 for the centre and the four corners, which come one below the other.
    """

    def __init__(
        self, preprocess: Preprocess, *, sampled: Rounding | None = None, crops: Literal[1, 5] = 1
    ) -> None:
        self.preprocess = preprocess
        self.sampled = sampled
        self.crops = crops

    @property
    def height(self) -> int:
        """Rows of what it makes."""
        return self.preprocess.height * self.crops

    def __call__(
        self, raw: bytes | Pixels, generator: np.random.Generator | None, out: Pixels
    ) -> None:
        """Write the prepared image into its row of a batch.

        Args:
          out: uint8 [crops * height, width, channels].
        Raises: ImageError if ``raw`` cannot be decoded.
        """
        preprocess = self.preprocess
        whole = preprocess.crop_ratio == 1.0 and self.crops == 1
        if whole and not isinstance(raw, bytes) and raw.shape == out.shape:
            out[...] = raw
            return
        pixels = _decoded(raw, preprocess.channels)
        size = eval_size(pixels.shape[:2], preprocess)
        height, width = preprocess.height, preprocess.width
        windows = [centre_window(size, height, width)]
        if self.crops == 5:
            corners = itertools.product((0, size[0] - height), (0, size[1] - width))
            windows += [(*corner, height, width) for corner in corners]
        for window, part in zip(windows, np.split(out, self.crops), strict=True):
            if self.sampled and preprocess.interpolation == "bilinear":
                part[...] = sample_window(pixels, size, window, self.sampled)
            else:
                part[...] = resize_window(pixels, size, window, preprocess.interpolation)


class TrainTransform:
    """Crop and resize, flip, random operations, erasing: each as the options say."""

    def __init__(self, preprocess: Preprocess, augment: AugmentSection) -> None:
        self.preprocess = preprocess
        self.height = preprocess.height
        self.augment = augment
        self._centre = EvalTransform(preprocess)
        self._fit = EvalTransform(preprocess.model_copy(update={"crop_ratio": 1.0}))
        self._crop = {
            "random_resized": self._random_resized,
            "simple": self._simple,
            "pad": self._padded,
            "center": self._central,
        }[augment.train_crop]
        self._policy = build_policy(preprocess, augment)
        self._erasing = (
            RandomErasing(augment.erase_probability, augment.erase_mode, preprocess)
            if augment.erase_probability > 0
            else None
        )

    def __call__(
        self, raw: bytes | Pixels, generator: np.random.Generator | None, out: Pixels
    ) -> None:
        """Write the augmented image into its row of a batch, uint8 [height, width, channels].

        Raises: ImageError if ``raw`` cannot be decoded.
        """
        assert generator is not None
        pixels = self._crop(raw, generator, out)
        if self._policy is not None:
            pixels = self._policy(pixels, generator)
        if pixels is not out:
            out[...] = pixels
        if self._erasing is not None:
            self._erasing(out, generator)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process builds it anew: tables of operations are functions."""
        return TrainTransform, (self.preprocess, self.augment)

    def draw_crop(self, raw: bytes | Pixels, generator: np.random.Generator) -> tuple[Window, bool]:
        """Draw the window of a random resized crop, and whether it is flipped.

        Raises: ImageError if ``raw`` has no size.
        """
        flip = generator.random() < 0.5 and self.augment.flip
        size = read_size(raw) if isinstance(raw, bytes) else raw.shape[:2]
        return draw_window(size, (self.augment.crop_area_min, 1.0), generator), flip

    def _random_resized(
        self, raw: bytes | Pixels, generator: np.random.Generator, out: Pixels
    ) -> Pixels:
        preprocess = self.preprocess
        window, flip = self.draw_crop(raw, generator)
        pixels = self._decode_window(raw, window)
        return resize(pixels, preprocess.height, preprocess.width, preprocess.interpolation, flip)

    def _simple(self, raw: bytes | Pixels, generator: np.random.Generator, out: Pixels) -> Pixels:
        preprocess = self._fit.preprocess
        flip = generator.random() < 0.5 and self.augment.flip
        pixels = _decoded(raw, preprocess.channels)
        size = eval_size(pixels.shape[:2], preprocess)
        shape = preprocess.height, preprocess.width
        corner = draw_simple_window(size, *shape, self.augment.crop_pad, generator)
        result = cut_reflected(
            lambda inner: resize_window(pixels, size, inner, preprocess.interpolation),
            size,
            (*corner, *shape),
        )
        return mirror(np.ascontiguousarray(result)) if flip else result

    def _padded(self, raw: bytes | Pixels, generator: np.random.Generator, out: Pixels) -> Pixels:
        pad = self.augment.crop_pad
        mirrored, down, right = generator.random(3).tolist()
        down, right = pad - int(down * (2 * pad + 1)), pad - int(right * (2 * pad + 1))
        if isinstance(raw, bytes) or raw.shape != out.shape:
            fitted = np.empty_like(out)
            self._fit(raw, None, fitted)
            raw = fitted
        shift(raw, down, right, out[:, ::-1] if mirrored < 0.5 and self.augment.flip else out)
        return out

    def _central(self, raw: bytes | Pixels, generator: np.random.Generator, out: Pixels) -> Pixels:
        flip = generator.random() < 0.5 and self.augment.flip
        self._centre(raw, None, out)
        return mirror(out) if flip else out

    def _decode_window(self, raw: bytes | Pixels, window: Window) -> Pixels:
        preprocess = self.preprocess
        if not isinstance(raw, bytes):
            return to_channels(cut(raw, window), preprocess.channels)
        fits = min(window[2] // preprocess.height, window[3] // preprocess.width)
        shrink = max((s for s in (1, 2, 4, 8) if s <= fits), default=1)
        return decode_window(raw, window, preprocess.channels, shrink)


def build_policy(
    preprocess: Preprocess, augment: AugmentSection
) -> Callable[[Pixels, np.random.Generator], Pixels] | None:
    """Return what `policy` and `color_jitter` do to an image, uint8 [H, W, C]; None for nothing."""
    jitter = augment.color_jitter
    if augment.policy in KINDS:
        kind = KINDS[augment.policy]
        draw_first = RandAugment(
            kind,
            augment.randaugment_layers,
            augment.randaugment_magnitude,
            augment.randaugment_magnitude_std,
            # timm and torchvision's references move pixels as they resize; big_vision never does.
            interpolation=None if kind == "big_vision" else preprocess.interpolation,
            preprocess=preprocess,
        )
        if jitter == 0:
            return draw_first
        jittering = ColorJitter(jitter, jitter, jitter).draw
        fill = draw_first.fill
        return lambda pixels, generator: apply_steps(
            pixels, [*draw_first.draw(generator), *jittering(generator)], fill
        )
    draw: Callable[[np.random.Generator], list[Step]]
    if augment.policy == "3-augment":
        draw = ThreeAugment(jitter).draw
    elif jitter > 0:
        draw = ColorJitter(jitter, jitter, jitter).draw
    else:
        return None
    fill = mean_colour(preprocess)
    return lambda pixels, generator: apply_steps(pixels, draw(generator), fill)


def _decoded(raw: bytes | Pixels, channels: int) -> Pixels:
    return decode(raw, channels) if isinstance(raw, bytes) else to_channels(raw, channels)
