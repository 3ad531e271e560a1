"""What the loop tells of where it stands, for whoever watches that it moves."""

from __future__ import annotations

from collections.abc import Iterator

from vitbase.data.loader import Batch, TrainLoader
from vitbase.pulse import stands_at
from vitbase.training.schedule import Place


class Signs:
    """Tells every place of a run to `pulse`, the same on every rank.

    The first update of a process, and its first evaluation, may take longer than those after them:
    they compile.
    """

    def __init__(self) -> None:
        self._has_updated = self._has_evaluated = False

    def of_update(
        self, place: Place, loader: TrainLoader, batches: Iterator[Batch]
    ) -> Iterator[Batch]:
        """Begin the update that follows a place. Returns: its batches, of which it tells each."""
        update = f"update {place.updates + 1} of {place.total_steps}"
        seldom, self._has_updated = not self._has_updated, True

        def details() -> str:
            return loader.describe_step(place.epoch, place.step)

        def told() -> Iterator[Batch]:
            while True:
                stands_at(f"{update}, which waits for its images", seldom=seldom, details=details)
                batch = next(batches, None)
                if batch is None:
                    return
                stands_at(f"{update}, which computes", seldom=seldom, details=details)
                yield batch

        stands_at(f"{update}, which begins", seldom=seldom, details=details)
        return told()

    def evaluates(self, place: Place, batches: int) -> None:
        """Tell how far the evaluation at a place has come."""
        what = f"the evaluation after update {place.updates}, {batches} batches of which are done"
        stands_at(what, seldom=not self._has_evaluated)

    def has_evaluated(self) -> None:
        """Tell that there was an evaluation."""
        self._has_evaluated = True

    def saves(self, place: Place) -> None:
        """Tell that a checkpoint is written."""
        stands_at(f"the checkpoint after update {place.updates}, which is written", seldom=True)
