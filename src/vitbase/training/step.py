"""One update: forward and backward passes over the global batch, and the optimizer's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitbase.config.batch import BatchLayout
from vitbase.config.config import Config
from vitbase.data.loader import BadImage, Batch
from vitbase.data.mix import Mix
from vitbase.data.normalize import normalize
from vitbase.model.layers import draw_depth_scales
from vitbase.model.vit import VisionTransformer
from vitbase.runtime import Runtime
from vitbase.training.architecture import seed_generators
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.fp8 import multiply_in_fp8
from vitbase.training.inputs import build_inputs
from vitbase.training.lamb import Lamb
from vitbase.training.memory import Memory, training_memory
from vitbase.training.objective import Objective
from vitbase.training.optim import (
    build_optimizer,
    keep_numbers_on_device,
    set_learning_rate,
    step_unless,
)
from vitbase.training.parallel import (
    Replicas,
    checkpoint_activations,
    compile_blocks,
    freeze_backbone,
    will_shard,
)
from vitbase.training.recorded import Found, Given, RecordedUpdate
from vitbase.training.schedule import Schedule
from vitbase.training.state import Readers, RunState

_STEP_STREAM = 1  # first part of the key of torch's generators; 0 is initialisation's


@dataclasses.dataclass
class Taken:
    """An update that was taken: its learning rate, and what this rank has seen of it.

    Attributes:
      loss_sum: float64, on the device; over this rank's readable images.
      gradient_norm: of all ranks, before clipping; None where nobody needed it.
      passes: of each forward pass the images' positions [B], and whether their outputs are
        numbers [B], on the device.
      bad: images that could not be read.
      flags: on the device, the same on every rank: 1 if the update was not applied, since its loss
        or gradient is no number, else 0; and the loss scale that it had.
      seen: what each forward pass was given: the batch, as the host has it, and depth scales.
      mix: what was done to the images.
    """

    lr: float
    loss_sum: Tensor
    gradient_norm: Tensor | None = None
    passes: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    bad: list[BadImage] = dataclasses.field(default_factory=list)
    flags: Tensor | None = None
    seen: list[tuple[Batch, Tensor | None]] = dataclasses.field(default_factory=list)
    mix: Mix = dataclasses.field(default_factory=Mix)


class Learner:
    """A model and what changes it. Knows updates by their number, and nothing of logs or files.

    Args:
      model: on the device, the same on every rank.
      config: complete.
      layout: how the images of an update are dealt out.
      schedule: the learning rate of every update.
      objective: the loss.
      on_features: whether batches hold what the head reads, in place of images.
    """

    def __init__(
        self,
        model: VisionTransformer,
        config: Config,
        runtime: Runtime,
        layout: BatchLayout,
        schedule: Schedule,
        objective: Objective,
        *,
        on_features: bool = False,
    ) -> None:
        self.model, self.runtime, self.layout = model, runtime, layout
        self.schedule, self.objective = schedule, objective
        self.preprocess = config.data.preprocess
        self.seed, self.clip_norm = config.run.seed, config.optimizer.clip_norm
        if config.model.freeze_backbone:
            freeze_backbone(model)
        if config.run.fp8:
            multiply_in_fp8(model)
        self.memory = self._count_memory(config)
        checkpoint_activations(model, self.memory.recomputed)
        if config.run.compile:
            compile_blocks(model)
        self.inputs = build_inputs(self.preprocess, runtime, compiled=config.run.compile)
        self.on_features = on_features
        self.replicas = Replicas(model, runtime, config.run.parallel, head_only=on_features)
        self.optimizer = build_optimizer(model, config.optimizer, runtime)
        self.average: ExponentialMovingAverage | None = None
        if config.optimizer.ema_decay is not None:
            self.average = ExponentialMovingAverage(
                model,
                decay=config.optimizer.ema_decay,
                every_steps=config.optimizer.ema_every_steps,
            )
        self.state = RunState(model, self.optimizer, self.average, runtime)
        self.scaler = runtime.build_loss_scaler()
        self.recorded: RecordedUpdate | None = None
        if config.run.device_graph:
            keep_numbers_on_device(self.optimizer, runtime.device)
            self.recorded = RecordedUpdate(self._gradients, self._update_weights, runtime.device)

    def restore(
        self,
        read: Callable[[], Readers],
        origin: Path,
        loss_scaler: Mapping[str, Any] | None = None,
        weights: Callable[[], Readers] | None = None,
    ) -> None:
        """Put the state of a checkpoint back (collective).

        Args: as of :meth:`RunState.restore`; the state of the loss scaler, where there is one; what
          reads the checkpoint's weights, if the model has others.
        """
        if weights is not None:
            self.state.refill(weights)
        self.state.restore(read, origin)
        if self.recorded is not None:
            self.recorded.forget()
        if loss_scaler is not None:
            self.scaler.load_state_dict(dict(loss_scaler))

    def step(
        self,
        update: int,
        batches: Iterator[Batch],
        mix: Mix,
        *,
        measure: bool = False,
        settle: Callable[[], None] = lambda: None,
    ) -> Taken:
        """Take one update over the global batch (collective).

        Where loss or gradient are no numbers, nothing changes: neither weights nor what optimizer
        and average keep. The device sees to that; the host learns of it later, see `Taken.flags`.

        Args:
          update: its number, counted from 0: learning rate and randomness depend on it alone.
          batches: give this rank's micro-batches.
          mix: what is done to the images of this update.
          measure: whether the norm of the gradient is asked for.
          settle: called before anything changes, when the device has its gradients to compute: so
            the host can look at the update before without making the device wait.
        """
        set_learning_rate(self.optimizer, lr := self.schedule.at(update))
        seed_generators(self.seed, _STEP_STREAM, update)
        depth_scales = self._draw_depth_scales()
        if self.runtime.rank:  # dropout, unlike all else, is drawn by each rank for itself
            seed_generators(self.seed, _STEP_STREAM, update, self.runtime.rank)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.runtime.device)
        taken = Taken(lr, loss_sum, mix=mix)
        given = self._take_in(batches, depth_scales, taken)
        if self.recorded is None:
            found = self._gradients(given, mix)
        else:
            found = self.recorded.gradients(list(given), mix)
        for (batch, _), (loss, finite_B) in zip(taken.seen, found, strict=True):
            taken.loss_sum += loss
            taken.passes.append((batch.positions, finite_B))
            taken.bad += batch.bad
        settle()
        apply = self._update_weights if self.recorded is None else self.recorded.apply
        taken.gradient_norm, taken.flags, found_inf = apply()
        if self.average is not None:
            self.average.update(update + 1, self._flag(found_inf))
        return taken

    def _take_in(
        self, batches: Iterator[Batch], depth_scales: tuple[Tensor, ...] | None, taken: Taken
    ) -> Iterator[Given]:
        """Send micro-batch after micro-batch to the device, as they are asked for."""
        for micro in range(self.layout.accumulation_steps):
            batch, scales = next(batches), None if depth_scales is None else depth_scales[micro]
            taken.seen.append((batch, scales))
            images, labels = self.runtime.send(batch.images, batch.labels)
            yield images, labels, scales

    def _gradients(self, given: Iterable[Given], mix: Mix) -> list[Found]:
        """Compute the gradients of an update (collective). Returns: what each pass has found."""
        self.optimizer.zero_grad(set_to_none=True)
        share = self.replicas.loss_factor / self.layout.global_batch
        found = []
        with self.replicas.casting():
            for number, (images, labels, scales) in enumerate(given, 1):
                inputs = images if self.on_features else self.inputs(images, labels, mix)
                last = number == self.layout.accumulation_steps
                with self.replicas.accumulating(last=last):
                    with self.runtime.autocast():
                        logits = self.replicas(inputs, scales)
                        loss_sum = self.objective.loss_sum(logits, labels, mix)
                    # Of a loss that is no number, on any rank, every rank's gradient is none.
                    self.scaler.scale(loss_sum * (share + 0 * loss_sum.detach())).backward()
                finite_B = torch.isfinite(logits.detach()).all(dim=1)
                found.append((loss_sum.detach(), finite_B))
        return found

    def _update_weights(self) -> list[Tensor]:
        """Take the gradients to the weights (collective), where they are numbers.

        Returns: their norm, the flags as of :class:`Taken`, and the first of these alone.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self.replicas.clip(self.clip_norm)
        found_inf = (~torch.isfinite(norm)).float()
        flags = torch.stack([found_inf, self.scaler.scale(torch.ones_like(found_inf))])
        # Not by the scaler, which would look at the flag where an optimizer cannot.
        step_unless(self.optimizer, self._flag(found_inf))
        self.scaler.update()
        return [norm, flags, found_inf]

    def _flag(self, found_inf: Tensor) -> Tensor | None:
        """Return a flag to be looked at by the device, or None if it is known to be 0."""
        # Where the host computes itself it knows the flag, and need not hand it on to be asked for.
        reads = self.runtime.reads_at_once and self.recorded is None
        return None if reads and not found_inf else found_inf

    def take_back(self) -> None:
        """Correct what the host has counted for the last update, which was not applied."""
        if isinstance(self.optimizer, Lamb):
            self.optimizer.take_back()

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rate of every update from here on, before the first one."""
        for group in self.optimizer.param_groups:
            group["lr_scale"] *= factor

    def rehearse(self, count: int) -> None:
        """Pass blank images forward and backward, to see how long it takes (collective).

        Changes nothing: gradients are dropped.
        """
        preprocess = self.preprocess
        shape = (count, preprocess.height, preprocess.width, preprocess.channels)
        (images,) = self.runtime.send(torch.zeros(shape, dtype=torch.uint8))
        self.model.train()
        # Shards would keep a gradient that is not exchanged; copies would exchange it in vain.
        with self.replicas.casting(), self.replicas.accumulating(last=self.replicas.sharded):
            with self.runtime.autocast():
                loss = self.replicas(normalize(images, preprocess), None).float().mean()
            loss.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _count_memory(self, config: Config) -> Memory:
        """Count the memory of the run; what all ranks compute again is what the fullest has to."""
        numbers = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        parameters = sum(number for number, _ in numbers)
        free = self.runtime.free_memory() if config.model.memory_budget == 0 else None
        ranks = self.runtime.num_ranks
        memory = self.runtime.everywhere(
            lambda: training_memory(
                config,
                self.model.spec,
                parameters=parameters,
                trainable=sum(number for number, learns in numbers if learns),
                batch_size=self.layout.batch_size,
                half=self.runtime.half is not None,
                shards=ranks if will_shard(config.run.parallel, parameters, ranks) else 1,
                free=None if free is None else free + 4 * parameters,  # which are there already
            )
        )
        return max(self.runtime.all_gather(memory), key=lambda found: found.recomputed)

    def _draw_depth_scales(self) -> tuple[Tensor, ...] | None:
        """Draw stochastic depth for the global batch, and cut out this rank's micro-batches."""
        spec, layout = self.model.spec, self.layout
        if spec.stochastic_depth == 0:
            return None
        scales_L2B = draw_depth_scales(
            spec.stochastic_depth,
            spec.depth,
            layout.global_batch,
            rule=spec.stochastic_depth_rule,
            device=self.runtime.device,
        )
        first = self.runtime.rank * layout.accumulation_steps
        parts = torch.split(scales_L2B, layout.batch_size, dim=2)
        return parts[first : first + layout.accumulation_steps]
