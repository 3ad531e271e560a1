"""How long a run will take on this device, measured before its first update."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from vitbase.config.config import Config
from vitbase.console import spoken_seconds
from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.data.order import sample_generator
from vitbase.errors import ConfigError, ImageError
from vitbase.model.cost import count_flops
from vitbase.model.spec import ViTSpec
from vitbase.sources.source import Source
from vitbase.training.frozen import Frozen
from vitbase.training.schedule import Place
from vitbase.training.step import Learner

_ENOUGH = 0.5
"""Seconds of computing that tell how long an image takes."""

_MOST_READ = 64
"""Images whose preparation is timed."""

_COLD = 3.0
"""Seconds above which a first pass, which sets things up, is not repeated."""

_LONG = 3600.0
"""Seconds of a run above which it is said what would make it shorter."""

_SMALLER = (224, 160, 112, 96)
"""Sides of images, in pixels, that are proposed instead of larger ones."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds that a rank takes for an image, and how many images it has still to see.

    Attributes:
      training, evaluating: seconds of computing for an image.
      reading: seconds to read and prepare one, of all threads together.
      overlaps: whether images are prepared while the device computes, which a CPU does not.
      trained, evaluated: images, of this rank, until the end of the run.
    """

    training: float
    evaluating: float
    reading: float
    overlaps: bool
    trained: float
    evaluated: float

    @property
    def seconds(self) -> float:
        return self.seconds_with(1.0)

    def seconds_with(self, factor: float) -> float:
        """Return how long the run takes if computing takes so many times as long."""
        training, evaluating = factor * self.training, factor * self.evaluating
        return self.trained * self.each(training) + self.evaluated * self.each(evaluating)

    def each(self, computing: float) -> float:
        """Return the seconds of an image whose computing takes so long."""
        if self.overlaps:
            return max(computing, self.reading)
        return computing + self.reading


def estimate_run(
    learner: Learner,
    loader: TrainLoader,
    num_val_images: int,
    config: Config,
    place: Place,
    frozen: Frozen | None,
) -> Estimate:
    """Measure a few images, which changes nothing of the run (collective).

    Args:
      num_val_images: that an evaluation has.
      place: where the run stands.
      frozen: the features that are to be computed first, if the backbone is frozen.
    """
    runtime, layout = learner.runtime, learner.layout
    ranks = runtime.num_ranks
    overlaps = runtime.device.type != "cpu"
    seconds = reading_seconds(loader.source, loader.transform, loader.num_workers, loader.seed)
    reading = max(runtime.all_gather(seconds))
    if frozen is not None:
        images = frozen.images_to_compute / ranks
        if not images:  # nothing else takes long: a head is small
            return Estimate(0.0, 0.0, 0.0, overlaps, 0.0, 0.0)
        evaluating = _seconds_an_image(frozen.rehearse, frozen.batch_size, learner, config)
        return Estimate(0.0, evaluating, reading, overlaps, 0.0, images)
    training = _seconds_an_image(learner.rehearse, layout.batch_size, learner, config)
    updates = place.total_steps - place.updates
    every = config.schedule.eval_every_epochs * place.steps_per_epoch
    evaluations = max(1, round(updates / every))
    return Estimate(
        training,
        # A backward pass takes twice what a forward pass does; that of a head, next to nothing.
        training if config.model.freeze_backbone else training / 3,
        reading,
        overlaps,
        updates * layout.global_batch / ranks,
        evaluations * num_val_images / ranks,
    )


def describe(estimate: Estimate, spec: ViTSpec, config: Config, place: Place) -> Iterable[str]:
    """Say what a run will take; of a long one also what would make it shorter."""
    seconds = estimate.seconds
    images = estimate.trained + estimate.evaluated
    if not images:
        yield "The features of all images are there from before; training the head takes seconds."
        return
    what = f"{images:,.0f} images at {images / seconds:,.3g} images/s, measured on a few of them"
    if estimate.trained:
        yield f"This will take about {spoken_seconds(seconds)} here: {what}."
    else:
        yield (
            f"Computing features will take about {spoken_seconds(seconds)} here: {what}. It is "
            f"done once; then training the head takes seconds."
        )
    if seconds < _LONG:
        return
    for side in _SMALLER:
        smaller = _with_side(spec, side)
        if smaller is None:
            continue
        head_only = config.model.freeze_backbone
        now, then = (count_flops(s, head_only=head_only).training for s in (spec, smaller))
        shorter = estimate.seconds_with(then / now)
        if shorter < _LONG / 2:
            yield (
                f"With --image_size {smaller.image_size[0]} it would take about "
                f"{spoken_seconds(shorter)}: {now / then:.3g} times less work an image."
            )
            break
    if config.starts_from_weights and not config.model.freeze_backbone:
        once = estimate.trained / place.epochs * estimate.each(estimate.evaluating)
        yield (
            f"With --freeze_backbone True, which trains the head alone on features computed once, "
            f"about {spoken_seconds(once)}."
        )


def _with_side(spec: ViTSpec, side: int) -> ViTSpec | None:
    """Return the architecture for square images of about a side; None if they are not smaller."""
    side = side // spec.patch_size * spec.patch_size
    if not side or side >= min(spec.image_size):
        return None
    try:
        return spec.replace(image_size=(side, side))
    except ConfigError:
        return None


def _seconds_an_image(
    work: Callable[[int], None], most: int, learner: Learner, config: Config
) -> float:
    """Time some work on more and more images, until it takes long enough to tell (collective).

    The quicker of two times counts: other programs only make one longer.
    """
    runtime = learner.runtime
    # A compiled model is compiled for the batch that it will have; an accelerator needs it whole.
    count = most if config.run.compile or runtime.device.type != "cpu" else 1

    def timed() -> float:
        started = time.perf_counter()
        work(count)
        runtime.wait()
        return max(runtime.all_gather(time.perf_counter() - started))

    seconds = timed()
    if seconds < _COLD or count == most:
        seconds = min(timed(), timed())
    while seconds < _ENOUGH and count < most:
        count = min(4 * count, most)
        seconds = min(timed(), timed())
    return seconds / count


def reading_seconds(
    source: Source, transform: TrainTransform | EvalTransform, num_workers: int, seed: int = 0
) -> float:
    """Time the preparation of a few images. Returns: seconds an image, with all threads at work."""
    preprocess = transform.preprocess
    row = np.empty((preprocess.height, preprocess.width, preprocess.channels), np.uint8)
    read = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the loader's threads
    started = time.perf_counter()
    try:
        for turn in range(_MOST_READ):
            index = turn * len(source) // _MOST_READ
            try:
                transform(source.read(index), sample_generator(seed, 0, index), row)
            except ImageError:
                continue
            read += 1
            if turn == 0:  # which has loaded and set up what the others use
                read, started = 0, time.perf_counter()
            if time.perf_counter() - started > _ENOUGH / 5:
                break
    finally:
        torch.set_num_threads(threads)
    return (time.perf_counter() - started) / max(read, 1) / num_workers
