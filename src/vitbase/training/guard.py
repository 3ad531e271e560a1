"""Watching that a run stays sound, without making the device wait for the answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from vitbase.data.loader import TrainLoader
from vitbase.errors import DataError, VitbaseError
from vitbase.runtime import Runtime
from vitbase.training.sharded import whole

_NAMED = 8  # images named in a message


class DivergedError(VitbaseError):
    """The loss, or the weights, are no longer numbers."""


class Guard:
    """Remembers what was seen since the last look, and ends a run that has lost its way.

    Args:
      loader: whose images are trained on.
      advice: says what to do about a run that has lost its way; called on every rank.
    """

    def __init__(self, runtime: Runtime, loader: TrainLoader, advice: Callable[[], str]) -> None:
        self.runtime, self.loader, self.advice = runtime, loader, advice
        self._seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._unreadable = 0  # of the epoch under way, on all ranks, as far as it was told

    def begin_epoch(self) -> None:
        """Count unreadable images anew."""
        self._unreadable = 0

    def watch(self, update: int, positions_B: torch.Tensor, finite_B: torch.Tensor) -> None:
        """Remember a forward pass: the update it belongs to, where its images stand in the epoch,
        and whether their outputs are numbers.
        """
        self._seen.append((update, positions_B, finite_B))

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
            more = f", and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
            raise DivergedError(
                f"The loss became NaN or infinite at update {first + 1}. The outputs are no "
                f"numbers for {len(images)} of its {self.loader.global_batch} images: "
                f"{', '.join(images[:_NAMED])}{more}. {self.advice()}"
            ).everywhere()

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
