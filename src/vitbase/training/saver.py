"""Checkpoints of a run, and which of them did best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vitbase.config.config import Config
from vitbase.evaluation.run import Sums
from vitbase.runs.checkpoints import CKPT_SUFFIX, STATE_FILE, WEIGHTS_FILE, checkpoint_name
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Journal
from vitbase.runs.progress import Best, Progress
from vitbase.runtime import Runtime
from vitbase.training.guard import Guard
from vitbase.training.schedule import Place
from vitbase.training.step import Learner
from vitbase.weights.files.safetensors import write_safetensors
from vitbase.weights.save import save_weights

NATIVE = "native"


class Saver:
    """Writes the checkpoints of a run.

    Args:
      guard: looks first, so that nothing is stored that is no number.
      labels: the class names, which go with the weights.
      best: of the run so far.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        guard: Guard,
        journal: Journal,
        config: Config,
        labels: tuple[str, ...],
        best: Best | None,
    ) -> None:
        self.folder, self.learner, self.guard, self.journal = folder, learner, guard, journal
        self.config, self.labels, self.best = config, labels, best
        self._weights: Mapping[str, torch.Tensor] = {}  # of the checkpoint under way

    def save(self, place: Place, sums: Sums | None, *, closed: bool = False) -> None:
        """Write a checkpoint, unless the run has lost its way (collective).

        Args:
          sums: what an evaluation at this place has counted, if there was one.
          closed: whether all is done that is due at the end of this epoch.
        """
        self.guard.look()
        name = checkpoint_name(self.config.run.name, *place.taken)
        write_tensors, loss_scaler = self.collect(name, place)
        if sums is not None:
            score_name, score = sums.score
            if self.best is None or score > self.best.score:
                self.best = Best(name, score, score_name)

        def write() -> None:
            self.journal.sync()
            progress = Progress(
                updates=place.updates,
                global_batch=self.learner.layout.global_batch,
                loss_scaler=loss_scaler,
                best=self.best,
                finished=closed and (place.ends_run or self.is_out_of_patience(place)),
                closed=closed or not place.ends_epoch,
            )
            self.folder.save(name, write_tensors, progress)
            self.folder.prune(self.config.checkpoint.keep_checkpoint_max, self.best)
            self.write_beside(name)

        self.learner.runtime.from_first(write)

    def collect(self, name: str, place: Place) -> tuple[Callable[[Path], None], dict[str, Any]]:
        """Gather what a checkpoint holds (collective).

        Args:
          name: of the checkpoint.
          place: where the run stands.
        Returns: what writes it into a folder, on the first rank; the state of the loss scaler.
        Raises: DivergedError on all ranks if a weight is no number.
        """
        learner = self.learner
        self.guard.check_weights(learner.model, place.updates)
        self._weights, tensors = learner.state.collect()

        def write_tensors(folder: Path) -> None:
            model = learner.state.filled(self._weights)
            preprocess = self.config.data.preprocess
            save_weights(model, folder / WEIGHTS_FILE, preprocess=preprocess, labels=self.labels)
            write_safetensors(folder / STATE_FILE, tensors, {})

        return write_tensors, learner.scaler.state_dict()

    def write_beside(self, name: str) -> None:
        """Write what stands in the run folder itself, once the checkpoint is whole."""
        dialect = self.config.checkpoint.checkpoint_format
        if dialect != NATIVE:
            path = self.folder.path / f"{name}{CKPT_SUFFIX}"
            save_weights(self.learner.state.filled(self._weights), path, dialect=dialect)
            self.folder.prune_files(CKPT_SUFFIX, self.config.checkpoint.keep_checkpoint_max)

    def is_out_of_patience(self, place: Place) -> bool:
        """Whether the last evaluations, as many as `patience` allows, brought nothing better.

        It follows from the place and the best checkpoint's name, so that a run that was
        interrupted ends where it would have.
        """
        options = self.config.schedule
        if options.patience is None or self.best is None:
            return False
        every = options.eval_every_epochs
        return place.epoch // every - self.best.epoch // every >= options.patience


def advice_for(folder: RunFolder, runtime: Runtime) -> str:
    """Say what to do about a run that has lost its way."""
    whole = folder.newest_whole()[0] if runtime.is_first else None
    kept = f"Checkpoint {whole.path} is from before. " if whole else "There is no checkpoint. "
    return f"{kept}Try a lower --lr_init, a longer --warmup_epochs, or --clip_norm 1."
