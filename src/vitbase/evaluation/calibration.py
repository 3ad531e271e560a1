"""Whether a model is as sure as it is right: calibration error, reliability, and a temperature.

The temperature divides the logits, so that the loss is least. To fit it, and to know what each
image's confidence becomes, the logits themselves are not needed: for each image there is
a(s) = log sum_c exp(e^s (z_c - max z)) and its derivative, on a grid of s = -log T; in between they
are cubics. So memory is of images, not of images times classes, and the result is the same for any
number of ranks. Shape legend: N images, G points of the grid, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.errors import DataError, shown
from vitbase.files import json_line, read_json, sha256_of, write_whole

NUM_BINS = 15
"""As in Guo et al. (arXiv 1706.04599): of equal width, each with its upper end."""

LOG_BETAS = np.arange(-24, 25) / 10
"""The grid of s: temperatures from 11 to 0.09; s = 0 is one of them."""

_LONGEST = 1 << 20


def bins_of(confidence_N: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of each confidence in [0, 1]."""
    bins = np.ceil(confidence_N.astype(np.float64) * NUM_BINS).astype(np.int64) - 1
    return np.clip(bins, 0, NUM_BINS - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Of each bin: images, their mean confidence, the share of them that are right; nan if none."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @classmethod
    def of(cls, confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> Reliability:
        """Sort images into bins."""
        bins = bins_of(confidence_N)
        counts = np.bincount(bins, minlength=NUM_BINS)
        size = np.where(counts > 0, counts, math.nan)
        confidence = np.bincount(bins, confidence_N.astype(np.float64), minlength=NUM_BINS)
        return cls(counts, confidence / size, np.bincount(bins, right_N, minlength=NUM_BINS) / size)

    @property
    def ece(self) -> float:
        """The expected calibration error: mean distance of confidence and accuracy."""
        if not self.counts.sum():
            return math.nan
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((gaps * self.counts).sum() / self.counts.sum())

    def to_rows(self) -> list[dict[str, float | None]]:
        """Return the bins as JSON takes them."""
        rows: list[dict[str, float | None]] = []
        for number, count in enumerate(self.counts.tolist()):
            row: dict[str, float | None] = {
                "low": number / NUM_BINS,
                "high": (number + 1) / NUM_BINS,
                "count": count,
                "confidence": float(self.confidence[number]) if count else None,
                "accuracy": float(self.accuracy[number]) if count else None,
            }
            rows.append(row)
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class Sharpness:
    """What is known of the logits of each image, that any temperature may be applied to them.

    Attributes:
      values_NG: float32, a(s) on the grid.
      slopes_NG: float32, its derivative by s.
      margins_N: float32, the largest logit less the label's.
    """

    values_NG: NDArray[np.float32]  # noqa: N815 (its shape)
    slopes_NG: NDArray[np.float32]  # noqa: N815
    margins_N: NDArray[np.float32]  # noqa: N815

    def take(self, chosen_N: NDArray[np.bool_]) -> Sharpness:
        """Return that of some images."""
        return Sharpness(
            self.values_NG[chosen_N], self.slopes_NG[chosen_N], self.margins_N[chosen_N]
        )

    def confidence(self, temperature: float) -> NDArray[np.float32]:
        """Return each image's largest probability, at a temperature."""
        cell, weights, slopes = _hermite(-math.log(temperature))
        pair = slice(cell, cell + 2)
        logs_N = self.values_NG[:, pair] @ weights + self.slopes_NG[:, pair] @ slopes
        return np.exp(-np.maximum(logs_N, 0)).astype(np.float32)

    def loss(self, temperature: float) -> float:
        """Return the mean cross-entropy at a temperature."""
        confidence_N = self.confidence(temperature).astype(np.float64)
        return float((self.margins_N / temperature - np.log(confidence_N)).mean())

    def fit(self) -> float:
        """Return the temperature at which the loss is least, within those of the grid."""
        values_G = self.values_NG.mean(axis=0, dtype=np.float64)
        slopes_G = self.slopes_NG.mean(axis=0, dtype=np.float64)
        margin = float(self.margins_N.mean(dtype=np.float64))
        # By e^s the loss is convex, so its derivative changes its sign once.
        rising = slopes_G + np.exp(LOG_BETAS) * margin > 0
        if rising[0] or not rising.any():
            return math.exp(-LOG_BETAS[0 if rising[0] else -1])
        low, high = LOG_BETAS[int(rising.argmax()) - 1], LOG_BETAS[int(rising.argmax())]
        cell = int(rising.argmax()) - 1
        pair, step = slice(cell, cell + 2), high - low
        for _ in range(50):
            middle = (low + high) / 2
            t = (middle - LOG_BETAS[cell]) / step if step else 0.0
            by_value = np.array([6 * t**2 - 6 * t, 6 * t - 6 * t**2]) / step
            by_slope = np.array([3 * t**2 - 4 * t + 1, 3 * t**2 - 2 * t])
            slope = (
                values_G[pair] @ by_value + slopes_G[pair] @ by_slope + math.exp(middle) * margin
            )
            low, high = (low, middle) if slope > 0 else (middle, high)
        return math.exp(-(low + high) / 2)


def _hermite(s: float) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Return a cell of the grid, and the weights of its ends' values and slopes at a place."""
    step = LOG_BETAS[1] - LOG_BETAS[0]
    cell = int(np.clip((s - LOG_BETAS[0]) // step, 0, len(LOG_BETAS) - 2))
    t = float(np.clip((s - LOG_BETAS[cell]) / step, 0, 1))
    values = np.array([2 * t**3 - 3 * t**2 + 1, 3 * t**2 - 2 * t**3])
    return cell, values, np.array([t**3 - 2 * t**2 + t, t**3 - t**2]) * step


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability as the model is, and with its logits divided by the fitted temperature."""

    temperature: float
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float
    images: int

    @classmethod
    def of(
        cls,
        confidence_N: NDArray[np.float32],
        right_N: NDArray[np.bool_],
        loss_N: NDArray[np.float32],
        sharpness: Sharpness,
    ) -> Calibration | None:
        """Fit the temperature to images that could be read; None if there are none."""
        if not len(confidence_N):
            return None
        temperature = sharpness.fit()
        return cls(
            temperature,
            Reliability.of(confidence_N, right_N),
            Reliability.of(sharpness.confidence(temperature), right_N),
            float(loss_N.mean(dtype=np.float64)),
            sharpness.loss(temperature),
            len(confidence_N),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "ece": self.before.ece,
            "temperature": self.temperature,
            "ece_after": self.after.ece,
            "bins": self.before.to_rows(),
            "bins_after": self.after.to_rows(),
        }

    def describe(self) -> str:
        """Say it in a few words."""
        return (
            f"temperature {self.temperature:.3f}: calibration error {self.before.ece:.2%} becomes "
            f"{self.after.ece:.2%}, loss {self.loss_before:.4f} becomes {self.loss_after:.4f}"
        )


def calibration_file(weights: Path) -> Path:
    """Return where the temperature of a weights file is kept: beside it."""
    return weights.with_name(f"{weights.name}.calibration.json")


def write_calibration(weights: Path, calibration: Calibration, data: str) -> Path:
    """Keep a temperature beside the weights that it is for. Returns: the file.

    Raises: DataError if it cannot be written.
    """
    place = calibration_file(weights)
    try:
        facts = {
            "version": 1,
            "temperature": calibration.temperature,
            "fitted_on": data,
            "images": calibration.images,
            "loss": calibration.loss_before,
            "loss_after": calibration.loss_after,
            "ece": calibration.before.ece,
            "ece_after": calibration.after.ece,
            "weights_sha256": sha256_of(weights),
        }
        write_whole(place, json_line(facts, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"Cannot write {place}: {error.strerror or error}") from None
    return place


def read_temperature(weights: Path) -> float | None:
    """Return the temperature that is kept beside a weights file; None if there is none.

    Raises: DataError if it cannot be read, or is of other weights.
    """
    place = calibration_file(weights)
    try:
        facts = read_json(place, longest=_LONGEST)
        sha256 = sha256_of(weights)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {place}: {error}. Remove it, or fit it again.") from None
    found = facts.get("temperature") if isinstance(facts, dict) else None
    if not isinstance(found, int | float) or not 0.001 < found < 1000:
        raise DataError(f"{place}: its temperature is {shown(found)}. Remove it, or fit it again.")
    if facts.get("weights_sha256") != sha256:
        raise DataError(f"{place} is of other weights than {weights}. Remove it, or fit it again.")
    return float(found)
