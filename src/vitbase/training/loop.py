"""The training loop: from a configuration to a trained, evaluated, resumable run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitbase.config import Config
from vitbase.data.augment import TrainTransform, normalize
from vitbase.data.loader import Batch, TrainLoader
from vitbase.data.sources import TrainVal, open_train_val
from vitbase.errors import CheckpointError, ConfigError, DataError, VitbaseError
from vitbase.evaluation.run import describe_sums, evaluate_model
from vitbase.model.layers import draw_depth_scales
from vitbase.model.vit import VisionTransformer
from vitbase.runtime import Runtime, open_runtime, seed_generators
from vitbase.training.checkpoint import (
    Best,
    MindSporeState,
    Progress,
    RunFolder,
    read_progress,
    restore_from_mindspore,
    restore_optimizer,
    write_atomically,
)
from vitbase.training.journal import Journal, say
from vitbase.training.losses import cross_entropy_sum
from vitbase.training.optim import Schedule, build_optimizer, set_learning_rate
from vitbase.training.result import TrainResult, report_finished, result_of, say_result
from vitbase.training.start import (
    build_start,
    complete_from_data,
    complete_from_run,
    complete_preprocess,
    read_position,
    spec_of,
)
from vitbase.weights.checkpoints import Checkpoint, checkpoint_name
from vitbase.weights.load import load_model
from vitbase.weights.save import save_weights

_STEP_STREAM = 1  # first part of the key of torch's generators; 0 is initialisation's


class DivergedError(VitbaseError):
    """The loss is no longer a number."""


def train(config: Config) -> TrainResult:
    """Train as configured, or continue the run in the output folder, or report a finished one.

    Returns: the result after the last update.
    Raises: VitbaseError for whatever the user can mend, before anything is written where possible.
    """
    runtime = open_runtime(config.run.device_target, config.run.device_id, config.run.precision)
    folder = RunFolder(config.output_dir)
    saved = folder.read_config()
    config = complete_preprocess(config) if saved is None else complete_from_run(config, saved)
    if config.model.model is not None or not config.starts_from_weights:
        spec_of(config)  # a mistake in the architecture shows before millions of files are listed
    folder.check(config)
    checkpoint, warnings = folder.newest_whole()
    progress = read_progress(checkpoint.path) if checkpoint else None
    if progress is not None and progress.finished:
        return report_finished(folder, progress)
    data = open_train_val(config)
    config = complete_from_data(config, data.train.class_names)
    steps_per_epoch = len(data.train) // config.global_batch
    if steps_per_epoch == 0:
        raise ConfigError(
            f"The {len(data.train)} training images are fewer than one global batch "
            f"(batch_size {config.data.batch_size} x accumulation_steps "
            f"{config.optimizer.accumulation_steps}). Give a smaller --batch_size."
        )
    begun = None
    if checkpoint is None:
        begun = read_position(config, steps_per_epoch)
        model, notes = build_start(config, data.train.class_names)
    else:
        model, notes = _load_checkpoint(checkpoint, data.train.class_names), ()
    folder.start(config)
    for line in (*data.notes, *notes, *warnings):
        say(line)
    if data.held_out:
        write_atomically(
            folder.path / "held_out.txt", "".join(f"{path}\n" for path in data.held_out)
        )
        say(f"The held-out images are listed in {folder.path / 'held_out.txt'}")
    run = _Run(config, runtime, folder, data, model, steps_per_epoch)
    return run.go(checkpoint, progress, begun)


def _load_checkpoint(checkpoint: Checkpoint, class_names: tuple[str, ...]) -> VisionTransformer:
    """Load the model of a run to be continued. Raises: DataError if the classes have changed."""
    loaded = load_model(checkpoint.weights)
    if loaded.labels is not None and loaded.labels != class_names:
        raise DataError(
            f"The run was trained on the classes {', '.join(loaded.labels[:5])}…, but data_path "
            f"now has {', '.join(class_names[:5])}…. Give the same images, or another --output_dir."
        )
    return loaded.model


@dataclasses.dataclass
class _Window:
    """Sums since the last log line. Tensors stay on the device until they are read."""

    loss_sum: torch.Tensor
    images: int = 0
    trained: torch.Tensor | int = 0
    unreadable: int = 0
    waited: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)


class _Run:
    """One process's share of a run, from its start or resumption to its end."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        folder: RunFolder,
        data: TrainVal,
        model: VisionTransformer,
        steps_per_epoch: int,
    ) -> None:
        self.config, self.runtime, self.folder, self.data = config, runtime, folder, data
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = config.schedule.epoch_size * steps_per_epoch
        self.preprocess = config.data.preprocess
        self.model = model.to(runtime.device)
        self.optimizer = build_optimizer(self.model, config.optimizer, runtime)
        self.scaler = runtime.build_loss_scaler()
        self.schedule = Schedule.of(config.optimizer.lr_init, config.schedule, steps_per_epoch)
        self.journal = Journal(folder.metrics_file, self.total_steps)
        self.loader = TrainLoader(
            data.train,
            TrainTransform(self.preprocess, config.augment),
            seed=config.run.seed,
            batch_size=config.data.batch_size,
            accumulation_steps=config.optimizer.accumulation_steps,
            num_workers=config.data.num_workers,
            max_bad_images=(
                config.data.max_bad_images if config.data.on_bad_image == "skip" else 0
            ),
            pin_memory=runtime.pin_memory,
        )
        self.best: Best | None = None
        self.updates = 0

    def go(
        self,
        checkpoint: Checkpoint | None,
        progress: Progress | None,
        begun: MindSporeState | None,
    ) -> TrainResult:
        if checkpoint is not None and progress is not None:
            self._restore(checkpoint, progress)
        elif begun is not None:
            restore_from_mindspore(self.optimizer, begun)
            self.updates = begun.updates
        self.folder.cut_metrics_back(self.updates)
        self._announce(checkpoint.path if checkpoint else begun.path if begun else None)
        row: dict[str, Any] = {}
        with self.journal.live(self.updates):
            while self.updates < self.total_steps:
                epoch, first_step = divmod(self.updates, self.steps_per_epoch)
                self._train_epoch(epoch, first_step)
                last = self.updates == self.total_steps
                evaluated = last or (epoch + 1) % self.config.schedule.eval_every_epochs == 0
                if evaluated:
                    row = self._evaluate(epoch)
                self._save(epoch, self.steps_per_epoch, row["eval_top1"] if evaluated else None)
        assert self.best is not None
        result = result_of(self.folder, self.updates, row, self.best)
        say_result(result)
        return result

    def _restore(self, checkpoint: Checkpoint, progress: Progress) -> None:
        if progress.global_batch != self.config.global_batch:
            raise CheckpointError(
                f"{checkpoint.path} was written with a global batch of {progress.global_batch}."
            )
        restore_optimizer(self.optimizer, checkpoint.path)
        self.scaler.load_state_dict(progress.loss_scaler)
        self.updates, self.best = progress.updates, progress.best

    def _announce(self, continued: Path | None) -> None:
        config, spec = self.config, self.model.spec
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        say(
            f"{spec.name}, {parameters:,} parameters, "
            f"{self.preprocess.height}x{self.preprocess.width} px, {spec.num_classes} classes, "
            f"on {self.runtime.describe()}"
        )
        say(
            f"{len(self.data.train)} training and {len(self.data.val)} evaluation images; "
            f"{config.schedule.epoch_size} epochs of {self.steps_per_epoch} steps, "
            f"{config.global_batch} images a step; {config.optimizer.optimizer}, "
            f"lr {config.optimizer.lr_init:g} {config.schedule.schedule}"
        )
        where = f"Continuing from {continued}, update {self.updates}" if continued else "Starting"
        say(f"{where}; run folder {self.folder.path}")

    def _train_epoch(self, epoch: int, first_step: int) -> None:
        self.model.train()
        window = self._new_window()
        waited_before = 0.0  # the loader counts anew in each epoch
        batches = self.loader.epoch(epoch, first_step)
        started, images = time.perf_counter(), 0
        for step in range(first_step + 1, self.steps_per_epoch + 1):
            lr = self._update(batches, window)
            self.updates += 1
            images += self.config.global_batch
            self.journal.show(self.updates)
            if (
                step % self.config.run.log_every_steps == 0
                or step == self.steps_per_epoch
                or self.updates == 1
            ):
                window.waited = self.loader.seconds_waited - waited_before
                waited_before = self.loader.seconds_waited
                self._log(epoch, step, lr, window)
                window = self._new_window()
            every = self.config.checkpoint.checkpoint_every_steps
            if every and self.updates % every == 0 and step < self.steps_per_epoch:
                self._save(epoch, step, None)
        slow = self.loader.describe_bottleneck(images, time.perf_counter() - started)
        if slow is not None:
            self.journal.say(slow)

    def _new_window(self) -> _Window:
        return _Window(torch.zeros((), device=self.runtime.device))

    def _update(self, batches: Iterator[Batch], window: _Window) -> float:
        """Take one update over the micro-batches of a global batch; return its learning rate."""
        config = self.config.optimizer
        lr = self.schedule.at(self.updates)
        set_learning_rate(self.optimizer, lr)
        seed_generators(self.config.run.seed, _STEP_STREAM, self.updates)
        self.optimizer.zero_grad(set_to_none=True)
        depth_scales = self._draw_depth_scales()
        for micro in range(config.accumulation_steps):
            batch = next(batches)
            images, labels = self.runtime.send(batch.images, batch.labels)
            with self.runtime.autocast():
                logits = self.model(
                    normalize(images, self.preprocess),
                    None if depth_scales is None else depth_scales[micro],
                )
                loss_sum = cross_entropy_sum(logits, labels)
            self.scaler.scale(loss_sum / self.config.global_batch).backward()
            window.loss_sum += loss_sum.detach()
            window.images += len(batch.labels)
            self._report_unreadable(batch, window)
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return lr

    def _draw_depth_scales(self) -> tuple[torch.Tensor, ...] | None:
        """Draw stochastic depth for the global batch, and cut it into micro-batches."""
        spec = self.model.spec
        if spec.stochastic_depth == 0:
            return None
        scales_L2B = draw_depth_scales(
            spec.stochastic_depth,
            spec.depth,
            self.config.global_batch,
            device=self.runtime.device,
        )
        return torch.split(scales_L2B, self.config.data.batch_size, dim=2)

    def _report_unreadable(self, batch: Batch, window: _Window) -> None:
        for image in batch.bad:
            self.journal.say(
                f"Unreadable training image {image.place}: {image.cause}; left out of the loss"
            )
        window.unreadable += len(batch.bad)

    def _log(self, epoch: int, step: int, lr: float, window: _Window) -> None:
        readable = window.images - window.unreadable
        loss = float(window.loss_sum) / max(readable, 1)
        seconds = time.perf_counter() - window.started
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss became {loss} at epoch {epoch + 1}, step {step}. The last checkpoint "
                f"in {self.folder.checkpoints} is from before. Try a lower --lr_init, a longer "
                f"--warmup_epochs, or --clip_norm 1."
            )
        speed = window.images / seconds
        wait = window.waited / seconds
        self.journal.record(
            step=self.updates,
            epoch=epoch + 1,
            loss=loss,
            lr=lr,
            images_per_second=round(speed, 1),
            data_wait_fraction=round(wait, 4),
            unreadable_images=window.unreadable,
        )
        self.journal.show(self.updates, f"epoch {epoch + 1}, loss {loss:.4f}, {speed:.0f} images/s")
        epochs, steps = self.config.schedule.epoch_size, self.steps_per_epoch
        self.journal.say(
            f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}  step {step:{len(str(steps))}}/{steps}"
            f"  loss {loss:.4f}  lr {lr:.3g}  {speed:.0f} images/s  data wait {wait:.0%}"
        )

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        started = time.perf_counter()
        sums = evaluate_model(
            self.model,
            self.data.val,
            self.preprocess,
            self.runtime,
            batch_size=self.config.data.eval_batch_size or self.config.data.batch_size,
            num_workers=self.config.data.num_workers,
            on_unreadable=self.journal.say,
        )
        seconds = time.perf_counter() - started
        row = {
            "step": self.updates,
            "epoch": epoch + 1,
            "eval_top1": sums.top1,
            "eval_top5": sums.top5,
            "eval_loss": sums.loss,
            "eval_images": sums.images,
            "eval_unreadable": sums.unreadable,
            "eval_seconds": round(seconds, 3),
        }
        self.journal.record(**row)
        self.journal.say(
            f"epoch {epoch + 1}/{self.config.schedule.epoch_size}  {describe_sums(sums)}"
        )
        return row

    def _save(self, epoch: int, step: int, eval_top1: float | None) -> None:
        name = checkpoint_name(self.config.run.name, epoch + 1, step)
        if eval_top1 is not None and (self.best is None or eval_top1 > self.best.eval_top1):
            self.best = Best(name, eval_top1)
        self.journal.sync()
        progress = Progress(
            updates=self.updates,
            global_batch=self.config.global_batch,
            loss_scaler=self.scaler.state_dict(),
            best=self.best,
            finished=self.updates == self.total_steps,
        )
        self.folder.save(name, self._write_weights, self.optimizer, progress)
        self.folder.prune(self.config.checkpoint.keep_checkpoint_max, self.best)

    def _write_weights(self, path: Path) -> None:
        save_weights(
            self.model, path, preprocess=self.preprocess, labels=self.data.train.class_names
        )
