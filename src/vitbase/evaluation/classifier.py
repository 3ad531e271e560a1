"""Images -> the most probable classes, decoded by the loader's threads while a network computes.

Whatever computes is a :data:`Network`: a model of torch on any device, or an exported file in its
own runtime. Shape legend: B images of a batch, H, W and C of one, K the most probable classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import nn

from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import EvalTransform
from vitbase.data.loader import Batch, EvalLoader
from vitbase.data.normalize import normalize
from vitbase.data.threads import one_core_threads
from vitbase.errors import WeightsError
from vitbase.evaluation.metrics import rank_classes
from vitbase.model.packing import pack
from vitbase.runtime import Runtime
from vitbase.sources.named import in_memory
from vitbase.sources.source import Source
from vitbase.weights.load import LoadedModel

Network = Callable[[torch.Tensor], torch.Tensor]
"""Pixels uint8 [B, H, W, C] as the loader gives them, on the CPU -> logits float32 [B, classes]
there. It normalises for itself: an exported graph may have that inside."""

_FEWEST = 4
"""Images of a batch of which several are computed at once."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a classifier says of one image.

    Attributes:
      index: of the image, in its source.
      classes: numbers of the most probable classes, best first; none of an unreadable image.
      probabilities: of these.
      error: why the image could not be read.
    """

    index: int
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


class Classifier:
    """A network, what images become for it, and the names of its classes.

    Args:
      network: computes.
      preprocess: what images become.
      class_names: of its outputs, in order; those that have none are called by their numbers.
      path: of the file that it came from.
      num_classes: its outputs; None: as many as there are names.
      temperature: divides the logits.
      pin_memory: whether the network takes batches sooner from page-locked memory.
      streams: batches that the network computes at once, each on a core of its own, where there are
        enough images.
      runtime: what computes, in words.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocess,
        class_names: Sequence[str],
        *,
        path: Path,
        num_classes: int | None = None,
        temperature: float = 1.0,
        pin_memory: bool = False,
        streams: int = 1,
        runtime: str = "eager",
    ) -> None:
        self.network = network
        self.preprocess = preprocess
        outputs = len(class_names) if num_classes is None else num_classes
        self.class_names = (*class_names, *map(str, range(len(class_names), outputs)))
        self.path = path
        self.temperature = temperature
        self.pin_memory = pin_memory
        self.streams = streams
        self.runtime = runtime

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rank(self, logits_BC: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers [B, K] of the most probable classes, and their probabilities."""
        top_BK = rank_classes(logits_BC, top)
        return top_BK, (logits_BC / self.temperature).softmax(dim=1).gather(1, top_BK)

    def classify(
        self,
        source: Source,
        *,
        top: int = 5,
        batch_size: int = 32,
        num_workers: int | None = None,
    ) -> Iterator[Answer]:
        """Yield an answer for each image of a source, in order.

        Args:
          source: its labels are not looked at.
          top: classes of an answer, at most.
          batch_size: images that are computed together.
          num_workers: threads that read and decode; None: one per usable core.
        Raises: WeightsError if the network gives no numbers; what the source raises.
        """
        streams, size = self.streams, max(_FEWEST, batch_size // self.streams)
        if len(source) < 2 * streams * size:  # some would soon have nothing to do
            streams, size = 1, batch_size
        loader = EvalLoader(
            source,
            EvalTransform(self.preprocess),
            batch_size=size,
            num_workers=num_workers,
            pin_memory=self.pin_memory,
        )
        with contextlib.closing(iter(loader)) as batches:
            for batch, logits_BC in self._computed(batches, streams):
                if not logits_BC[batch.readable].isfinite().all():
                    place = source.describe(int(batch.positions[0]))
                    raise WeightsError(
                        f"{self.path} ({self.runtime}) answers with NaN or infinity to an image of "
                        f"{len(batch.positions)} from {place} on."
                    )
                top_BK, p_BK = self.rank(logits_BC, top)
                causes = iter(batch.bad)
                for index, readable, classes, shares in zip(
                    batch.positions.tolist(),
                    batch.readable.tolist(),
                    top_BK.tolist(),
                    p_BK.tolist(),
                    strict=True,
                ):
                    if readable:
                        yield Answer(index, tuple(classes), tuple(shares))
                    else:
                        yield Answer(index, error=next(causes).cause)

    def _computed(
        self, batches: Iterable[Batch], streams: int
    ) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield each batch with its logits, in order.

        Torch shares a batch out to the cores, operator by operator, and waits for the last of them
        every time. Batches of their own wait for nothing, least of all for the loader's threads.
        """
        if streams == 1:
            yield from ((batch, self.network(batch.images)) for batch in batches)
            return
        under_way: deque[tuple[Batch, Future[torch.Tensor]]] = deque()
        pool = one_core_threads(streams)
        try:
            for batch in batches:
                under_way.append((batch, pool.submit(self.network, batch.images)))
                if len(under_way) > streams:
                    first, logits = under_way.popleft()
                    yield first, logits.result()
            for first, logits in under_way:
                yield first, logits.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def classify_bytes(
        self, images: Sequence[bytes], *, top: int = 5, num_workers: int | None = None
    ) -> list[Answer]:
        """Return an answer for each of some image files in memory, computed together."""
        if not images:
            return []
        source = in_memory(images)
        answers = self.classify(source, top=top, batch_size=len(images), num_workers=num_workers)
        return list(answers)


def share_of(probability: float) -> float:
    """Return a probability with all the digits that float32 has, and no more."""
    return float(f"{probability:.6g}")


def of_model(loaded: LoadedModel, runtime: Runtime) -> Network:
    """Put a model on a device, where it only computes from now on.

    Returns: what it computes there, from pixels to logits.
    Raises: WeightsError if it has no head.
    """
    loaded.check_head()
    model = loaded.model.to(runtime.device).eval()
    if runtime.precision == "fp32":
        pack(model)
    logits_of = on_device(model, loaded.preprocess, runtime)

    def network(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        (images_BHWC,) = runtime.send(pixels_BHWC)
        with torch.inference_mode():
            return logits_of(images_BHWC).float().cpu()

    return network


def on_device(model: nn.Module, preprocess: Preprocess, runtime: Runtime) -> Network:
    """Return what a model computes of pixels that are on its device, like the logits."""

    def logits_of(images_BHWC: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            logits_BC: torch.Tensor = model(normalize(images_BHWC, preprocess))
        return logits_BC

    return logits_of
