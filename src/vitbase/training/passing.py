"""Updates whose loss or gradient is no number: passed over, kept to be looked at, and bounded.

The device leaves everything as it was (`Learner.step`); the host learns of it when the device has
the next update's gradients to compute already, before these change anything. All ranks learn it at
the same place, since they have the same gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch

from vitbase.config.config import Config
from vitbase.data.loader import TrainLoader
from vitbase.errors import CheckpointError, WeightsError
from vitbase.runs import checkpoints
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.folder import RunFolder
from vitbase.runs.identity import find_stranger
from vitbase.runs.journal import Journal
from vitbase.runs.passed_over import PassedOver
from vitbase.runs.progress import Progress, read_progress
from vitbase.runs.saving import remove_at_once
from vitbase.training.blackbox import write_box
from vitbase.training.guard import NAMED, DivergedError, Guard, Jump, listed
from vitbase.training.state import Readers, stored_tensors
from vitbase.training.step import Learner, Taken
from vitbase.weights.load import load_model

_MOST_REWINDS = 3
"""Ways back to one checkpoint: a run that finds no way on from there shall not try for ever."""


@dataclasses.dataclass(frozen=True)
class _Pending:
    """An update of which the host does not know yet how it went."""

    update: int
    taken: Taken
    flags: Callable[[], list[float]]


class PassingGuard(Guard):
    """Watches the updates of a learner, and decides what becomes of those that are no numbers.

    Args: as of :class:`Guard`; whose updates they are; where they are written down.
      labels: the class names.
      known: what the run has passed over before.
      wait: returns when no checkpoint is under way any more.
    """

    def __init__(
        self,
        learner: Learner,
        loader: TrainLoader,
        advice: Callable[[], str],
        folder: RunFolder,
        journal: Journal,
        config: Config,
        labels: tuple[str, ...],
        known: PassedOver,
        wait: Callable[[], None],
    ) -> None:
        super().__init__(learner.runtime, loader, advice)
        self.learner, self.folder, self.journal = learner, folder, journal
        self.config, self.labels, self.known, self.wait = config, labels, known, wait
        options = config.optimizer
        self.most, self.rewinds = options.max_nonfinite_updates, options.on_nonfinite == "rewind"
        self._pending: _Pending | None = None
        self._first = ""  # what is said of the first update of those in a row

    def saw(self, update: int, taken: Taken) -> None:
        """Take in an update that was just taken, and ask the device how it went."""
        assert taken.flags is not None
        self._pending = _Pending(update, taken, self.runtime.start_read(taken.flags))

    def look(self) -> None:
        """As :meth:`settle`, which is never too early."""
        self.settle()

    def check_place(self, updates: int) -> None:
        """Check that the update which follows so many is to be taken. Raises: Jump if not."""
        beyond = self.known.beyond(updates)
        if beyond > updates:
            self.journal.say(
                f"Updates {updates + 1} to {beyond} are passed over, as decided before"
            )
            raise Jump(beyond)

    def settle(self) -> None:
        """Learn how the last update went, before the weights change again (collective).

        Raises: DivergedError on all ranks if it was one too many without a number; or Jump, after
          going back to a checkpoint.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        passed_over, loss_scale = pending.flags()
        if not passed_over:
            return
        update, taken = pending.update, pending.taken
        self.learner.take_back()
        loss_is_finite, bad, sound = self._gather(update, taken)
        if not loss_is_finite:
            images_of_rank = self.loader.global_batch // self.runtime.num_ranks
            self.lost.append((taken.loss_sum, images_of_rank - len(taken.bad)))
        elif loss_scale > 1:  # half precision finds its scale; no alarm
            return
        row = (*self.known.row_before(update), update)
        self._keep(self.known.with_nonfinite(update))
        what = self._describe(update, loss_is_finite, bad, sound)
        if len(row) == 1 or not self._first:
            self._first = what
        box = self._write_box(update, taken)
        self.journal.say(f"Warning: {what} It is passed over, nothing has changed.{box}")
        if len(row) < self.most:
            return
        several = f" So it went from update {row[0] + 1} on, {len(row)} in a row; none was applied."
        told = self._first + (several if len(row) > 1 else " It was not applied.")
        if not self.rewinds:
            raise DivergedError(f"{told} {self.advice()}").everywhere()
        self._go_back(row[0], update + 1, told)

    def _gather(self, update: int, taken: Taken) -> tuple[bool, list[str], list[str]]:
        """Gather whether the loss was a number, and the images whose outputs were not, and were."""
        epoch = update // self.loader.steps_per_epoch
        places: dict[bool, list[int]] = {True: [], False: []}
        for positions_B, finite_B in taken.passes:
            for position, finite in zip(positions_B.tolist(), finite_B.tolist(), strict=True):
                places[finite].append(position)
        bad = self.loader.describe_positions(epoch, places[False])
        sound = self.loader.describe_positions(epoch, places[True][:NAMED])
        found = self.runtime.all_gather((bool(torch.isfinite(taken.loss_sum)), bad, sound))
        finite_R, bad_R, sound_R = zip(*found, strict=True)
        return all(finite_R), list(chain(*bad_R)), list(chain(*sound_R))

    def _describe(self, update: int, loss_is_finite: bool, bad: list[str], sound: list[str]) -> str:
        what = "gradient" if loss_is_finite else "loss"
        text = f"The {what} became NaN or infinite at update {update + 1}."
        if bad:
            return f"{text} {self.describe(bad)}"
        images = self.loader.global_batch
        return f"{text} All outputs are numbers, of its {images} images: {listed(sound, images)}."

    def _write_box(self, update: int, taken: Taken) -> str:
        run = self.folder.path
        try:
            box = write_box(run, update, taken, self.learner, self.loader, self.config, self.labels)
        except (OSError, WeightsError) as error:  # of the first rank; the run is worth more
            return f" What it has seen could not be written to {run}: {error}."
        if box is None:
            return ""
        return f" `vitbase debug replay {box}` repeats it."

    def _keep(self, known: PassedOver) -> None:
        def write() -> None:
            try:
                known.write(self.folder.path)
            except OSError as error:
                raise CheckpointError(
                    f"Cannot write to {self.folder.path}: {error.strerror}. What the run passes "
                    f"over must be known when it is continued."
                ) from None

        self.known = known
        self.runtime.from_first(write)

    def _go_back(self, first: int, to: int, told: str) -> None:
        """Go back to the last checkpoint before an update (collective). Raises: Jump."""

        def find() -> tuple[Checkpoint, Progress] | None:
            checkpoint, _ = self.folder.newest_whole(first)
            return (checkpoint, read_progress(checkpoint.path)) if checkpoint else None

        self.wait()
        found = self.runtime.from_first(find)
        if found is None:
            raise DivergedError(f"{told} {self.advice()}").everywhere()
        (kept, progress) = found
        path, back = kept.path, progress.updates
        if sum(before == back for before, _ in self.known.rewinds) >= _MOST_REWINDS:
            raise DivergedError(
                f"{told} The run went back to {path} {_MOST_REWINDS} times, and found no way on. "
                f"{self.advice()}"
            ).everywhere()
        self.learner.restore(
            stored_tensors(path), path, progress.loss_scaler, lambda: _weights_of(path)
        )

        def cut_back() -> None:
            # In this order: killed in between, the run comes here again by the same way.
            self.folder.cut_metrics_back(back)
            for checkpoint in checkpoints.list_checkpoints(self.folder.checkpoints):
                stranger = find_stranger(checkpoint.path, self.folder.run_id)
                if checkpoint > kept and stranger is None:
                    remove_at_once(checkpoint.path)
                    # The next one to be written names the best of those that are left.
                    (self.folder.checkpoints / checkpoints.BEST_FILE).unlink(missing_ok=True)

        def cut_back_or_say() -> None:
            with self.folder.naming_faults():
                cut_back()

        self.runtime.from_first(cut_back_or_say)
        self._keep(self.known.with_rewind(back, to))
        self._first = ""
        self.journal.say(
            f"Warning: {told} Back to {path}, and on from there without the images since: "
            f"updates {back + 1} to {to} are passed over"
        )
        raise Jump(to, progress)


def _weights_of(checkpoint: Path) -> Readers:
    state = load_model(checkpoint / checkpoints.WEIGHTS_FILE).model.state_dict()

    def reader(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    return {name: reader(tensor) for name, tensor in state.items()}
