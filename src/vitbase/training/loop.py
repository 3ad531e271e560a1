"""The training loop: updates, log lines, evaluations and checkpoints, from any update on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitbase.config.batch import BatchLayout, PeakRate
from vitbase.config.config import Config
from vitbase.data.augment import normalize
from vitbase.data.loader import Batch, TrainLoader
from vitbase.errors import DataError
from vitbase.evaluation.run import Sums, evaluate_model
from vitbase.model.cost import count_flops
from vitbase.model.layers import draw_depth_scales
from vitbase.model.vit import VisionTransformer
from vitbase.runs.checkpoints import STATE_FILE, WEIGHTS_FILE, Checkpoint, checkpoint_name
from vitbase.runs.folder import Best, Progress, RunFolder
from vitbase.runs.journal import Journal
from vitbase.runs.result import TrainResult, result_of, say_result
from vitbase.runtime import Runtime, seed_generators
from vitbase.sources.open import TrainVal
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.guard import Guard
from vitbase.training.objective import Objective
from vitbase.training.optim import build_optimizer, set_learning_rate
from vitbase.training.parallel import (
    Replicas,
    checkpoint_activations,
    compile_blocks,
    freeze_backbone,
)
from vitbase.training.schedule import Schedule
from vitbase.training.state import RunState, stored_tensors
from vitbase.weights.files.safetensors import write_safetensors
from vitbase.weights.save import save_weights

_STEP_STREAM = 1  # first part of the key of torch's generators; 0 is initialisation's


@dataclasses.dataclass
class _Window:
    """Sums since the last log line. Tensors stay on the device until they are read."""

    loss_sum: torch.Tensor
    images: int = 0
    unreadable: int = 0
    waited: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)


class TrainingLoop:
    """One rank's share of a run, from its start or resumption to its end."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        folder: RunFolder,
        data: TrainVal,
        model: VisionTransformer,
        loader: TrainLoader,
        layout: BatchLayout,
        objective: Objective,
        journal: Journal,
    ) -> None:
        self.config, self.runtime, self.folder, self.data = config, runtime, folder, data
        self.loader, self.layout, self.journal = loader, layout, journal
        self.objective = objective
        self.steps_per_epoch = loader.steps_per_epoch
        self.preprocess = config.data.preprocess
        self.model = model
        if config.model.freeze_backbone:
            freeze_backbone(model)
        if config.model.activation_checkpointing:
            checkpoint_activations(model)
        if config.run.compile:
            compile_blocks(model)
        self.replicas = Replicas(model, runtime, config.run.parallel)
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
        self.schedule = Schedule.of(config.optimizer.lr_init, config.schedule, self.steps_per_epoch)
        self.total_steps = self.schedule.total_steps
        self.guard = Guard(runtime, loader)
        self.peak_flops = runtime.peak_flops()
        self.flops_per_image = count_flops(model.spec).training if self.peak_flops else 0
        self.best: Best | None = None
        self.updates = 0
        self.unreadable = 0  # of the epoch under way, on all ranks, up to the last log line

    def restore(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Go back to where a checkpoint was taken (collective)."""
        self.state.restore(stored_tensors(checkpoint.path / STATE_FILE), checkpoint.path)
        self.scaler.load_state_dict(progress.loss_scaler)
        self.updates, self.best = progress.updates, progress.best

    def go(self) -> TrainResult:
        """Train to the end (collective)."""
        self.runtime.from_first(lambda: self.folder.cut_metrics_back(self.updates))
        sums: Sums | None = None
        with self.journal.live(self.updates, self.total_steps):
            while self.updates < self.total_steps:
                epoch, first_step = divmod(self.updates, self.steps_per_epoch)
                step = self._train_epoch(epoch, first_step)
                last = self.updates == self.total_steps
                evaluated = last or (epoch + 1) % self.config.schedule.eval_every_epochs == 0
                sums = self._evaluate(epoch) if evaluated else None
                self._save(epoch, step, sums)
        assert self.best is not None
        assert sums is not None
        result = result_of(self.folder, self.updates, sums.to_row(), self.best)
        if self.runtime.is_first:
            say_result(result)
        return result

    def announce(self, rate: PeakRate, continued: Path | None) -> None:
        """Say what will be done, on what, and from where on."""
        config, spec, say = self.config, self.model.spec, self.journal.say
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        how = self.replicas.describe()
        say(
            f"{spec.name}, {parameters:,} parameters, "
            f"{self.preprocess.height}x{self.preprocess.width} px, {spec.num_classes} classes, "
            f"on {self.runtime.describe()}{', ' if how else ''}{how}"
        )
        say(
            f"{len(self.data.train)} training and {len(self.data.val)} evaluation images; "
            f"{self.total_steps} updates, {self.steps_per_epoch} an epoch, of "
            f"{self.layout.global_batch} images ({self.layout.describe()}); "
            f"{config.optimizer.optimizer}, lr {rate.lr:g} ({rate.rule}), "
            f"{config.schedule.schedule}"
        )
        where = f"Continuing from {continued}, update {self.updates}" if continued else "Starting"
        say(f"{where}; run folder {self.folder.path}")

    def _train_epoch(self, epoch: int, first_step: int) -> int:
        """Train to the end of an epoch, or of the run; return the step within the epoch."""
        self.unreadable = 0
        self.model.train()
        window = self._new_window()
        waited_before = 0.0  # the loader counts anew in each epoch
        batches = self.loader.epoch(epoch, first_step)
        started, images = time.perf_counter(), 0
        last_step = min(self.steps_per_epoch, first_step + self.total_steps - self.updates)
        every = self.config.checkpoint.checkpoint_every_steps
        with contextlib.closing(batches):
            for step in range(first_step + 1, last_step + 1):
                saves = every is not None and (self.updates + 1) % every == 0 and step < last_step
                logs = (
                    step % self.config.run.log_every_steps == 0
                    or step == last_step
                    or self.updates == 0
                )
                lr, norm = self._update(epoch, step - 1, batches, window, measure=logs)
                self.updates += 1
                images += self.layout.global_batch
                self.journal.show(self.updates)
                if logs:
                    window.waited = self.loader.seconds_waited - waited_before
                    waited_before = self.loader.seconds_waited
                    self._log(epoch, step, lr, norm, window)
                    window = self._new_window()
                if saves:
                    self._save(epoch, step, None)
        slow = self.loader.describe_bottleneck(images, time.perf_counter() - started)
        if slow is not None:
            self.journal.say(slow)
        return last_step

    def _new_window(self) -> _Window:
        return _Window(torch.zeros((), dtype=torch.float64, device=self.runtime.device))

    def _update(
        self, epoch: int, step: int, batches: Iterator[Batch], window: _Window, *, measure: bool
    ) -> tuple[float, torch.Tensor | None]:
        """Take one update over the global batch (collective).

        Returns: its learning rate, and the norm of its gradient if that was needed or asked for.
        """
        config, layout = self.config.optimizer, self.layout
        lr = self.schedule.at(self.updates)
        set_learning_rate(self.optimizer, lr)
        seed_generators(self.config.run.seed, _STEP_STREAM, self.updates)
        self.optimizer.zero_grad(set_to_none=True)
        depth_scales = self._draw_depth_scales()
        if self.runtime.rank:  # dropout, unlike all else, is drawn by each rank for itself
            seed_generators(self.config.run.seed, _STEP_STREAM, self.updates, self.runtime.rank)
        mix = self.objective.draw_mix(epoch, step)
        for micro in range(layout.accumulation_steps):
            batch = next(batches)
            images, labels = self.runtime.send(batch.images, batch.labels)
            inputs = mix.images(normalize(images, self.preprocess), labels)
            scales = None if depth_scales is None else depth_scales[micro]
            with self.replicas.accumulating(last=micro == layout.accumulation_steps - 1):
                with self.runtime.autocast():
                    logits = self.replicas(inputs, scales)
                    loss_sum = self.objective.loss_sum(logits, labels, mix)
                share = self.replicas.loss_factor / layout.global_batch
                self.scaler.scale(loss_sum * share).backward()
            window.loss_sum += loss_sum.detach()
            self.guard.watch(self.updates, epoch, batch.positions, logits)
            self._report_unreadable(batch, window)
        window.images += layout.global_batch
        norm = None
        if config.clip_norm is not None or measure:
            self.scaler.unscale_(self.optimizer)
            norm = self.replicas.clip(config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.updates + 1)
        return lr, norm

    def _draw_depth_scales(self) -> tuple[torch.Tensor, ...] | None:
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
        parts = torch.split(scales_L2B, layout.batch_size, dim=2)
        return parts[self.loader.share]

    def _report_unreadable(self, batch: Batch, window: _Window) -> None:
        for image in batch.bad:
            self.journal.warn(
                f"Unreadable training image {image.place}: {image.cause}; left out of the loss"
            )
        window.unreadable += len(batch.bad)

    def _log(
        self, epoch: int, step: int, lr: float, norm: torch.Tensor | None, window: _Window
    ) -> None:
        """Add up over the ranks what was seen since the last line, and write it (collective)."""
        self.guard.look(self._advice)
        sums = torch.stack([window.loss_sum, torch.full_like(window.loss_sum, window.unreadable)])
        loss_sum, unreadable = self.runtime.sum(sums).tolist()
        self._check_unreadable(round(unreadable))
        seconds = time.perf_counter() - window.started
        loss = loss_sum / max(window.images - round(unreadable), 1)
        speed, wait = window.images / seconds, window.waited / seconds
        row: dict[str, Any] = {
            "step": self.updates,
            "epoch": epoch + 1,
            "loss": loss,
            "lr": lr,
            "images_per_second": round(speed, 1),
            "data_wait_fraction": round(wait, 4),
            "unreadable_images": round(unreadable),
        }
        line = f"loss {loss:.4f}  lr {lr:.3g}"
        if norm is not None:
            row["gradient_norm"] = float(norm)
            line += f"  gradient {float(norm):.3g}"
        line += f"  {speed:.0f} images/s"
        if self.peak_flops:
            used = speed * self.flops_per_image / (self.peak_flops * self.runtime.num_ranks)
            row["flops_utilisation"] = round(used, 4)
            line += f"  {used:.0%} of peak FLOPs"
        if (memory := self.runtime.peak_memory()) is not None:
            row["peak_memory_mib"] = round(memory / 2**20)
        self.journal.record(**row)
        self.journal.show(self.updates, f"epoch {epoch + 1}, loss {loss:.4f}, {speed:.0f} images/s")
        epochs, steps = self.epochs, self.steps_per_epoch
        self.journal.say(
            f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}  step {step:{len(str(steps))}}/{steps}"
            f"  {line}  data wait {wait:.0%}"
        )

    def _check_unreadable(self, more: int) -> None:
        """Check on every rank what their loaders check each for its own share."""
        self.unreadable += more
        most = self.loader.max_bad_images
        if self.unreadable > most:
            error = DataError(
                f"{self.unreadable} images of this epoch could not be read, on all ranks together; "
                f"max_bad_images allows {most}. Mend or remove them, or raise --max_bad_images."
            )
            raise error.everywhere()

    @property
    def epochs(self) -> int:
        """Epochs of the run; the last may be cut short by `total_steps`."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def _evaluate(self, epoch: int) -> Sums:
        started = time.perf_counter()
        with self.average.applied() if self.average else contextlib.nullcontext():
            sums = evaluate_model(
                self.model,
                self.data.val,
                self.preprocess,
                self.runtime,
                batch_size=self.config.data.eval_batch_size or self.layout.batch_size,
                num_workers=self.config.data.num_workers,
                on_unreadable=self.journal.warn,
            )
        seconds = time.perf_counter() - started
        self.journal.record(
            step=self.updates,
            epoch=epoch + 1,
            **sums.to_row(),
            eval_seconds=round(seconds, 3),
        )
        self.journal.say(f"epoch {epoch + 1}/{self.epochs}  {sums.describe()}")
        return sums

    def _advice(self) -> str:
        """What to do about a run that has lost its way."""
        whole = self.folder.newest_whole()[0] if self.runtime.is_first else None
        kept = f"Checkpoint {whole.path} is from before. " if whole else "There is no checkpoint. "
        return f"{kept}Try a lower --lr_init, a longer --warmup_epochs, or --clip_norm 1."

    def _save(self, epoch: int, step: int, sums: Sums | None) -> None:
        """Write a checkpoint, unless the run has lost its way (collective)."""
        self.guard.look(self._advice)
        self.guard.check_weights(self.model, self.updates, self._advice)
        name = checkpoint_name(self.config.run.name, epoch + 1, step)
        if sums is not None:
            score_name, score = sums.score
            if self.best is None or score > self.best.score:
                self.best = Best(name, score, score_name)
        weights, tensors = self.state.collect()

        def write() -> None:
            self.journal.sync()
            progress = Progress(
                updates=self.updates,
                global_batch=self.layout.global_batch,
                loss_scaler=self.scaler.state_dict(),
                best=self.best,
                finished=self.updates == self.total_steps,
            )
            model = self.state.filled(weights)

            def write_tensors(folder: Path) -> None:
                save_weights(
                    model,
                    folder / WEIGHTS_FILE,
                    preprocess=self.preprocess,
                    labels=self.data.train.class_names,
                )
                write_safetensors(folder / STATE_FILE, tensors, {})

            self.folder.save(name, write_tensors, progress)
            self.folder.prune(self.config.checkpoint.keep_checkpoint_max, self.best)

        self.runtime.from_first(write)
