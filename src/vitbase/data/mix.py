"""MixUp and CutMix on the device: what a step mixes is a function of (seed, epoch, step).

The partners are positions 2k and 2k + 1 of the global batch, so every even, contiguous slice of it
can be mixed by itself, and gives the same numbers: ranks and micro-batches need nothing from each
other. All pairs of a step share one choice, one lambda and one box, as in timm's mode "batch".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from vitbase.data.decode import Window

_MIX_KEY = 0x6D6978  # "mix": keeps these numbers apart from every other use of the seed


@dataclass(frozen=True)
class Mix:
    """What is done with the pairs of a step: each becomes lam of itself and the rest its partner.

    An image with a negative label could not be read. It stays as it is, its partner too, and keeps
    its own label; its row of targets is zero, for a loss to leave out.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    lam: float = 1.0
    box: Window = (0, 0, 0, 0)
    numbers: torch.Tensor | None = None
    """Of :meth:`on_device`; the other two are not read then."""

    def on_device(self, device: torch.device) -> Mix:
        """Return this with its numbers on a device: what was compiled, or recorded, for one of a
        kind serves all of them, whatever their lambda and box.
        """
        top, left, height, width = self.box
        edges = (top, left, top + height, left + width)
        numbers_6 = torch.tensor([self.lam, 1.0 - self.lam, *edges], dtype=torch.float32)
        if device.type != "cpu":
            numbers_6 = numbers_6.pin_memory().to(device, non_blocking=True)
        return replace(self, numbers=numbers_6)

    def images(self, images_BCHW: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mix images.

        Args:
          images_BCHW: normalised floats, B even; not written to.
          labels: int [B], or [B, classes] of 0 and 1; negative for images that could not be read.
        Returns: [B, C, H, W], in the same order in memory; the argument itself if nothing is mixed.
        Raises: ValueError if B is odd, and images are mixed.
        """
        if self.kind == "none":
            return images_BCHW
        even_PCHW, odd_PCHW = _pairs(images_BCHW)
        readable_P111 = _both_readable(labels)[:, None, None, None]
        if self.numbers is not None:
            return self._images_by_numbers(images_BCHW, readable_P111)
        if self.kind == "cutmix":
            top, left, height, width = self.box
            at = (..., slice(top, top + height), slice(left, left + width))
            mixed_BCHW = images_BCHW.clone()
            mixed_BCHW[0::2][at] = torch.where(readable_P111, odd_PCHW[at], even_PCHW[at])
            mixed_BCHW[1::2][at] = torch.where(readable_P111, even_PCHW[at], odd_PCHW[at])
            return mixed_BCHW
        own, others = self._shares()
        own_P111 = torch.where(readable_P111, own, 1.0).to(images_BCHW.dtype)
        others_P111 = torch.where(readable_P111, others, 0.0).to(images_BCHW.dtype)
        mixed_BCHW = torch.empty_like(images_BCHW)
        # Products, then a sum: fused, they would round as the place in memory has it.
        torch.add(even_PCHW * own_P111, odd_PCHW * others_P111, out=mixed_BCHW[0::2])
        torch.add(odd_PCHW * own_P111, even_PCHW * others_P111, out=mixed_BCHW[1::2])
        return mixed_BCHW

    def _images_by_numbers(
        self, images_BCHW: torch.Tensor, readable_P111: torch.Tensor
    ) -> torch.Tensor:
        """The same images as above, from operations that do not depend on lambda and box."""
        assert self.numbers is not None
        own, others, top, left, bottom, right = self.numbers.to(images_BCHW.dtype).unbind()
        readable_P1111 = readable_P111[:, None]
        own_P2CHW = images_BCHW.unflatten(0, (-1, 2))
        others_P2CHW = own_P2CHW.flip(1)
        if self.kind == "cutmix":
            rows_H1 = torch.arange(images_BCHW.shape[2], device=images_BCHW.device)[:, None]
            columns_W = torch.arange(images_BCHW.shape[3], device=images_BCHW.device)
            rows_H1, columns_W = (
                (rows_H1 >= top) & (rows_H1 < bottom),
                (columns_W >= left) & (columns_W < right),
            )
            swapped = rows_H1 & columns_W & readable_P1111
            mixed_P2CHW = torch.where(swapped, others_P2CHW, own_P2CHW)
        else:
            own_P2CHW = own_P2CHW * torch.where(readable_P1111, own, 1.0)
            others_P2CHW = others_P2CHW * torch.where(readable_P1111, others, 0.0)
            mixed_P2CHW = own_P2CHW + others_P2CHW
        return torch.flatten(mixed_P2CHW, 0, 1)

    def _shares(self) -> tuple[float, float] | tuple[torch.Tensor, torch.Tensor]:
        """Return what of an image is its own, and its partner's."""
        if self.numbers is None:
            return self.lam, 1.0 - self.lam
        return self.numbers[0], self.numbers[1]

    def targets(
        self, labels: torch.Tensor, num_classes: int, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return what the model should answer, for softmax and for sigmoid losses.

        Args:
          labels: int [B], or [B, classes] of 0 and 1; negative for images that could not be read.
          num_classes: columns of the result.
          label_smoothing: share taken from the label and given to all classes alike; of several
            labels each goes towards 0.5 by that share.
        Returns: float32 [B, num_classes]; a row of single labels sums to 1, or to 0 where the image
          could not be read.
        Raises: ValueError if B is odd.
        """
        targets_BC = one_hot(labels, num_classes, label_smoothing)
        if self.kind == "none":
            return targets_BC
        even_PC, odd_PC = _pairs(targets_BC)
        readable_P1 = _both_readable(labels)[:, None]
        own, others = self._shares()
        own_P1 = torch.where(readable_P1, own, 1.0).to(torch.float32)
        others_P1 = torch.where(readable_P1, others, 0.0).to(torch.float32)
        mixed_BC = torch.empty_like(targets_BC)
        torch.add(even_PC * own_P1, odd_PC * others_P1, out=mixed_BC[0::2])
        torch.add(odd_PC * own_P1, even_PC * others_P1, out=mixed_BC[1::2])
        return mixed_BC


def one_hot(labels: torch.Tensor, num_classes: int, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return targets of unmixed images. Args and result: as of :meth:`Mix.targets`."""
    if labels.ndim == 2:
        smoothed = labels.to(torch.float32) * (1 - label_smoothing) + 0.5 * label_smoothing
        return smoothed.masked_fill((labels < 0).any(1, keepdim=True), 0.0)
    off = label_smoothing / num_classes
    shape = (len(labels), num_classes)
    targets_BC = torch.full(shape, off, dtype=torch.float32, device=labels.device)
    targets_BC.scatter_(1, labels.clamp(min=0)[:, None].long(), 1.0 - label_smoothing + off)
    return targets_BC.masked_fill((labels < 0)[:, None], 0.0)


def binarize(targets_BC: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """Return 1 where a target exceeds a threshold, else 0: both labels of a pair count in full.

    Source: DeiT III (arXiv 2204.07118) section 3.1, whose threshold is 0; timm's
      ``target_threshold``. With label smoothing the threshold must exceed what every class gets.
    """
    return (targets_BC > threshold).to(targets_BC.dtype)


def draw_mix(
    seed: int,
    epoch: int,
    step: int,
    image_hw: tuple[int, int],
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    mix_probability: float = 1.0,
    mix_switch_probability: float = 0.5,
) -> Mix:
    """Decide what a step mixes.

    Args:
      seed: of the run.
      epoch: from 0.
      step: within the epoch, from 0; all its micro-batches mix alike.
      image_hw: (height, width) of the images.
      mixup_alpha: lambda is from Beta(alpha, alpha); 0: no MixUp.
      cutmix_alpha: the same; 0: no CutMix.
      mix_probability: of a step to mix at all.
      mix_switch_probability: of CutMix, where both are possible.
    Returns: for CutMix, a box whose centre is uniform, cut at the border; lam is its complement's
      share of the image.
    Source: MixUp (arXiv 1710.09412), CutMix (arXiv 1905.04899); the choices are timm's.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return Mix()
    philox = np.random.Philox(counter=[0, 0, step, epoch], key=[seed, _MIX_KEY])
    mixes, switch, number, down, right = np.random.Generator(philox).random(5).tolist()
    if mixes >= mix_probability:
        return Mix()
    if cutmix_alpha <= 0 or (mixup_alpha > 0 and switch >= mix_switch_probability):
        return Mix("mixup", beta_quantile(mixup_alpha, number))
    box = cutmix_box(image_hw, beta_quantile(cutmix_alpha, number), down, right)
    return Mix("cutmix", 1.0 - box[2] * box[3] / (image_hw[0] * image_hw[1]), box)


def cutmix_box(image_hw: tuple[int, int], lam: float, down: float, right: float) -> Window:
    """Return the box that leaves lam of an image, around a centre, as far as it lies inside.

    Args:
      image_hw: (height, width).
      lam: share outside a box that lies inside altogether.
      down: where the centre is, as a share of the height, below 1.
      right: the same of the width.
    """
    edges = []
    for size, share in zip(image_hw, (down, right), strict=True):
        side, centre = int(size * math.sqrt(1.0 - lam)), int(share * size)
        edges.append((max(0, centre - side // 2), min(size, centre + (side + 1) // 2)))
    (top, bottom), (left, end) = edges
    return top, left, bottom - top, end - left


def beta_quantile(alpha: float, probability: float) -> float:
    """Return x with P(X <= x) = probability for X ~ Beta(alpha, alpha), to 12 decimal places.

    numpy's own sampler may change with its versions, and with it a run; this one is arithmetic.
    """
    if probability > 0.5:
        return 1.0 - beta_quantile(alpha, 1.0 - probability)
    low, high = 0.0, 0.5
    for _ in range(45):
        middle = (low + high) / 2
        if _beta_cdf(alpha, middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(alpha: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(alpha, alpha) for 0 < x <= 1/2.

    Its continued fraction, evaluated from the front by Lentz's method.

    Source: NIST Digital Library of Mathematical Functions, 8.17.22.
    """
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    front = math.exp(alpha * (math.log(x) + math.log1p(-x)) - log_beta) / alpha
    tiny = 1e-300
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, 2000):
        half = term // 2
        ratio = -(alpha + half) * (2 * alpha + half) if term % 2 else half * (alpha - half)
        ratio *= x / (alpha + term - 1) / (alpha + term)
        denominator = 1.0 / (1.0 + ratio * denominator or tiny)
        numerator = 1.0 + ratio / numerator or tiny
        change = numerator * denominator
        fraction *= change
        if abs(change - 1.0) < 1e-15:
            break
    return front / fraction


def _pairs(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if len(values) % 2:
        raise ValueError(f"{len(values)} images cannot be mixed in pairs: the batch must be even")
    return values[0::2], values[1::2]


def _both_readable(labels: torch.Tensor) -> torch.Tensor:
    """Return bool [B / 2]: whether both images of a pair could be read."""
    readable = labels >= 0 if labels.ndim == 1 else (labels >= 0).all(1)
    return readable[0::2] & readable[1::2]
