"""What a run says of itself while it trains: log lines, rows of `metrics.jsonl`, a live display."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitbase.config.batch import PeakRate
from vitbase.config.config import Config
from vitbase.data.balance import are_unequal
from vitbase.data.loader import TrainLoader
from vitbase.evaluation.run import Sums
from vitbase.model.cost import count_flops
from vitbase.runs.journal import Journal
from vitbase.runs.progress import SCORES, Best
from vitbase.sources.open import TrainVal
from vitbase.sources.source import Source, class_counts, name_class
from vitbase.training.guard import Guard
from vitbase.training.schedule import Place
from vitbase.training.step import Learner, Taken
from vitbase.training.waits import Waits

_FAR_ABOVE_CHANCE = 3.0
"""Times the loss of guessing; no sound run comes near it."""
_SPIKE = 0.25
"""Of the loss of guessing: a loss that jumps by less may be that of some harder images."""


@dataclasses.dataclass
class _Window:
    """Sums since the last log line. Tensors stay on the device until they are read."""

    loss_sum: torch.Tensor
    passed_over: torch.Tensor  # updates
    images: int = 0
    unreadable: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)


class Reporter:
    """Adds up what updates have seen, and says it. Every rank has one; the first one talks.

    Args:
      journal: where it is written.
      guard: looks, and may end the run, whenever the device is asked for numbers anyway.

    Attributes:
      waits: is told what the run waits for, by who waits.
    """

    def __init__(
        self, journal: Journal, guard: Guard, learner: Learner, loader: TrainLoader, config: Config
    ) -> None:
        self.journal, self.guard, self.learner, self.loader = journal, guard, learner, loader
        self.runtime, self.config = learner.runtime, config
        self._peak_flops = self.runtime.peak_flops()
        self._flops_per_image = 0
        if self._peak_flops and not learner.on_features:
            head_only = config.model.freeze_backbone
            self._flops_per_image = count_flops(learner.model.spec, head_only=head_only).training
        self.waits = Waits(learner, loader)
        self._window = self._new_window()
        self._epoch_started, self._epoch_images = time.perf_counter(), 0
        self._last_loss, self._is_astray = 0.0, False
        self._last_losses: deque[float] = deque(maxlen=8)

    def announce(
        self, data: TrainVal, rate: PeakRate, place: Place, continued: Path | None
    ) -> None:
        """Say what will be done, on what, and from where on."""
        learner, say = self.learner, self.journal.say
        preprocess, spec = self.config.data.preprocess, learner.model.spec
        parameters = sum(parameter.numel() for parameter in learner.model.parameters())
        how = learner.replicas.describe()
        say(
            f"{spec.name}, {parameters:,} parameters, "
            f"{preprocess.height}x{preprocess.width} px, {spec.num_classes} classes, "
            f"on {self.runtime.describe()}{', ' if how else ''}{how}"
        )
        say(
            f"{len(data.train)} training and {len(data.val)} evaluation images; "
            f"{place.total_steps} updates, {place.steps_per_epoch} an epoch, of "
            f"{learner.layout.global_batch} images ({learner.layout.describe()}); "
            f"{self.config.optimizer.optimizer}, lr {rate.lr:g} ({rate.rule}), "
            f"{self.config.schedule.schedule}"
        )
        if continued is None and (remark := _unequal_classes(self.config, data.train)):
            say(remark)
        where = f"Continuing from {continued}, update {place.updates}" if continued else "Starting"
        say(f"{where}; run folder {self.config.output_dir}")

    @contextlib.contextmanager
    def live(self, place: Place) -> Iterator[None]:
        """Show the live display, from a place on, if the output is a terminal."""
        with self.journal.live(place.updates, place.total_steps):
            yield

    def begin_epoch(self) -> None:
        """Count anew."""
        self.guard.begin_epoch()
        self._window = self._new_window()
        self.waits.begin_epoch()
        self._epoch_started, self._epoch_images = time.perf_counter(), 0

    def is_due(self, place: Place) -> bool:
        """Whether the update that leads to a place gets a log line."""
        _, step = place.taken
        return step % self.config.run.log_every_steps == 0 or place.ends_epoch or place.updates == 1

    def saw(self, place: Place, taken: Taken) -> None:
        """Take in an update, which has led to a place."""
        self.guard.saw(place.updates - 1, taken)
        for image in taken.bad:
            self.journal.warn(
                f"Unreadable training image {image.place}: {image.cause}; left out of the loss"
            )
        if self.runtime.num_ranks == 1:  # several count together, with the next log line
            self.guard.check_readable(len(taken.bad))
        window, layout = self._window, self.learner.layout
        window.loss_sum += _number_or_0(taken.loss_sum)
        if taken.flags is not None:
            window.passed_over += taken.flags[0]
        window.images += layout.global_batch
        window.unreadable += len(taken.bad)
        self._epoch_images += layout.global_batch
        self.journal.show(place.updates)

    def log(self, place: Place, taken: Taken) -> None:
        """Add up over the ranks what was seen since the last line, and write it (collective)."""
        with self.waits.during("device"):
            self.guard.look()
        window, runtime = self._window, self.runtime
        lost = 0
        while self.guard.lost:
            loss_of_rank, images = self.guard.lost.pop()
            window.loss_sum -= _number_or_0(loss_of_rank)
            lost += images
        of_host = torch.tensor(
            [window.unreadable, lost, *self.waits.seconds()], dtype=torch.float64
        ).to(runtime.device)
        sums = torch.cat([torch.stack([window.loss_sum, window.passed_over]), of_host])
        loss_sum, passed_over, unreadable, lost, *waited = runtime.all_reduce(sums).tolist()
        if runtime.num_ranks > 1:
            self.guard.check_readable(round(unreadable))
        seconds = time.perf_counter() - window.started
        epoch, step = place.taken
        counted = window.images - round(unreadable) - round(lost)
        loss = math.nan if lost and not counted else loss_sum / max(counted, 1)
        speed = window.images / seconds
        shares = self.waits.shares(waited, seconds)
        row: dict[str, Any] = {
            "step": place.updates,
            "epoch": epoch,
            "loss": loss,
            "lr": taken.lr,
            "images_per_second": round(speed, 1),
            **shares.to_row(),
            "unreadable_images": round(unreadable),
        }
        if passed_over:
            row["passed_over_updates"] = round(passed_over / runtime.num_ranks)
        line = f"loss {loss:.4f}  lr {taken.lr:.3g}"
        if taken.gradient_norm is not None:
            norm = float(taken.gradient_norm)
            row["gradient_norm"] = norm
            line += f"  gradient {norm:.3g}"
        line += f"  {speed:.0f} images/s"
        if self._peak_flops and self._flops_per_image:
            used = speed * self._flops_per_image / (self._peak_flops * runtime.num_ranks)
            row["flops_utilisation"] = round(used, 4)
            line += f"  {used:.0%} of peak FLOPs"
        if (memory := runtime.peak_memory()) is not None:
            row["peak_memory_mib"] = round(memory / 2**20)
        self.journal.record(**row)
        self.journal.show(place.updates, f"epoch {epoch}, loss {loss:.4f}, {speed:.0f} images/s")
        epochs, steps = place.epochs, place.steps_per_epoch
        self.journal.say(
            f"epoch {epoch:{len(str(epochs))}}/{epochs}  step {step:{len(str(steps))}}/{steps}"
            f"  {line}  {shares.describe()}"
        )
        self._window = self._new_window()
        self._compare_with_chance(place, loss, taken.lr)
        self._compare_with_before(place, loss)

    def _compare_with_chance(self, place: Place, loss: float, lr: float) -> None:
        """Say once that the loss has left what is to be expected; the first is of no update yet."""
        self._last_loss = loss
        chance = self.learner.objective.chance_loss
        if place.updates > 1 and loss > _FAR_ABOVE_CHANCE * chance and not self._is_astray:
            self._is_astray = True
            self.journal.say(
                f"Warning: the loss is {loss:.4g}, where guessing gives {chance:.4g}: at a "
                f"learning rate of {lr:.3g} the run has lost its way. {self._advice()}"
            )

    def _compare_with_before(self, place: Place, loss: float) -> None:
        """Say that the loss has jumped, by much of what there is to lose and of what it was."""
        before = self._last_losses
        if len(before) == before.maxlen:
            mean = sum(before) / len(before)
            if loss - mean > max(mean, _SPIKE * self.learner.objective.chance_loss):
                self.journal.say(
                    f"Warning: the loss has jumped to {loss:.4g} up to update {place.updates}, "
                    f"from {mean:.4g} in the {len(before)} lines before. {self._advice()}"
                )
        if math.isfinite(loss):
            before.append(loss)

    def _advice(self) -> str:
        clip = "" if self.config.optimizer.clip_norm else ", or --clip_norm 1"
        return f"Try a lower --lr_init{clip}."

    def end_run(self) -> None:
        """Say whether a run that had lost its way has found it again."""
        chance = self.learner.objective.chance_loss
        if self._is_astray and self._last_loss > chance:
            self.journal.say(
                f"Warning: the run ends with a loss of {self._last_loss:.4g}, where guessing gives "
                f"{chance:.4g}: it has learned nothing. {self._advice()}"
            )

    def end_epoch(self) -> None:
        """Say what held the epoch up, if something did."""
        seconds = time.perf_counter() - self._epoch_started
        slow = self.loader.describe_bottleneck(self._epoch_images, seconds)
        if slow is not None:
            self.journal.say(slow)

    def evaluated(
        self, place: Place, sums: Sums, class_names: tuple[str, ...], seconds: float
    ) -> None:
        """Say how good the model is at the end of an epoch."""
        epoch, _ = place.taken
        row = {**sums.to_row(), "eval_seconds": round(seconds, 3)}
        self.journal.record(step=place.updates, epoch=epoch, **row)
        self.journal.say(f"epoch {epoch}/{place.epochs}  {sums.describe(class_names)}")

    def gave_up(self, best: Best | None) -> None:
        """Say why the run ends before its time."""
        assert best is not None
        patience = self.config.schedule.patience or 1
        last = f"{patience} evaluations" if patience > 1 else "evaluation"
        self.journal.say(
            f"No better {SCORES[best.score_name]} in the last {last} (best: {best.score:.2%} at "
            f"epoch {best.epoch}): the run ends here"
        )

    def _new_window(self) -> _Window:
        zeros = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        return _Window(zeros[0], zeros[1])


def _number_or_0(loss_sum: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isfinite(loss_sum), loss_sum, 0.0)


def _unequal_classes(config: Config, source: Source) -> str | None:
    """Say which classes have most and fewest images, where nothing makes up for much of it."""
    balanced = "balanced" in (config.loss.class_weights, config.data.sampling)
    if balanced or source.labels.ndim > 1:
        return None
    counts_C = class_counts(source.labels, len(source.class_names))
    if not are_unequal(counts_C):
        return None
    most = int(counts_C.argmax())
    least = int(np.where(counts_C > 0, counts_C, counts_C[most]).argmin())
    return (
        f"The classes are unequal: class {name_class(source.class_names, most)} has "
        f"{counts_C[most]:,} training images, class {name_class(source.class_names, least)} "
        f"{counts_C[least]:,}. With --class_weights balanced each class counts the same."
    )
