"""Errors on corrupted images, by corruption: means over severities, then over corruptions.

The paper divides a corruption's errors by AlexNet's, so that hard corruptions do not outweigh the
others: mCE is the mean of these quotients, of 15 corruptions and 5 severities.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from vitbase.evaluation.metrics import ClassificationSums

ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Mean over severities. Source: github.com/hendrycks/robustness, as published code quotes it."""

SEVERITIES = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One corruption: counts by severity."""

    name: str
    by_severity: Mapping[int, ClassificationSums]

    @property
    def images(self) -> int:
        return sum(sums.images for sums in self.by_severity.values())

    @property
    def error(self) -> float:
        """Mean error of the severities that there are."""
        return statistics.fmean(1 - sums.top1 for sums in self.by_severity.values())

    @property
    def normalised(self) -> float | None:
        """Error divided by AlexNet's; None if severities are missing, or its error is not known."""
        alexnet = ALEXNET_ERRORS.get(self.name)
        whole = {*self.by_severity} == {*SEVERITIES}
        return self.error / alexnet if whole and alexnet else None

    def to_row(self) -> dict[str, Any]:
        return {
            "eval_error": self.error,
            **{f"eval_error_{n}": 1 - sums.top1 for n, sums in sorted(self.by_severity.items())},
            "eval_error_by_alexnet": self.normalised,
            "eval_images": self.images,
        }

    def describe(self, class_names: object = ()) -> str:
        severities = " ".join(f"{1 - s.top1:.2%}" for _, s in sorted(self.by_severity.items()))
        numbers = ", ".join(map(str, sorted(self.by_severity)))
        by_alexnet = self.normalised
        quotient = "" if by_alexnet is None else f"  by AlexNet's {by_alexnet:.2%}"
        return f"mean error {self.error:.2%} (severity {numbers}: {severities}){quotient}"


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """All corruptions that there are."""

    kinds: tuple[Corruption, ...]

    @property
    def images(self) -> int:
        return sum(kind.images for kind in self.kinds)

    @property
    def error(self) -> float:
        return statistics.fmean(kind.error for kind in self.kinds)

    @property
    def mce(self) -> float | None:
        """Mean corruption error; None unless all 15 corruptions are there, in 5 severities.

        Others, such as those that the authors keep for validation, do not count.
        """
        known = [kind.normalised for kind in self.kinds if kind.name in ALEXNET_ERRORS]
        values = [value for value in known if value is not None]
        return statistics.fmean(values) if len(values) == len(ALEXNET_ERRORS) else None

    def to_row(self) -> dict[str, Any]:
        return {
            "eval_mean_error": self.error,
            "eval_mce": self.mce,
            "eval_corruptions": len(self.kinds),
            "eval_images": self.images,
        }

    def describe(self, class_names: object = ()) -> str:
        mce = self.mce
        told = "no mCE, for which 15 corruptions in 5 severities are needed"
        if mce is not None:
            told = f"mCE {mce:.2%} (errors divided by AlexNet's)"
        return f"mean error {self.error:.2%} of {len(self.kinds)} corruptions; {told}"
