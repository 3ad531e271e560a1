"""Batches of uint8 pixels, in the order that order.py says, prepared by threads.

Threads rather than processes: decoding and resizing release the interpreter's lock, and nothing is
copied between processes. A batch is cut into tasks that write into its rows, so all threads work
on the batch that is needed next. Which thread does what changes no number. Where the lock is the
limit, each thread can have a process that works for it (processes.py).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.balance import balanced_order
from vitbase.data.memory import batch_memory
from vitbase.data.order import (
    epoch_permutation,
    micro_batches,
    repeat_places,
    sample_generator,
    steps_per_epoch,
)
from vitbase.data.processes import Helpers
from vitbase.data.tasks import Generators, Task, fill
from vitbase.data.threads import one_core_threads
from vitbase.errors import DataError
from vitbase.runtime import available_cores
from vitbase.sources.source import Source

IGNORED_LABEL = -100
"""The label of an image that could not be read in training; the loss passes over it."""

_SMALL = 64
"""Rows of an image that takes microseconds, if it is decoded."""
_NAMED = 3
"""Images of a batch that are named to say which batch it is."""


class BadImage(NamedTuple):
    """An image that could not be read: where it is, and why."""

    place: str
    cause: str


@dataclass(frozen=True)
class Batch:
    """Some images and what is known of them. A bad image's pixels are all zero."""

    images: torch.Tensor  # uint8 [B, H, W, C]
    labels: torch.Tensor  # int64 [B]
    positions: torch.Tensor  # int64 [B]: places in the epoch; in evaluation, indices
    readable: torch.Tensor  # bool [B]
    step: int  # within the epoch
    bad: tuple[BadImage, ...] = ()


class Job(NamedTuple):
    """A batch to be made: positions in the epoch, and the samples that stand there."""

    step: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


class _Workers:
    """What both loaders share: a source, a transform, and threads that apply it."""

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | EvalTransform,
        num_workers: int | None,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self.source = source
        self.transform = transform
        self.num_workers = num_workers or available_cores()
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.helpers: Helpers | None = None
        self.seconds_waited = 0.0
        """Time the consumer has spent waiting for batches, in the pass under way."""

    def _batches(
        self, jobs: Iterator[Job], generators: Generators | None
    ) -> Generator[Batch, None, None]:
        """Yield a batch per job, in order, with a bounded number of them under way."""
        self.seconds_waited = 0.0
        under_way: deque[Pending] = deque()
        pool = one_core_threads(self.num_workers)
        try:
            if self.helpers is not None:
                self.helpers.greet()
            while True:
                while len(under_way) <= self.prefetch and (job := next(jobs, None)) is not None:
                    under_way.append(self._begin(job, generators, pool))
                if not under_way:
                    return
                before = time.perf_counter()
                batch = under_way.popleft().wait()
                self.seconds_waited += time.perf_counter() - before
                yield batch
        finally:
            # Also on break, on an error, and on Ctrl-C: tasks not begun are dropped.
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the processes that work for it, if there are any."""
        if self.helpers is not None:
            self.helpers.close()

    def _begin(self, job: Job, generators: Generators | None, pool: ThreadPoolExecutor) -> Pending:
        return Pending(self, job, generators, pool)


class Pending:
    """A batch under way: its memory, and the tasks that fill it."""

    def __init__(
        self,
        workers: _Workers,
        job: Job,
        generators: Generators | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.workers, self.job, self.generators = workers, job, generators
        preprocess = workers.transform.preprocess
        count = len(job.indices)
        height = workers.transform.height
        shape = (count, height, preprocess.width, preprocess.channels)
        if workers.pin_memory:  # torch itself uses page-locked memory again
            self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            self.images = batch_memory.take(shape, torch.uint8)
        self.rows: NDArray[np.uint8] = self.images.numpy()
        chunk = _chunk_size(workers, count)
        self.tasks: list[Future[list[tuple[int, BadImage]]]] = [
            pool.submit(self._fill, range(first, min(first + chunk, count)))
            for first in range(0, count, chunk)
        ]

    def _fill(self, rows: range) -> list[tuple[int, BadImage]]:
        """Prepare some rows of the batch; return those that could not be."""
        source, helpers = self.workers.source, self.workers.helpers
        first, last = rows.start, rows.stop
        indices = self.job.indices[first:last].tolist()
        task = Task(indices, self.job.positions[first:last].tolist(), self.generators)
        part = self.rows[first:last]
        if helpers is not None:
            found = helpers.fill(task, part)
        else:
            found = fill(
                task, source, part, lambda raw, gen, at: self._prepare(raw, gen, first + at)
            )
        return [(first + row, BadImage(source.describe(indices[row]), why)) for row, why in found]

    def _prepare(
        self, raw: bytes | NDArray[np.uint8], generator: np.random.Generator | None, row: int
    ) -> None:
        self.workers.transform(raw, generator, self.rows[row])

    def wait(self) -> Batch:
        """Return the batch when it is complete. Raises: what a task raised."""
        bad = [found for task in self.tasks for found in task.result()]
        labels = torch.from_numpy(self.workers.source.labels[self.job.indices])
        readable = torch.ones(len(labels), dtype=torch.bool)
        readable[[row for row, _ in bad]] = False
        if self.generators is not None:  # training
            labels[~readable] = IGNORED_LABEL
        if self.workers.pin_memory:
            labels = labels.pin_memory()
        return Batch(
            images=self.images,
            labels=labels,
            positions=torch.from_numpy(self.job.positions),
            readable=readable,
            step=self.job.step,
            bad=tuple(image for _, image in bad),
        )


class TrainLoader(_Workers):
    """The training images of any epoch, from any step on.

    Args:
      source: the images.
      transform: what happens to each.
      seed: of the run; with epoch and position it decides order and augmentation.
      batch_size: images per batch.
      accumulation_steps: batches per step.
      num_workers: threads; None: one per usable core.
      processes: whether each thread has a process that works for it.
      prefetch: batches prepared ahead of the one in use.
      max_bad_images: unreadable images tolerated in one epoch. More than none are counted by who
        knows those of all ranks.
      repeats: copies of an image, each augmented otherwise, that an epoch has in turn.
      balanced: whether every class comes equally often.
      pin_memory: whether batches lie in page-locked memory, for a device to fetch.
      rank: of this process among `num_ranks`, from 0: it gets its share of every step.
      num_ranks: processes that train together; a step has the batches of all.
    Raises: DataError if there are fewer images than one global batch.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform,
        *,
        seed: int,
        batch_size: int,
        accumulation_steps: int = 1,
        num_workers: int | None = None,
        processes: bool = False,
        prefetch: int = 3,
        max_bad_images: int = 10,
        repeats: int = 1,
        balanced: bool = False,
        pin_memory: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        super().__init__(source, transform, num_workers, prefetch, pin_memory)
        self.seed = seed
        self.global_batch = batch_size * accumulation_steps * num_ranks
        self.share = slice(rank * accumulation_steps, (rank + 1) * accumulation_steps)
        self.batch_size = batch_size
        self.max_bad_images = max_bad_images
        self.repeats = repeats
        self.balanced = balanced
        self.steps_per_epoch = steps_per_epoch(len(source), self.global_batch)
        if balanced and source.labels.ndim == 2:
            raise DataError(
                "The images have several labels each, so classes cannot come equally often: leave "
                "out --sampling, or give --class_weights balanced."
            )
        if self.steps_per_epoch == 0:
            raise DataError(
                f"There are {len(source)} training images, fewer than one global batch of "
                f"{self.global_batch}. Give a smaller --batch_size (or --global_batch)."
            )
        if processes:
            most = _chunk_size(self, batch_size)
            self.helpers = Helpers(source, transform, count=self.num_workers, most=most)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch: ``accumulation_steps`` for each step, in order.

        Args:
          epoch: counted from 0.
          start_step: the first step to yield; the batches are those of a whole epoch.
        Raises: DataError naming an image that could not be read, where none may be.
        """
        for batch in self._batches_of(epoch, start_step):
            if batch.bad and self.max_bad_images == 0:
                place, cause = batch.bad[-1]
                raise DataError(
                    f"{place}: {cause}. Mend or remove it, or give --on_bad_image skip to "
                    f"leave out up to --max_bad_images of them."
                )
            yield batch

    def _batches_of(self, epoch: int, start_step: int) -> Iterator[Batch]:
        return self._batches(self._jobs(epoch, start_step), self._generators(epoch))

    def describe_bottleneck(self, images: int, seconds: float) -> str | None:
        """Say in plain words that training waits for its images, if it does.

        Args:
          images: trained on in the pass under way.
          seconds: that it took so far.
        Returns: what the input delivers, what the model could take, and what would help; None if
          waiting takes less than a tenth of the time.
        """
        waited = self.seconds_waited
        if images == 0 or waited < 0.1 * seconds:
            return None
        cores = available_cores()
        spare = self.num_workers < cores
        help_ = f"--num_workers {cores}, one for each core" if spare else "more cores"
        if self.helpers is None and self.num_workers > 2:
            help_ += ", --worker_processes True, where threads wait for the interpreter's lock"
        if not self.source.decoded:
            help_ += ", or images packed decoded (vitbase data pack --raw) or small (--short_side)"
        return (
            f"Waiting for images takes {waited / seconds:.0%} of the time: {self.num_workers} "
            f"workers deliver {images / seconds:.0f} images/s, the model could take "
            f"{images / max(seconds - waited, 1e-9):.0f}. What would help: {help_}."
        )

    def describe_position(self, epoch: int, position: int) -> str:
        """Name the image that stands at a position of an epoch."""
        return self.describe_positions(epoch, [position])[0]

    def describe_positions(self, epoch: int, positions: Sequence[int]) -> list[str]:
        """Name the images that stand at some positions of an epoch."""
        indices = self._order(epoch)[positions].tolist() if positions else []
        return [self.source.describe(index) for index in indices]

    def describe_step(self, epoch: int, step: int) -> str:
        """Say which images this rank has in a step of an epoch: positions, and the first names."""
        places = micro_batches(step, self.global_batch, self.batch_size)[self.share]
        first, last = places[0].start, places[-1].stop - 1
        order = self._order(epoch)[first : last + 1]
        names = [self.source.describe(int(index)) for index in order[:_NAMED]]
        more = ", …" if len(order) > _NAMED else ""
        return f"positions {first} to {last} of epoch {epoch + 1}: {', '.join(names)}{more}"

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return which sample stands at each position of an epoch."""
        if self.balanced:
            permutation = balanced_order(self.seed, epoch, self.source.labels, len(self.source))
        else:
            permutation = epoch_permutation(self.seed, epoch, len(self.source))
        return permutation[repeat_places(np.arange(len(self.source)), self.repeats)]

    def _generators(self, epoch: int) -> Generators:
        return partial(sample_generator, self.seed, epoch)

    def _jobs(self, epoch: int, start_step: int) -> Iterator[Job]:
        order = self._order(epoch)
        for step in range(start_step, self.steps_per_epoch):
            for places in micro_batches(step, self.global_batch, self.batch_size)[self.share]:
                positions = np.arange(places.start, places.stop, dtype=np.int64)
                yield Job(step, positions, order[positions])


class EvalLoader(_Workers):
    """Every image once, in the source's order; the last batch holds what is left.

    A bad image keeps its label: whoever counts must count it as wrong. Of several ranks each has
    an even, contiguous share.

    Args: as of :class:`TrainLoader`; random numbers for each index, if the transform draws some.
    """

    def __init__(
        self,
        source: Source,
        transform: EvalTransform | TrainTransform,
        *,
        batch_size: int,
        num_workers: int | None = None,
        prefetch: int = 3,
        pin_memory: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
        generators: Generators | None = None,
    ) -> None:
        super().__init__(source, transform, num_workers, prefetch, pin_memory)
        self.batch_size = batch_size
        self.generators = generators
        images = len(source)
        self.share = range(rank * images // num_ranks, (rank + 1) * images // num_ranks)
        self.most_batches = math.ceil(math.ceil(images / num_ranks) / batch_size)
        """Batches of the rank that has most of them."""

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._batches(self._jobs(), self.generators)

    def _jobs(self) -> Iterator[Job]:
        for step in range(len(self)):
            first = self.share.start + step * self.batch_size
            places = np.arange(first, min(first + self.batch_size, self.share.stop))
            yield Job(step, places, places)


def _chunk_size(workers: _Workers, count: int) -> int:
    """Return how many images a task prepares: a few tasks per thread and batch.

    A small decoded image takes microseconds, less than its share of a small task would cost.
    """
    if workers.source.decoded and workers.transform.height <= _SMALL:
        return 64
    return max(1, min(16, count // (4 * workers.num_workers)))
