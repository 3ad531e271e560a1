"""A classifier that serves: images decoded by threads, computed in batches, named classes out."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from vitbase.data.augment import EvalTransform
from vitbase.data.decode import Pixels, read_size
from vitbase.errors import ImageError
from vitbase.evaluation.classifier import Classifier, share_of
from vitbase.runtime import available_cores
from vitbase.shipping.serving.batching import Batcher
from vitbase.shipping.serving.limits import Limits
from vitbase.shipping.serving.refusals import Refusal


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An image that waits, and how many classes are asked for."""

    pixels: Pixels  # uint8 [H, W, C]
    top: int


Named = list[tuple[str, float]]
"""Classes and probabilities, best first."""


class Served:
    """A classifier in use; it is made in the event loop that asks it.

    Args:
      name: by which requests choose it.
      classifier: computes.
      limits: what it takes.
      tell: gets the images of each batch, and the seconds it took.
    """

    def __init__(
        self,
        name: str,
        classifier: Classifier,
        limits: Limits,
        tell: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.name, self.classifier, self.limits = name, classifier, limits
        self._transform = EvalTransform(classifier.preprocess)
        streams = min(classifier.streams, limits.batch_size)
        self.batcher = Batcher[Wanted, Named | None](
            self._compute,
            size=-(-limits.batch_size // streams),
            streams=streams,
            cores=available_cores(),
            queue_size=limits.waiting,
            max_wait=limits.max_wait,
            tell=tell,
        )
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it until the end of a request, whatever takes its place for others."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def retire(self) -> None:
        """End it, once nobody uses it any more."""
        await self._unused.wait()
        await self.batcher.close()

    def prepare(self, content: bytes) -> Pixels:
        """Decode an image file into what the network takes, uint8 [H, W, C].

        Raises: Refusal if it is no image, or has too many pixels; the latter before it is decoded.
        """
        preprocess = self.classifier.preprocess
        try:
            height, width = read_size(content)
            if height * width > self.limits.max_pixels:
                raise Refusal(
                    422,
                    f"The image has {width}x{height} pixels, more than the "
                    f"{self.limits.max_pixels:,} that are taken.",
                )
            pixels = np.empty((self._transform.height, preprocess.width, preprocess.channels), "u1")
            self._transform(content, None, pixels)
        except ImageError as error:
            raise Refusal(422, f"This is no image that can be read: {error}") from None
        except MemoryError:
            raise Refusal(422, "The image needs more memory than there is.") from None
        return pixels

    def _compute(self, wanted: Sequence[Wanted], cores: int) -> list[Named | None]:
        """Return each image's classes; None where the network gives no numbers."""
        if self.batcher.streams > 1:
            torch.get_num_threads()  # sets the thread up; left to an operator, it would undo ours
            torch.set_num_threads(cores)
        pixels = np.stack([each.pixels for each in wanted])
        images_BHWC = torch.from_numpy(pixels)
        if self.classifier.pin_memory:
            images_BHWC = images_BHWC.pin_memory()
        logits_BC = self.classifier.network(images_BHWC)
        finite_B = logits_BC.isfinite().all(dim=1).tolist()
        classes_BK, shares_BK = self.classifier.rank(logits_BC, max(each.top for each in wanted))
        names = self.classifier.class_names
        return [
            [(names[c], share_of(p)) for c, p in zip(classes, shares, strict=True)][: each.top]
            if finite
            else None
            for each, finite, classes, shares in zip(
                wanted, finite_B, classes_BK.tolist(), shares_BK.tolist(), strict=True
            )
        ]


def warm_up(classifier: Classifier, limits: Limits) -> None:
    """Let a network compute once what it will have to: some compile, or take memory, only then.

    Raises: what the network raises.
    """
    preprocess = classifier.preprocess
    for count in sorted({1, -(-limits.batch_size // classifier.streams)}):
        shape = (count, preprocess.height, preprocess.width, preprocess.channels)
        classifier.network(torch.zeros(shape, dtype=torch.uint8))
