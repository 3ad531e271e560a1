"""What a bench has found: a row for each way and size of batch, and which way is best."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitbase.shipping.exporting.proof import BOUNDS, Bound, Sums
from vitbase.shipping.running.ways import WAYS

_BF16 = Bound(math.inf, BOUNDS["int8"].agreement, BOUNDS["int8"].lost)


def bound_of(precision: str) -> Bound:
    """Return how far a way of some precision may be from the model."""
    return _BF16 if precision == "bf16" else BOUNDS[precision]  # type: ignore[index]


@dataclasses.dataclass
class Row:
    """A way, and what was measured of it.

    Attributes:
      name: of the way.
      sums: its logits beside those of `eager`.
      seconds: of each call, by size of batch, round after round.
      memory: bytes that its process had at most; tensors of an accelerator, where there is one.
      opening: seconds until it was ready, when what it runs was there already.
      making: seconds of making that; None: there is nothing to be made.
      failed: why it does not run.
    """

    name: str
    sums: Sums = dataclasses.field(default_factory=Sums)
    seconds: dict[int, list[list[float]]] = dataclasses.field(default_factory=dict)
    memory: int = 0
    opening: float = 0.0
    making: float | None = None
    failed: str | None = None

    @property
    def precision(self) -> str:
        return WAYS[self.name].precision

    def wrong(self) -> str | None:
        """Say how it is further from the model than it may be; None if it is not."""
        bound, sums = bound_of(self.precision), self.sums
        if not sums.finite:
            return "its logits are no numbers"
        if sums.relative > bound.difference:
            return f"its logits differ by {sums.relative:.2g} of their deviation"
        if self.is_told and sums.agreement < bound.agreement:
            return f"the same class for {sums.agreement:.2%} alone"
        if sums.labelled and sums.lost > bound.lost:
            return f"{sums.lost:.2%} of accuracy lost"
        return None

    is_told: bool = True
    """Whether the images were real, so that agreement tells something."""

    def speed(self, batch: int) -> float:
        """Images a second, the median of the rounds."""
        rates = [batch * len(calls) / sum(calls) for calls in self.seconds[batch]]
        return statistics.median(rates)

    def ratio(self, other: Row, batch: int) -> float:
        """Speed over another way's, the median of what it is within a round."""
        pairs = zip(self.seconds[batch], other.seconds[batch], strict=True)
        return statistics.median(
            statistics.fmean(theirs) / statistics.fmean(ours) for ours, theirs in pairs
        )

    def latency(self, batch: int, share: int) -> float:
        """Seconds within which so many percent of all calls ended."""
        calls = [seconds for part in self.seconds[batch] for seconds in part]
        return float(np.percentile(calls, share))


_HEADS = ("images/s", "of eager", "p50 ms", "p99 ms", "memory MB", "same class", "difference")


def _line(name: str, *cells: str) -> str:
    widths = (max(9, len(head)) for head in _HEADS)
    columns = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{name:<17}  {'  '.join(columns)}"


@dataclasses.dataclass(frozen=True)
class Bench:
    """All ways that were tried.

    Attributes:
      rows: those that ran, `eager` first.
      batches: sizes that were measured.
      left_out: why a way was not tried, or failed, by its name.
      machine: what computed.
      images: that answers were compared on, in words.
      are_real: whether these are of a data set.
      kept: whether `auto` finds this.
    """

    model: str
    weights: str
    rows: tuple[Row, ...]
    batches: tuple[int, ...]
    left_out: Mapping[str, str]
    machine: str
    images: str
    are_real: bool
    rounds: int
    kept: bool = False

    def fastest(self, batch: int, *, exact: bool) -> Row:
        """Return the fastest way that answers rightly; of full precision, if asked."""
        fitting = [
            row
            for row in self.rows
            if (WAYS[row.name].is_exact or not exact) and row.wrong() is None
        ]
        return max(fitting, key=lambda row: row.speed(batch))

    @property
    def best(self) -> dict[int, str]:
        """The name of the fastest way of full precision, for each size of batch."""
        return {batch: self.fastest(batch, exact=True).name for batch in self.batches}

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        yield f"{self.model} ({self.weights}) on {self.machine}; answers compared on {self.images}"
        for batch in self.batches:
            yield ""
            yield _line(f"batch {batch}", *_HEADS)
            for row in sorted(self.rows, key=lambda row: -row.speed(batch)):
                yield _line(row.name, *self._cells(row, batch)) + f"  {row.wrong() or ''}".rstrip()
        yield ""
        for batch in self.batches:
            yield from self._verdict(batch)
        for name, why in self.left_out.items():
            yield f"not tried: {name} {why}"
        if self.kept:
            yield "Kept: --runtime auto takes the fastest in full precision from here on."

    def _cells(self, row: Row, batch: int) -> Iterator[str]:
        yield f"{row.speed(batch):.2f}"
        yield f"{row.ratio(self.rows[0], batch):.2f}"
        yield from (f"{1000 * row.latency(batch, share):.1f}" for share in (50, 99))
        yield f"{row.memory / 1e6:,.0f}"
        yield f"{row.sums.agreement:.2%}" if self.are_real else "-"
        yield f"{row.sums.relative:.1g}"

    def _verdict(self, batch: int) -> Iterator[str]:
        eager, exact = self.rows[0], self.fastest(batch, exact=True)
        yield (
            f"batch {batch}: fastest in full precision is {exact.name}, {exact.speed(batch):.2f} "
            f"images/s, {exact.ratio(eager, batch):.2f} times eager"
        )
        any_one = self.fastest(batch, exact=False)
        if any_one is exact:
            return
        sums = any_one.sums
        loss = f"the same class for {sums.agreement:.2%}" if self.are_real else "no images to tell"
        if sums.labelled:
            loss += f", {100 * sums.lost:+.2f} points of accuracy lost".replace("+-", "-")
        yield (
            f"batch {batch}: fastest of all is {any_one.name} (--runtime {any_one.name}), "
            f"{any_one.speed(batch):.2f} images/s, {any_one.ratio(eager, batch):.2f} times eager: "
            f"{loss}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        eager = self.rows[0]
        return {
            "model": self.model,
            "weights": self.weights,
            "machine": self.machine,
            "images": self.images,
            "rounds": self.rounds,
            "best": {str(batch): name for batch, name in self.best.items()},
            "ways": [
                {
                    "way": row.name,
                    "precision": row.precision,
                    "batch": batch,
                    "images_per_second": row.speed(batch),
                    "ratio_to_eager": row.ratio(eager, batch),
                    "p50_ms": 1000 * row.latency(batch, 50),
                    "p99_ms": 1000 * row.latency(batch, 99),
                    "calls": sum(map(len, row.seconds[batch])),
                    "memory_bytes": row.memory,
                    "making_seconds": row.making,
                    "opening_seconds": row.opening,
                    "difference_in_deviations": row.sums.relative if row.sums.finite else None,
                    "top1_agreement": row.sums.agreement if self.are_real else None,
                    "top1_lost": row.sums.lost if row.sums.labelled else None,
                    "wrong": row.wrong(),
                }
                for row in self.rows
                for batch in self.batches
            ],
            "left_out": dict(self.left_out),
        }
