"""What a run would do, in numbers, without its data and without running it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import nn

from vitbase.accelerators import Peak, find_accelerator
from vitbase.config.batch import BatchLayout
from vitbase.config.complete import Facts, complete
from vitbase.config.config import Config
from vitbase.config.options import EMBEDDED
from vitbase.console import spoken_seconds
from vitbase.errors import ConfigError, DeviceError
from vitbase.model.cost import count_flops, count_kept
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import build_unfilled
from vitbase.runtime import local_runtime
from vitbase.sources.open import TrainVal, open_train_val
from vitbase.sources.shards.raw import bytes_in_shard
from vitbase.training.architecture import load_for_training, preprocess_of_weights, spec_of
from vitbase.training.estimate import Estimate
from vitbase.training.forecast import Images, pace_at_peak, pace_here, reading_pace, whole_run
from vitbase.training.memory import copies_kept, training_memory
from vitbase.training.optim import decay_groups
from vitbase.training.parallel import freeze_backbone, will_shard
from vitbase.training.schedule import Schedule

_MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class Fact:
    """A number, and where it comes from."""

    name: str
    value: str
    source: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a run would do. FLOPs count a multiply-add as two; sizes are bytes.

    Attributes:
      config: complete, as the run would have it.
      notes: what of a recipe was fitted to the number of images.
      estimate: of the time, where it was asked for.
    """

    config: Config
    steps_per_epoch: int
    total_steps: int
    global_batch: int
    parameters: int
    peak_lr: float
    forward_flops: int
    training_flops: int
    weights_bytes: int
    activation_bytes_per_image: int
    learning_rates: tuple[tuple[int, float], ...]
    decayed: tuple[str, ...]
    kept: tuple[str, ...]
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    estimate: Estimate | None = None


HERE = "here"
"""The device that a run would have in this place."""


def explain(config: Config, *, on: str | None = None) -> Explanation:
    """Compute what a run would do. The data need not be there if the recipe tells its size.

    Args:
      on: how long it takes on which device: "here", where a few images are timed unless that was
        done before; or the name of an accelerator, whose published peaks give an estimate. None
        asks for no time.
    Raises: ConfigError if the number of training images, or the accelerator, is not known.
    """
    elsewhere = None if on in {None, HERE} else find_accelerator(str(on))
    asked = config
    # Weights that need not tell the architecture need not be there.
    tell = config.model.checkpoint_path is not None and config.model.model is None
    weights = preprocess_of_weights(config) if tell else None
    devices = config.run.num_devices or 1
    num_images, num_classes, images_source, data = _find_images(config)
    facts_of_data = Facts(weights, num_train_images=num_images, num_classes=num_classes)
    completed = complete(config, facts_of_data, devices)
    config, layout, rate = completed.config, completed.layout, completed.rate
    global_batch = layout.global_batch
    steps = num_images // global_batch
    if steps == 0:
        raise ConfigError(
            f"{num_images} training images are fewer than one global batch of {global_batch}. "
            f"Give a smaller --batch_size."
        )
    spec, spec_source = _find_spec(config)
    model = build_unfilled(spec)
    head_only = config.model.freeze_backbone
    if head_only:
        freeze_backbone(model)
    flops = count_flops(spec, head_only=head_only)
    forward, training = flops.forward, flops.training
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    groups = decay_groups(model, config.optimizer.decay_on)
    schedule = Schedule.of(rate.lr, config.schedule, steps)
    rates = tuple((step, schedule.at(step)) for step in _milestones(schedule))
    kept = copies_kept(config)
    sharded = will_shard(config.run.parallel, parameters, devices)
    half = _precision(config, elsewhere) != "fp32"
    memory = training_memory(
        config,
        spec,
        parameters=parameters,
        trainable=trainable,
        batch_size=layout.batch_size,
        half=half,
        shards=devices if sharded else 1,
        free=_free_memory(config) if config.model.memory_budget == 0 and not elsewhere else None,
    )
    activation_bytes = count_kept(spec, head_only=head_only, recomputed=memory.recomputed).bytes_of(
        1, half=half
    )
    beside = parameters if config.checkpoint.checkpoint_format == "mindspore" else 0
    copied = 4 * (parameters + trainable * kept + beside)
    facts: tuple[Fact, ...] = (
        Fact("model", f"{spec.name}, {_size(spec)} px", spec_source),
        Fact("training images", f"{num_images:,}", images_source),
        _as_pixels(config, num_images),
        Fact(
            "effective batch",
            f"{global_batch}",
            "global_batch" if asked.data.global_batch == global_batch else layout.describe(),
        ),
        Fact("steps per epoch", f"{steps}", f"floor({num_images} / {global_batch})"),
        Fact(
            "total steps",
            f"{schedule.total_steps:,}",
            f"{steps} x epoch_size {config.schedule.epoch_size}"
            if config.schedule.total_steps is None
            else "total_steps",
        ),
        Fact("peak learning rate", f"{rate.lr:g}", rate.rule),
        Fact("parameters", f"{parameters:,}", "counted on the built model"),
        Fact(
            "forward, per image",
            f"{_flops(forward)}",
            "as torch's FLOP counter; a multiply-add is two",
        ),
        Fact(
            "training, per image",
            f"{_flops(training)}",
            "the same counter over forward and backward pass",
        ),
        _whole_run(config, forward, training, global_batch * schedule.total_steps, num_images),
        Fact(
            "decayed parameters",
            f"{_count(model, groups.decayed):,} in {len(groups.decayed)} tensors",
            f"weight_decay {config.optimizer.weight_decay:g} on {config.optimizer.decay_on}",
        ),
        Fact(
            "not decayed",
            f"{_count(model, groups.kept):,} in {len(groups.kept)} tensors",
            f"decay_on {config.optimizer.decay_on}",
        ),
        Fact(
            "weights and optimizer",
            f"{memory.state / _MEBI:,.0f} MiB",
            f"fp32: weights, gradients, {kept} more for {config.optimizer.optimizer}"
            + (" and the average" if config.optimizer.ema_decay is not None else "")
            + (f"; a {devices}th of it" if sharded else "")
            + ("; and weights in half precision" if half and not sharded else ""),
        ),
        Fact(
            "a checkpoint",
            f"{copied / _MEBI:,.0f} MiB",
            "on disk, and once in host memory while it is written",
        ),
        Fact(
            "activations, per image",
            f"{activation_bytes / _MEBI:,.1f} MiB",
            "what autograd keeps, "
            + ("2 bytes a value, 4 between blocks" if half else "4 bytes a value")
            + (
                f"; {memory.recomputed} of {spec.depth} blocks computed again"
                if memory.recomputed
                else ""
            ),
        ),
        Fact(
            "memory estimate",
            f"{memory.total / _MEBI:,.0f} MiB",
            f"the two above, {layout.batch_size} images a forward pass; without workspace",
        ),
    )
    images = Images(num_images, len(data.val) if data else config.data.num_val_images or 0)
    estimate = None
    if elsewhere is not None:
        pace = pace_at_peak(
            spec, elsewhere[1], trainable, kept, head_only=head_only, recomputed=memory.recomputed
        )
        estimate = whole_run(config, layout, pace, steps, images)
        source = f"an ESTIMATE, by the published peaks of {_named(elsewhere)}"
    elif on == HERE and config.run.engine == "torch":
        try:
            estimate, source = _measured(
                config, layout, spec, steps, images, data, memory.recomputed
            )
        except DeviceError as error:  # explained on another machine than it will run on
            facts += (Fact("time of the run", "not told", f"{error} Or give --on DEVICE."),)
    if estimate is not None:
        facts += _times(estimate, layout, source)
    return Explanation(
        config=config,
        steps_per_epoch=steps,
        total_steps=schedule.total_steps,
        global_batch=global_batch,
        parameters=parameters,
        peak_lr=rate.lr,
        forward_flops=forward,
        training_flops=training,
        weights_bytes=4 * parameters,
        activation_bytes_per_image=activation_bytes,
        learning_rates=rates,
        decayed=groups.decayed,
        kept=groups.kept,
        facts=facts,
        notes=completed.notes,
        estimate=estimate,
    )


def _measured(
    config: Config,
    layout: BatchLayout,
    spec: ViTSpec,
    steps: int,
    images: Images,
    data: TrainVal | None,
    recomputed: int,
) -> tuple[Estimate, str]:
    """Return how long the run takes here, and who says so. Raises: DeviceError."""
    run = config.run
    runtime = local_runtime(run.device_target, run.device_id, run.precision, tf32=run.tf32)
    pace = pace_here(config, layout, spec, runtime).computing_again(recomputed / spec.depth)
    if data is None and config.data.data_path == EMBEDDED:
        data = open_train_val(config)
        images = Images(images.training, len(data.val))
    reading = reading_pace(config, data.train if data else None)
    source = f"measured: {runtime.machine}, {runtime.precision}"
    source += "" if data else "; input as of photographs of 110 kB"
    return whole_run(config, layout, pace, steps, images, reading, runtime), source


def _named(accelerator: tuple[str, Peak]) -> str:
    name, peak = accelerator
    return (
        f"{name} in half precision: {peak.flops / 1e12:g} TFLOPS, {peak.bandwidth / 1e12:g} TB/s; "
        f"input keeps up"
    )


def _times(estimate: Estimate, layout: BatchLayout, source: str) -> tuple[Fact, ...]:
    share = layout.batch_size * layout.accumulation_steps
    training = estimate.each(estimate.training)
    ranks = layout.num_ranks
    several = f"; of {ranks} alike, without what they exchange" if ranks > 1 else ""
    return (
        Fact("time of an update", _seconds(share * training), source),
        Fact("training speed", f"{_figure(ranks / training)} images/s", f"the same{several}"),
        Fact(
            "evaluation speed",
            f"{_figure(ranks / estimate.each(estimate.evaluating))} images/s",
            f"the same{several}",
        ),
        Fact(
            "time of the run",
            f"about {spoken_seconds(estimate.seconds)}",
            f"{ranks * estimate.trained:,.0f} images trained on, "
            f"{ranks * estimate.evaluated:,.0f} evaluated",
        ),
    )


def _figure(value: float) -> str:
    """Return a number with three digits, as a person writes it: 21,600 or 0.381."""
    return f"{float(f'{value:.3g}'):,g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _as_pixels(config: Config, num_images: int) -> Fact:
    """Return the bytes of the training images as decoded pixels, at the size that is resized to."""
    height, width = config.data.image_size or (224, 224)
    # As evaluation resizes; without a ratio of one's own, by the usual 0.875: 256 for 224.
    side = math.floor(min(height, width) / (config.data.crop_ratio or 0.875) + 1e-6)
    longer = round(4 / 3 * side)
    total = num_images * bytes_in_shard(side, longer, config.data.image_channels or 3)
    return Fact(
        "as decoded pixels",
        f"{total / _MEBI:,.0f} MiB",
        f"`vitbase data pack --raw {side}`, where all are photographs of 4:3",
    )


def _whole_run(config: Config, forward: int, training: int, trained: int, num_images: int) -> Fact:
    """Return the FLOPs of a run: of images that it trains on, or of features computed once."""
    views = config.model.freeze_backbone and config.model.frozen_views
    if not views:
        source = "training x effective batch x total steps"
        return Fact("whole run", f"{training * trained:.3g} FLOPs", source)
    flops = forward * num_images * views + (training - forward) * trained
    return Fact(
        "whole run",
        f"{flops:.3g} FLOPs",
        f"forward x images x frozen_views {views}, once, and the head's training",
    )


def _precision(config: Config, elsewhere: tuple[str, Peak] | None) -> str:
    """Return the precision of the run, as far as this machine can tell."""
    if config.run.precision != "auto":
        return config.run.precision
    if elsewhere is not None:
        return "bf16"  # as accelerators do; the time is of half precision, too
    try:
        return local_runtime(config.run.device_target, config.run.device_id).precision
    except DeviceError:  # explained on another machine than it will run on
        return "fp32"


def _free_memory(config: Config) -> int | None:
    """Return the bytes that are free on the device of the run, if it is here."""
    try:
        return local_runtime(config.run.device_target, config.run.device_id).free_memory()
    except DeviceError:
        return None


def _find_images(config: Config) -> tuple[int, int | None, str, TrainVal | None]:
    """Return how many training images there are, of how many classes, who says so, and them."""
    path, number, origin = config.data.data_path, config.data.num_train_images, config.origin
    recipe = (origin.base if origin else config).data
    is_here = path is not None and (path == EMBEDDED or Path(path).exists())
    if is_here and (number is None or path != recipe.data_path):
        data = open_train_val(config)
        train = data.train
        source = f"counted in {path}" if number is None else "num_train_images"
        return number or len(train), len(train.class_names), source, data
    if number is not None:
        return number, recipe.num_classes, "num_train_images", None
    if recipe.num_train_images is not None:
        source = f"those of the recipe, as {path} is not here"
        return recipe.num_train_images, recipe.num_classes, source, None
    raise ConfigError(
        "How many training images there are is not known: this recipe does not say, and "
        f"data_path is {'not given' if path is None else f'{path}, which is not there'}. "
        "Give --data_path, or --num_train_images."
    )


def _find_spec(config: Config) -> tuple[ViTSpec, str]:
    if config.starts_from_weights and config.model.checkpoint_path and config.model.model is None:
        loaded = load_for_training(config, None)
        return loaded.spec, f"read off {loaded.path}"
    origin = "the zoo" if config.model.model else "the zoo; small, as no weights are given"
    return spec_of(config), origin


def _milestones(schedule: Schedule) -> list[int]:
    """Steps worth a line: start, end of warm-up, quarters, last."""
    last = schedule.total_steps - 1
    quarters = [round(last * part / 4) for part in range(5)]
    return sorted({*quarters, max(schedule.warmup_steps - 1, 0)})


def _count(model: nn.Module, names: tuple[str, ...]) -> int:
    parameters: dict[str, Any] = dict(model.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _size(spec: ViTSpec) -> str:
    return f"{spec.image_size[0]}x{spec.image_size[1]}x{spec.in_channels}"


def _flops(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOPs ({flops / 2e9:.3g} GMACs)"
