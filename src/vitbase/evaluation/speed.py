"""How fast an evaluation was: images a second with everything, and what a batch waits for."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any


@dataclasses.dataclass
class Speed:
    """Times of an evaluation, on this rank.

    Attributes:
      images: of all ranks.
      seconds: from the first image read to the last one counted.
      batches: images and seconds of each batch, from pixels in memory to logits on the host.
    """

    images: int = 0
    seconds: float = 0.0
    batches: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    @property
    def batch_size(self) -> int:
        """Images of a batch; the last one may be smaller, and is not timed beside larger ones."""
        return max((size for size, _ in self.batches), default=0)

    @property
    def latency(self) -> float | None:
        """Median seconds of a batch, without the first where there are more; None: no batch."""
        full = [seconds for size, seconds in self.batches if size == self.batch_size]
        return statistics.median(full[1:] or full) if full else None

    def to_row(self) -> dict[str, Any]:
        latency = self.latency
        return {
            "eval_images_per_second": self.images / self.seconds if self.seconds else None,
            "eval_batch_milliseconds": None if latency is None else 1000 * latency,
            "eval_batch_size": self.batch_size,
        }

    def describe(self) -> str:
        text = f"{self.seconds:.1f} s"
        if self.seconds and self.latency is not None:
            text += (
                f", {self.images / self.seconds:.1f} images/s, "
                f"{1000 * self.latency:.1f} ms a batch of {self.batch_size} (median)"
            )
        return text
