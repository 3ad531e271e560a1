"""A network beside the model that it was made of: how far apart they are, and how far they may be.

Shape legend: B images of a batch, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from vitbase.config.preprocess import Preprocess
from vitbase.data.loader import Batch
from vitbase.evaluation.classifier import Network
from vitbase.evaluation.figures import wilson
from vitbase.shipping.exporting.facts import Facts, Precision

RANDOM_IMAGES = 16


class Bound(NamedTuple):
    """How far a file may be from its model.

    Attributes:
      difference: of any logit, in deviations of the model's own logits.
      agreement: share of real images for which both say the same class.
      lost: of top-1 accuracy on real images with labels.
    """

    difference: float
    agreement: float
    lost: float


BOUNDS: dict[Precision, Bound] = {
    "fp32": Bound(0.001, 0.999, 0.001),
    "fp16": Bound(0.1, 0.995, 0.005),
    "int8": Bound(math.inf, 0.99, 0.01),
}


@dataclasses.dataclass
class Sums:
    """What is added up of some images' logits, the model's and the file's.

    Attributes:
      difference: the largest of any two logits.
      finite: whether all of the file's are.
      squares: of the model's logits, about each image's mean; count: how many logits that are.
      images: all of them.
      agree: images with the same most probable class.
      labelled: images with one label each, that could be read.
      right: of these, recognised by the model, and by the file.
    """

    difference: float = 0.0
    finite: bool = True
    squares: float = 0.0
    count: int = 0
    images: int = 0
    agree: int = 0
    labelled: int = 0
    right: tuple[int, int] = (0, 0)

    def add(
        self, ours_BC: torch.Tensor, theirs_BC: torch.Tensor, labels_B: torch.Tensor | None
    ) -> None:
        """Add the logits of some images."""
        gaps = (ours_BC - theirs_BC).abs()
        self.finite &= bool(theirs_BC.isfinite().all())
        self.difference = max(self.difference, float(gaps.nan_to_num(nan=math.inf).max()))
        self.squares += float((ours_BC - ours_BC.mean(1, keepdim=True)).double().square().sum())
        self.count += ours_BC.numel()
        self.images += len(ours_BC)
        ours_B, theirs_B = ours_BC.argmax(1), theirs_BC.argmax(1)
        self.agree += int((ours_B == theirs_B).sum())
        if labels_B is not None:
            self.labelled += len(labels_B)
            pairs = zip(self.right, (ours_B, theirs_B), strict=True)
            found = [before + int((answers == labels_B).sum()) for before, answers in pairs]
            self.right = found[0], found[1]

    @property
    def spread(self) -> float:
        """The deviation of the model's logits."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    @property
    def relative(self) -> float:
        """The largest difference in these deviations; of equal logits, zero."""
        if not self.spread:
            return math.inf if self.difference else 0.0
        return self.difference / self.spread

    @property
    def agreement(self) -> float:
        return self.agree / self.images if self.images else math.nan

    @property
    def lost(self) -> float:
        """Top-1 accuracy that the file has less than the model; nan without labels."""
        return (self.right[0] - self.right[1]) / self.labelled if self.labelled else math.nan


@dataclasses.dataclass(frozen=True)
class Proof:
    """How far a file is from its model.

    Attributes:
      random: of images of noise.
      real: of images of a data set, if there was one.
      unreadable: of these images, left out.
      what: these images are, in words.
    """

    precision: Precision
    random: Sums
    real: Sums
    unreadable: int
    what: str

    def faults(self) -> list[str]:
        """Say what is worse than its bound."""
        bound, found = BOUNDS[self.precision], list[str]()
        for name, sums in (("random", self.random), ("real", self.real)):
            if not sums.finite:
                found.append(f"logits of {name} images are no numbers")
            elif sums.relative > bound.difference:
                found.append(
                    f"logits of {name} images differ by up to {sums.relative:.2g} of their "
                    f"deviation (bound {bound.difference:g})"
                )
        if self.real.images and self.real.agreement < bound.agreement:
            found.append(
                f"the same class for {self.real.agreement:.2%} of {self.real.images:,} real images "
                f"(bound {bound.agreement:.1%})"
            )
        if self.real.labelled and self.real.lost > bound.lost:
            found.append(f"{self.real.lost:.2%} of accuracy lost (bound {bound.lost:.1%})")
        return found

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        random, real = self.random, self.real
        yield (
            f"{random.images} random images: logits differ by at most {random.difference:.2g} "
            f"({random.relative:.1g} of their deviation)"
        )
        if not real.images:
            yield "No real images: --val_data_path PATH compares on yours, and measures accuracy."
            return
        yield (
            f"{real.images:,} real images ({self.what}): logits differ by at most "
            f"{real.difference:.2g} ({real.relative:.1g} of their deviation); the same class for "
            f"{real.agreement:.2%}"
        )
        if self.unreadable:
            yield f"{self.unreadable:,} images could not be read, and were left out"
        if real.labelled:
            before, after = (wilson(hits, real.labelled) for hits in real.right)
            yield (
                f"top-1 {after.describe()}; of the model itself {before.value:.2%}: "
                f"{abs(100 * real.lost):.2f} points {'lost' if real.lost >= 0 else 'won'}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        bound, real = BOUNDS[self.precision], self.real
        return {
            "random_images": self.random.images,
            "random_difference": self.random.difference,
            "random_difference_in_deviations": self.random.relative,
            "real_images": real.images,
            "unreadable": self.unreadable,
            "difference": real.difference if real.images else None,
            "difference_in_deviations": real.relative if real.images else None,
            "top1_agreement": real.agreement if real.images else None,
            "top1": real.right[1] / real.labelled if real.labelled else None,
            "top1_of_the_model": real.right[0] / real.labelled if real.labelled else None,
            "top1_lost": real.lost if real.labelled else None,
            "bounds": {
                "difference_in_deviations": bound.difference if bound.difference < 1e9 else None,
                "top1_agreement": bound.agreement,
                "top1_lost": bound.lost,
            },
        }


def random_pixels(preprocess: Preprocess, count: int = RANDOM_IMAGES) -> torch.Tensor:
    """Return images of noise, always the same: uint8 [count, H, W, C]."""
    shape = (count, preprocess.height, preprocess.width, preprocess.channels)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def prove(
    model: Network,
    other: Network,
    facts: Facts,
    batches: Iterable[Batch],
    what: str,
    *,
    labelled: bool,
    seen: Callable[[int], None] = lambda images: None,
) -> Proof:
    """Compare a network with the model that it was made of.

    Args:
      batches: of real images, of which those that cannot be read are left out.
      what: they are, in words.
      labelled: whether each has a label.
      seen: gets the number of real images so far.
    """
    random, real, unreadable = Sums(), Sums(), 0
    noise = random_pixels(facts.preprocess)
    for part in noise.tensor_split((1,)):  # one image alone, and many at once
        random.add(model(part), other(part), None)
    for batch in batches:
        kept = batch.readable
        unreadable += int((~kept).sum())
        if kept.any():
            ours_BC, theirs_BC = model(batch.images)[kept], other(batch.images)[kept]
            real.add(ours_BC, theirs_BC, batch.labels[kept] if labelled else None)
        seen(real.images + unreadable)
    return Proof(facts.precision, random, real, unreadable, what)
