"""Checkpoints of a run, and which of them did best."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from vitbase.config.config import Config
from vitbase.errors import CheckpointError
from vitbase.evaluation.run import Sums
from vitbase.files import place_beside, remove_unfinished
from vitbase.runs.checkpoints import (
    CKPT_SUFFIX,
    STATE_FILE,
    WEIGHTS_FILE,
    checkpoint_name,
    state_part,
)
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Journal
from vitbase.runs.progress import Best, Progress
from vitbase.runs.saving import remove_at_once
from vitbase.runs.writer import Copies, Job, Writer
from vitbase.training.guard import Guard
from vitbase.training.schedule import Place
from vitbase.training.step import Learner
from vitbase.weights.files.safetensors import stream_safetensors
from vitbase.weights.save import stream_weights

NATIVE = "native"

Write = Callable[[str, Progress], None]
"""Writes a checkpoint under a name, or has it written. Raises: OSError, MemoryError."""

_LONG_SECONDS = 1.0


class Saver:
    """Writes the checkpoints of a run: training waits for a copy in memory alone.

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
        self.stops = config.checkpoint.on_failed_save == "stop"
        self._writer = Writer()
        self._shared: Path | None = None  # where the ranks write their parts of it
        self._name = ""  # of the checkpoint handed over last
        self._failure: str | None = None  # of that one; of the first rank
        self._best_before = best  # should it fail

    def save(self, place: Place, sums: Sums | None, *, closed: bool = False) -> None:
        """Hand a checkpoint over to be written, unless the run has lost its way (collective).

        If it cannot be written, the run is warned and goes on, or ends by option.

        Args:
          sums: what an evaluation at this place has counted, if there was one.
          closed: whether all is done that is due at the end of this epoch.
        Raises: DivergedError on all ranks if a weight is no number; CheckpointError on all ranks
          if the one before could not be written, and the option says to stop.
        """
        self.guard.look()
        name = checkpoint_name(self.config.run.name, *place.taken)
        self._settle()
        before = self.best
        write, loss_scaler = self.collect(place, self._shared_folder(name))
        if sums is not None:
            score_name, score = sums.score
            if self.best is None or score > self.best.score:
                self.best = Best(name, score, score_name)
        progress = Progress(
            updates=place.updates,
            global_batch=self.learner.layout.global_batch,
            loss_scaler=loss_scaler,
            best=self.best,
            finished=closed and (place.ends_run or self.is_out_of_patience(place)),
            closed=closed or not place.ends_epoch,
            run=self.folder.run_id or "",
        )
        self._name, self._best_before = name, before
        try:
            self.journal.flush()
            write(name, progress)
        except (OSError, MemoryError) as error:
            self._note(getattr(error, "strerror", None) or str(error))

    def collect(self, place: Place, shared: Path | None) -> tuple[Write, dict[str, Any]]:
        """Gather what a checkpoint holds (collective).

        Args:
          shared: the folder into which every rank writes its part of the state, if it does.
        Returns: what has it written; the state of the loss scaler.
        Raises: DivergedError on all ranks if a weight is no number.
        """
        learner, options = self.learner, self.config.checkpoint
        rank, ranks = learner.runtime.rank, learner.runtime.num_ranks
        self.guard.check_weights(learner.model, place.updates)
        weights, state = learner.state.collect(in_parts=shared is not None)

        def state_to(file: BinaryIO) -> None:
            stream_safetensors(file, state.tensors, state.metadata)

        def make_job(name: str, progress: Progress, copies: Copies) -> Job:
            parts = [copies.add(state_part(rank, ranks) if shared else STATE_FILE, state_to)]
            beside = []
            if rank == 0:
                model = learner.state.filled(weights)
                to = partial(
                    stream_weights,
                    model=model,
                    suffix=".safetensors",
                    preprocess=self.config.data.preprocess,
                    labels=self.labels,
                )
                parts.append(copies.add(WEIGHTS_FILE, to))
                if (dialect := options.checkpoint_format) != NATIVE:
                    to = partial(stream_weights, model=model, suffix=CKPT_SUFFIX, dialect=dialect)
                    beside.append(copies.add(f"{name}{CKPT_SUFFIX}", to))
            return Job(
                self.folder.checkpoints / name,
                dataclasses.asdict(progress),
                tuple(parts),
                tuple(beside),
                options.keep_checkpoint_max,
                self.folder.metrics_file,
                rank,
                shared,
                tuple(state_part(r, ranks) for r in range(1, ranks)) if shared else (),
            )

        def write(name: str, progress: Progress) -> None:
            if rank == 0 or shared:
                self._writer.start(partial(make_job, name, progress))

        return write, learner.scaler.state_dict()

    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the training state."""
        return self.learner.replicas.sharded

    def _shared_folder(self, name: str) -> Path | None:
        """Make a folder that every rank can write its part into (collective).

        Returns: None if the state is not sharded, or the ranks do not share a file system: then
          the first rank writes all of it.
        """
        if not self.is_sharded():
            return None
        runtime = self.learner.runtime

        def make() -> Path:
            place = place_beside(self.folder.checkpoints / name)
            with contextlib.suppress(OSError):  # of a full disk, which the writer will meet, too
                remove_unfinished(place.parent)
                place.mkdir()
            return place

        place = runtime.from_first(make)
        self._shared = place if all(runtime.all_gather(place.is_dir())) else None
        return self._shared

    def look(self) -> bool:
        """Warn of a checkpoint that could not be written, on the first rank, as soon as known.

        Returns: whether the run should stop for it.
        """
        self._note(self._writer.result(wait=False))
        return bool(self._failure) and self.stops

    def finish(self) -> None:
        """Wait until the last checkpoint is whole (collective).

        Raises: CheckpointError on all ranks if it could not be written.
        """
        self._settle(last=True)

    def wait(self) -> None:
        """Wait until nothing is under way any more, on this rank."""
        self._note(self._writer.result(wait=True))

    def close(self) -> None:
        """Let what is under way be written, and end its writer."""
        self.wait()
        self._writer.close()

    def _settle(self, *, last: bool = False) -> None:
        """Take in what became of the checkpoint before, and of the best with it (collective).

        Raises: CheckpointError if it could not be written, and the run cannot go on for that.
        """
        started = time.monotonic()
        self.wait()
        waited = time.monotonic() - started
        if waited > _LONG_SECONDS and not last:
            self.journal.say(f"Waited {waited:.0f} s for checkpoint {self._name} to be written.")
        failure, self._failure = self._failure, None

        def judge() -> Best | None:
            if failure and (last or self.stops):
                raise CheckpointError(
                    f"Checkpoint {self._name} could not be written: {failure}. {self._kept()} Make "
                    f"room, or mend what is wrong, and give the same command again."
                )
            return self._best_before if failure else self.best

        self.best = self.learner.runtime.from_first(judge)

    def _note(self, result: str | None) -> None:
        if result:
            self._failure = result
            if self._shared is not None:  # the first rank may be waiting for this one's part
                with contextlib.suppress(OSError):
                    remove_at_once(self._shared)
            self.journal.warn(
                f"WARNING: checkpoint {self._name} could not be written: {result}. {self._kept()}"
            )

    def _kept(self) -> str:
        try:
            whole = self.folder.newest_whole()[0]
        except (CheckpointError, OSError):  # of a disk that fails, which is why we are asked
            return ""
        return f"The last whole one is {whole.path}." if whole else "There is none before it."

    def advice(self) -> str:
        """Say what to do about a run that has lost its way."""
        self.wait()
        whole = self.folder.newest_whole()[0] if self.learner.runtime.is_first else None
        kept = f"Checkpoint {whole.path} is from before. " if whole else "There is no checkpoint. "
        return f"{kept}Try a lower --lr_init, a longer --warmup_epochs, or --clip_norm 1."

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
