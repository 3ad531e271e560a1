"""How long a run will take, before there is one: measured on this device, or reckoned for another.

Here, models of one and of three blocks are timed, and what was found is kept by device: a block
takes as long as any other. For a device that is elsewhere it is reckoned from what its maker
publishes: an estimate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import statistics
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitbase.accelerators import Peak
from vitbase.config.batch import BatchLayout
from vitbase.config.config import Config
from vitbase.data.augment import TrainTransform
from vitbase.data.threads import count_workers
from vitbase.errors import DeviceError
from vitbase.evaluation.classifier import on_device
from vitbase.files import cache_folder, json_line, read_json, write_whole
from vitbase.model.cost import count_flops, count_kept
from vitbase.model.packing import pack
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import allocate, build_unfilled
from vitbase.runtime import Runtime
from vitbase.sources.named import in_memory
from vitbase.sources.source import Source
from vitbase.training.estimate import Estimate, reading_seconds
from vitbase.training.objective import Objective
from vitbase.training.optim import step_unless
from vitbase.training.schedule import Schedule
from vitbase.training.step import Learner

_ENOUGH = 0.1
"""Seconds of one measurement: more images are taken until it is as long."""

_BUDGET = 1.0
"""Seconds after which no further round of measurements is begun."""

_ROUNDS = 5

_LASTS = 24 * 3600.0
"""Seconds for which a measurement is good; the machine may be less busy by then, or more."""

_EVALUATION_PASSES, _TRAINING_PASSES = 2.5, 18.0
"""How often what a forward pass keeps goes from or to memory, in half precision, beside products at
their peak. Fitted to timm's published tables (results/ of its repository): evaluation on RTX 3090
and 4090 with torch 2.4 and 2.9, training on RTX 3090 with torch 1.12; eager."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds of computing on a device.

    Attributes:
      training: of an image, forward and backward.
      update: of the optimizer's step, once an update.
      evaluating: of an image.
    """

    training: float
    update: float
    evaluating: float

    def towards(self, other: Pace, share: float) -> Pace:
        """Return what lies between this and another one, or beyond it: none is negative."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Pace(*(max(0.0, a + share * (b - a)) for a, b in zip(ours, theirs, strict=True)))

    def computing_again(self, share: float) -> Pace:
        """Return what it takes if a share of the blocks is computed twice forward.

        A backward pass takes twice what a forward pass does.
        """
        return dataclasses.replace(self, training=self.training * (1 + share / 3))


@dataclasses.dataclass(frozen=True)
class _Slices:
    """What was measured: the paces of a shallow and a deep model, each with its blocks."""

    shallow: tuple[int, Pace]
    deep: tuple[int, Pace]

    def tell_of(self, depth: int) -> bool:
        return self.shallow[0] != self.deep[0] or self.deep[0] == depth

    def at(self, depth: int) -> Pace:
        """Return the pace of a model of so many blocks."""
        (fewer, first), (more, last) = self.shallow, self.deep
        return first if fewer == more else first.towards(last, (depth - fewer) / (more - fewer))


def pace_at_peak(
    spec: ViTSpec,
    peak: Peak,
    parameters: int,
    copies: int,
    *,
    head_only: bool = False,
    recomputed: int = 0,
) -> Pace:
    """Reckon the pace of a device from its peaks: products at theirs, and all else from memory.

    Args:
      parameters: that are trained.
      copies: tensors that the optimizer keeps of each.
      recomputed: blocks that are computed again.
    """
    flops = count_flops(spec, head_only=head_only)
    kept = 2 * count_kept(spec).each / peak.bandwidth
    evaluating = flops.forward / peak.flops + _EVALUATION_PASSES * kept
    if head_only:
        training = evaluating + (flops.training - flops.forward) / peak.flops
    else:
        training = flops.training / peak.flops + _TRAINING_PASSES * kept
    # The gradient is read, weights and copies are read and written, in fp32.
    update = 4 * parameters * (3 + 2 * copies) / peak.bandwidth
    pace = Pace(training, update, evaluating)
    return pace.computing_again(recomputed / spec.depth)


def pace_here(config: Config, layout: BatchLayout, spec: ViTSpec, runtime: Runtime) -> Pace:
    """Return the pace of this device for a model, as it was found before, or is measured now.

    Args:
      config: complete. What compiles, shards and computes again is left out.
    Raises: DeviceError if its memory is too small.
    """
    plain = config.derive(
        **{"compile": False, "device_graph": False, "fp8": False, "parallel": "auto"},
        **{"num_devices": None, "activation_checkpointing": False, "memory_budget": None},
    )
    place = _place(plain, layout, spec, runtime)
    kept = None if place is None else _read(place)
    if place and kept and kept.tell_of(spec.depth) and time.time() - _written(place) < _LASTS:
        return kept.at(spec.depth)
    try:
        slices = _measure(plain, layout, spec, runtime)
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"{layout.batch_size} images at once do not fit into the memory of "
            f"{runtime.machine}: give a smaller --batch_size."
        ) from None
    if place is not None:
        _keep(place, slices)
    return slices.at(spec.depth)


class Images(NamedTuple):
    """How many images a run has."""

    training: int
    evaluation: int


def whole_run(
    config: Config,
    layout: BatchLayout,
    pace: Pace,
    steps_per_epoch: int,
    images: Images,
    reading: float = 0.0,
    runtime: Runtime | None = None,
) -> Estimate:
    """Return what a device takes for its share of a run, with its evaluations.

    Args:
      config: complete.
      reading: seconds to prepare an image, of all threads together.
      runtime: of the device, if it is here. Elsewhere images are prepared while it computes.
    """
    share = layout.batch_size * layout.accumulation_steps
    updates = config.schedule.total_steps or config.schedule.epoch_size * steps_per_epoch
    evaluations = math.ceil(updates / (steps_per_epoch * config.schedule.eval_every_epochs))
    trained, evaluated = updates * share, evaluations * images.evaluation
    if config.model.freeze_backbone and config.model.frozen_views:
        evaluated += images.training * config.model.frozen_views  # whose features are kept
        trained = 0
    return Estimate(
        pace.training + pace.update / share,
        pace.evaluating,
        reading,
        overlaps=runtime is None or runtime.device.type != "cpu",
        trained=trained,
        evaluated=evaluated / layout.num_ranks,
    )


def reading_pace(config: Config, source: Source | None) -> float:
    """Return the seconds that preparing a training image takes, of all threads together.

    Args:
      source: the images; None: a photograph of 500 x 375 pixels, of ImageNet's size in bytes.
    """
    source = source or in_memory([_photograph()])
    transform = TrainTransform(config.data.preprocess, config.augment)
    return reading_seconds(source, transform, count_workers(config.data.num_workers))


def _photograph() -> bytes:
    """Make a picture that takes as long to decode as a photograph of about 110 kB."""
    generator = np.random.default_rng(0)
    coarse: NDArray[np.uint8] = generator.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
    noisy = smooth + generator.normal(scale=8, size=smooth.shape)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _measure(config: Config, layout: BatchLayout, spec: ViTSpec, runtime: Runtime) -> _Slices:
    deepest = min(spec.depth, 3)
    depths = (1, deepest) if deepest > 2 else (spec.depth, spec.depth)
    works = {
        depth: _works(config, layout, spec.replace(depth=depth), runtime)
        for depth in sorted({*depths})
    }
    batches = (layout.batch_size, 1, config.data.eval_batch_size or layout.batch_size)
    counts = [
        _count_that_tells(work, most, runtime)
        for work, most in zip(works[depths[1]], batches, strict=True)
    ]
    found: dict[int, list[tuple[float, ...]]] = {depth: [] for depth in works}
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        for depth, kinds in works.items():
            times = (
                _timed(work, count, runtime) / count
                for work, count in zip(kinds, counts, strict=True)
            )
            found[depth].append(tuple(times))
        if time.perf_counter() - started > _BUDGET:
            break
    paces = _usual(found)
    shallow, deep = depths
    return _Slices((shallow, paces[shallow]), (deep, paces[deep]))


def _usual(found: dict[int, list[tuple[float, ...]]]) -> dict[int, Pace]:
    """Return the pace at each depth of what was timed in rounds.

    What else the machine does only makes a time longer. So the quickest of each tell them apart,
    and by how much they usually are exceeded, all of them tell: a run has its share of that, too.
    """
    least = {depth: [min(times) for times in zip(*found[depth], strict=True)] for depth in found}
    usual = statistics.median(
        time / quickest
        for depth, rounds in found.items()
        for times in rounds
        for time, quickest in zip(times, least[depth], strict=True)
    )
    return {depth: Pace(*(usual * time for time in times)) for depth, times in least.items()}


def _works(
    config: Config, layout: BatchLayout, spec: ViTSpec, runtime: Runtime
) -> tuple[Callable[[int], None], ...]:
    """Return what computes some images of a model forward and backward, updates, and evaluates."""
    model, evaluated = (_filled(spec).to(runtime.device) for _ in range(2))
    one = config.derive(class_weights="none")
    labels = np.zeros((0, spec.num_classes) if config.loss.loss == "sigmoid" else 0, np.int64)
    objective = Objective(one, labels, spec.num_classes, runtime.device)
    schedule = Schedule.of(config.optimizer.lr_init, config.schedule, 1)
    learner = Learner(model, one, runtime, layout, schedule, objective)
    if runtime.precision == "fp32":
        pack(evaluated)
    preprocess = config.data.preprocess
    on_images = on_device(evaluated.eval(), preprocess, runtime)

    def update(_: int) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        learner.replicas.clip(learner.clip_norm)
        step_unless(learner.optimizer, None)
        if learner.average is not None:
            learner.average.update(1, None)

    def evaluate(count: int) -> None:
        shape = (count, preprocess.height, preprocess.width, preprocess.channels)
        with torch.inference_mode():
            (images,) = runtime.send(torch.zeros(shape, dtype=torch.uint8))
            on_images(images).cpu()

    return learner.rehearse, update, evaluate


def _filled(spec: ViTSpec) -> VisionTransformer:
    model = build_unfilled(spec)
    allocate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return model


def _timed(work: Callable[[int], None], count: int, runtime: Runtime) -> float:
    started = time.perf_counter()
    work(count)
    runtime.wait()
    return time.perf_counter() - started


def _count_that_tells(work: Callable[[int], None], most: int, runtime: Runtime) -> int:
    """Return how many images, of at most a batch, take long enough to be timed."""
    if runtime.device.type != "cpu":
        _timed(work, most, runtime)  # which sets things up
        return most
    count = 1
    _timed(work, count, runtime)
    while count < most and min(_timed(work, count, runtime) for _ in range(2)) < _ENOUGH:
        count = min(4 * count, most)
    return count


def _place(config: Config, layout: BatchLayout, spec: ViTSpec, runtime: Runtime) -> Path | None:
    """Return the file that keeps what was measured of a model, whatever its depth; None: nowhere.

    It goes by all that computing depends on.
    """
    folder = cache_folder()
    if folder is None:
        return None
    facts = (
        *(runtime.machine, runtime.precision, torch.__version__, config.run.tf32),
        *(layout.batch_size, config.data.eval_batch_size, config.model.freeze_backbone),
        config.optimizer.model_dump_json(),
        spec.replace(name="", depth=1).model_dump_json(),
    )
    return folder / "pace" / f"{blake2b(repr(facts).encode(), digest_size=16).hexdigest()}.json"


def _keep(place: Path, slices: _Slices) -> None:
    content: dict[str, Any] = {
        name: {"depth": depth, **dataclasses.asdict(pace)}
        for name, (depth, pace) in (("shallow", slices.shallow), ("deep", slices.deep))
    }
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json_line(content, indent=1) + "\n")


def _written(place: Path) -> float:
    """Return when a file was written; long ago, if it is gone."""
    with contextlib.suppress(OSError):
        return place.stat().st_mtime
    return 0.0


def _read(place: Path) -> _Slices | None:
    """Return what was kept; None if there is nothing, or nothing that makes sense."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = read_json(place, longest=1 << 16)
        pairs = []
        for name in ("shallow", "deep"):
            depth = int(content[name].pop("depth"))
            pace = Pace(**{key: float(value) for key, value in content[name].items()})
            if depth < 1 or not all(0 <= value < 1e6 for value in dataclasses.astuple(pace)):
                return None
            pairs.append((depth, pace))
        return _Slices(*pairs)
    return None
