"""Watching that a run stays sound, without making the device wait for the answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from vitbase.data.loader import TrainLoader
from vitbase.errors import DataError, VitbaseError
from vitbase.runs.progress import Progress
from vitbase.runtime import Runtime
from vitbase.training.sharded import whole
from vitbase.training.step import Taken

NAMED = 8
"""Images that a message names."""


class DivergedError(VitbaseError):
    """The loss, or the weights, are no longer numbers."""


class Jump(BaseException):
    """No error: the run goes on at another place.

    Attributes:
      updates: that come before this place.
      progress: of the checkpoint whose state it has taken up; None: it keeps the state it has.
    """

    def __init__(self, updates: int, progress: Progress | None = None) -> None:
        super().__init__(updates)
        self.updates, self.progress = updates, progress


class Guard:
    """Remembers what was seen since the last look, and ends a run that has lost its way.

    Args:
      loader: whose images are trained on.
      advice: says what to do about a run that has lost its way; called on every rank.

    Attributes:
      lost: of updates whose loss was no number on some rank, this rank's loss and its images: to be
        left out of means by who takes them from here.
    """

    def __init__(self, runtime: Runtime, loader: TrainLoader, advice: Callable[[], str]) -> None:
        self.lost: list[tuple[torch.Tensor, int]] = []
        self.runtime, self.loader, self.advice = runtime, loader, advice
        self._seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._unreadable = 0  # of the epoch under way, on all ranks, as far as it was told

    def begin_epoch(self) -> None:
        """Count unreadable images, and what was lost, anew."""
        self._unreadable = 0
        self.lost.clear()

    def watch(self, update: int, positions_B: torch.Tensor, finite_B: torch.Tensor) -> None:
        """Remember a forward pass: the update it belongs to, where its images stand in the epoch,
        and whether their outputs are numbers.
        """
        self._seen.append((update, positions_B, finite_B))

    def saw(self, update: int, taken: Taken) -> None:
        """Take in an update that was just taken."""
        for positions, finite in taken.passes:
            self.watch(update, positions, finite)

    def settle(self) -> None:
        """Learn how the update before went, before the weights change again (collective)."""

    def check_place(self, updates: int) -> None:
        """Check that the update which follows so many is to be taken. Raises: Jump if not."""

    def look(self) -> None:
        """Check what was seen since the last look (collective).

        Raises: DivergedError on all ranks, naming the first update and its images.
        """
        seen, self._seen = self._seen, []
        found: list[tuple[int, str]] = []
        for update, positions_B, finite_B in seen:
            if found and update > found[0][0]:
                break
            epoch = update // self.loader.steps_per_epoch
            bad = positions_B[~finite_B.cpu()].tolist()
            found += [(update, self.loader.describe_position(epoch, p)) for p in bad]
        everywhere = [item for part in self.runtime.all_gather(found) for item in part]
        if everywhere:
            first = min(update for update, _ in everywhere)
            images = [image for update, image in everywhere if update == first]
            raise DivergedError(
                f"The loss became NaN or infinite at update {first + 1}. "
                f"{self.describe(images)} {self.advice()}"
            ).everywhere()

    def describe(self, images: list[str]) -> str:
        """Name the images of an update whose outputs are no numbers."""
        return (
            f"The outputs are no numbers for {len(images)} of its {self.loader.global_batch} "
            f"images: {listed(images, len(images))}."
        )

    def check_weights(self, model: nn.Module, update: int) -> None:
        """Check that no weight has become infinite or NaN (collective): before it is stored.

        Raises: DivergedError on all ranks.
        """
        weights = [parameter.detach() for parameter in model.parameters()]
        norm = float(whole(nn.utils.get_total_norm(weights)))
        if not math.isfinite(norm):
            raise DivergedError(
                f"The weights are no numbers after update {update}. {self.advice()}"
            ).everywhere()

    def check_readable(self, more: int) -> None:
        """Check that no more images of an epoch are unreadable than the run tolerates.

        Args:
          more: unreadable images on all ranks since the last call, the same number on each.
        Raises: DataError on all ranks.
        """
        self._unreadable += more
        most = self.loader.max_bad_images
        if self._unreadable > most:
            where = ", on all ranks together" if self.runtime.num_ranks > 1 else ""
            raise DataError(
                f"{self._unreadable} images of this epoch could not be read{where}; max_bad_images "
                f"allows {most}. Mend or remove them, or raise --max_bad_images."
            ).everywhere()


def listed(images: list[str], count: int) -> str:
    """Return the first names of so many images."""
    more = f", and {count - NAMED} more" if count > NAMED else ""
    return ", ".join(images[:NAMED]) + more
