"""Watching that a run stays finite, without making the device wait for the answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from vitbase.data.loader import TrainLoader
from vitbase.errors import VitbaseError
from vitbase.runtime import Runtime
from vitbase.training.sharded import whole

_NAMED = 8  # images named in a message


class DivergedError(VitbaseError):
    """The loss, or the weights, are no longer numbers."""


class Guard:
    """Remembers, since the last look, which images gave outputs that are no numbers."""

    def __init__(self, runtime: Runtime, loader: TrainLoader) -> None:
        self.runtime, self.loader = runtime, loader
        self._seen: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []

    def watch(
        self, update: int, epoch: int, positions_B: torch.Tensor, logits_BC: torch.Tensor
    ) -> None:
        """Remember a forward pass: the update it belongs to, and where its images stand."""
        finite_B = torch.isfinite(logits_BC.detach()).all(dim=1)
        self._seen.append((update, epoch, positions_B, finite_B))

    def look(self, advice: Callable[[], str]) -> None:
        """Check what was seen since the last look (collective).

        Raises: DivergedError on all ranks, naming the first update and its images.
        """
        seen, self._seen = self._seen, []
        found: list[tuple[int, str]] = []
        for update, epoch, positions_B, finite_B in seen:
            if found and update > found[0][0]:
                break
            bad = positions_B[~finite_B.cpu()].tolist()
            found += [(update, self.loader.describe_position(epoch, p)) for p in bad]
        everywhere = [item for part in self.runtime.gather(found) for item in part]
        if everywhere:
            first = min(update for update, _ in everywhere)
            images = [image for update, image in everywhere if update == first]
            more = f", and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
            error = DivergedError(
                f"The loss became NaN or infinite at update {first + 1}. The outputs are no "
                f"numbers for {len(images)} of its {self.loader.global_batch} images: "
                f"{', '.join(images[:_NAMED])}{more}. {advice()}"
            )
            raise error.everywhere()

    def check_weights(self, model: nn.Module, update: int, advice: Callable[[], str]) -> None:
        """Check that no weight has become infinite or NaN (collective): before it is stored.

        Raises: DivergedError on all ranks.
        """
        weights = [parameter.detach() for parameter in model.parameters()]
        norm = float(whole(nn.utils.get_total_norm(weights)))
        if not math.isfinite(norm):
            error = DivergedError(f"The weights are no numbers after update {update}. {advice()}")
            raise error.everywhere()
