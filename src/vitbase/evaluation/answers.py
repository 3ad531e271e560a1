"""What a model answered to each image, kept as it comes, on each rank; then of all ranks, in order.

Little is kept of an image, whatever the number of classes: memory is of images.
Shape legend: B images of a batch, N all images, C classes, K the 5 most probable ones, G points of
the grid of temperatures, D width of a feature.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from vitbase.data.loader import Batch
from vitbase.evaluation.calibration import LOG_BETAS, Calibration, Sharpness
from vitbase.evaluation.figures import Answered
from vitbase.evaluation.metrics import rank_classes
from vitbase.evaluation.predictions import K, Predictions
from vitbase.runtime import Runtime
from vitbase.sources.source import Source

_CELLS = 1 << 22  # logits of a part of a batch that are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What was answered to every image of a source, in its order; an array an attribute.

    Attributes:
      columns: by the names of what :func:`_describe_batch` returns, each [N, ...].
      classes: C
      causes: why an image could not be read, by its index.
    """

    columns: dict[str, NDArray[Any]]
    classes: int
    causes: dict[int, str]

    def answered(self, source: Source) -> Answered:
        """Return what figures are made of, where images have a label each."""
        columns = self.columns
        labels = source.labels.astype(np.int64)
        return Answered(
            labels=labels,
            predictions=columns["top"][:, 0],
            in_top5=(columns["top"] == labels[:, None]).any(axis=1),
            confidence=columns["p"][:, 0],
            loss=columns["loss"],
            classes=self.classes,
        )

    def calibration(self, source: Source) -> Calibration | None:
        """Fit a temperature; None if the grid was not kept, or no image could be read."""
        if "values" not in self.columns:
            return None
        columns, read = self.columns, self.columns["readable"]
        right = columns["top"][:, 0] == source.labels
        sharpness = Sharpness(columns["values"], columns["slopes"], columns["margin"])
        confidence = columns["p"][:, 0]
        return Calibration.of(
            confidence[read], right[read], columns["loss"][read], sharpness.take(read)
        )

    def class_names(self, source: Source) -> tuple[str, ...]:
        """Return the names of all outputs of the model: numbers, where the data has none."""
        names = source.class_names
        return (*names, *(str(number) for number in range(len(names), self.classes)))

    def predictions(self, source: Source, meta: dict[str, Any]) -> Predictions:
        """Return them with the images' names and labels, to be kept in a file."""
        columns, images = self.columns, len(source)
        several = source.labels.ndim == 2
        return Predictions(
            ids=[source.name(index) for index in range(images)],
            labels=np.full(images, -1) if several else source.labels.astype(np.int64),
            predictions=columns["top"][:, 0],
            top_K=columns["top"],
            p_K=columns["p"],
            p_label=columns["p_label"],
            loss=columns["loss"],
            readable=columns["readable"],
            classes=self.class_names(source),
            meta=meta,
            features=columns.get("features"),
            label_sets=[tuple(np.flatnonzero(row).tolist()) for row in source.labels]
            if several
            else None,
        )


class Keep(NamedTuple):
    """What to keep of the answer to each image besides its most probable classes."""

    temperatures: bool = False  # what a temperature is fitted with
    features: bool = False  # what the head reads


NOTHING = Keep()


class Keeper:
    """Keeps the answers of this rank, a batch after the other."""

    def __init__(self, keep: Keep = NOTHING) -> None:
        self.temperatures, self.features = keep
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._causes: dict[int, str] = {}
        self._read_by_head: list[torch.Tensor] = []
        self._classes = 0

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep what the head of a model reads meanwhile, if that was asked for."""
        head = getattr(model, "head", None)
        if not self.features or head is None:
            yield
            return
        hook = head.register_forward_pre_hook(lambda _, given: self._read_by_head.append(given[0]))
        try:
            yield
        finally:
            hook.remove()

    def add(self, batch: Batch, logits_BC: torch.Tensor) -> None:
        """Keep the answers to a batch."""
        self._classes = logits_BC.shape[1]
        rows = max(1, _CELLS // (self._classes * (len(LOG_BETAS) if self.temperatures else 1)))
        parts = [
            _describe_batch(*part, temperatures=self.temperatures)
            for part in zip(
                logits_BC.float().split(rows),
                batch.labels.split(rows),
                batch.readable.split(rows),
                strict=True,
            )
        ]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns["position"] = batch.positions.numpy(force=True)
        if self._read_by_head:  # of several views of each image, their mean
            read = torch.stack([each.float() for each in self._read_by_head]).mean(dim=0)
            columns["features"] = read.numpy(force=True) * columns["readable"][:, None]
            self._read_by_head.clear()
        unread = batch.positions[~batch.readable].tolist()
        self._causes |= {i: image.cause for i, image in zip(unread, batch.bad, strict=True)}
        self._parts.append(columns)

    def gather(self, runtime: Runtime) -> Answers:
        """Put the answers of all ranks together, each rank having a part (collective)."""
        own = [(self._parts, self._causes, self._classes)] if self._parts else []
        held = [part for some in runtime.all_gather(own) for part in some]
        parts = [part for some, _, _ in held for part in some]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = columns.pop("position").argsort(kind="stable")
        causes = {index: cause for _, found, _ in held for index, cause in found.items()}
        return Answers(
            {name: column[order] for name, column in columns.items()}, held[0][2], causes
        )


def _describe_batch(
    logits_BC: torch.Tensor, labels: torch.Tensor, readable_B: torch.Tensor, *, temperatures: bool
) -> dict[str, NDArray[Any]]:
    """Return what is kept of some images, each [B, ...]; -1 and nan of one that was not read.

    Args:
      labels: int64 [B]; or [B, C] of 0 and 1, where each class has a probability of its own.
    """
    count = len(logits_BC)
    unread_B = ~readable_B
    top_BK = torch.full((count, K), -1)
    p_BK = torch.full((count, K), torch.nan)
    found_BK = rank_classes(logits_BC, K)
    columns: dict[str, torch.Tensor] = {}
    if labels.ndim == 2:
        p_BC = logits_BC.sigmoid()
        losses_BC = F.binary_cross_entropy_with_logits(logits_BC, labels.float(), reduction="none")
        loss_B, p_label_B = losses_BC.mean(dim=1), torch.full((count,), torch.nan)
    else:
        p_BC = logits_BC.softmax(dim=1)
        loss_B = F.cross_entropy(logits_BC, labels, reduction="none")
        p_label_B = p_BC.gather(1, labels[:, None])[:, 0]
        if temperatures:
            columns |= _sharpness(logits_BC, labels)
    top_BK[:, : found_BK.shape[1]] = found_BK
    p_BK[:, : found_BK.shape[1]] = p_BC.gather(1, found_BK)
    top_BK[unread_B], p_BK[unread_B] = -1, torch.nan
    loss_B[unread_B] = p_label_B[unread_B] = torch.nan
    columns |= {"top": top_BK, "p": p_BK, "p_label": p_label_B, "loss": loss_B}
    columns["readable"] = readable_B
    return {name: column.numpy(force=True) for name, column in columns.items()}


def _sharpness(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the columns of :class:`Sharpness`."""
    below_BC = logits_BC - logits_BC.amax(dim=1, keepdim=True)
    betas_G = torch.from_numpy(np.exp(LOG_BETAS)).float()
    scaled_BGC = betas_G[:, None] * below_BC[:, None, :]
    powers_BGC = scaled_BGC.exp()
    sums_BG = powers_BGC.sum(dim=2)
    slopes_BG = (powers_BGC.mul_(scaled_BGC)).sum(dim=2) / sums_BG
    margins_B = -below_BC.gather(1, labels_B[:, None])[:, 0]
    return {"values": sums_BG.log(), "slopes": slopes_BG, "margin": margins_B}
