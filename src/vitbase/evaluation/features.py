"""Features of images, computed once: what a model's head reads, where nothing below it learns.

Shape legend: V views, N images, D width of a feature, B images of a batch, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess
from vitbase.console import counting
from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.loader import IGNORED_LABEL, BadImage, Batch, EvalLoader, TrainLoader
from vitbase.data.normalize import normalize
from vitbase.data.order import sample_generator
from vitbase.errors import ImageError, WeightsError
from vitbase.evaluation.run import EachOnce, Sums
from vitbase.files import cache_folder, parse_json, written_whole
from vitbase.model.packing import packed
from vitbase.model.vit import VisionTransformer
from vitbase.pulse import is_alive
from vitbase.runtime import Runtime
from vitbase.sources.source import Source
from vitbase.weights.files.safetensors import read_safetensors, write_safetensors

_KEPT_BYTES = 4 << 30
"""Of features in the cache folder; those not used for longest make room."""

_OF_THE_HEAD = {"name", "num_classes", "head_init_std", "head_bias_init"}
"""Fields of an architecture that features do not depend on."""


@dataclasses.dataclass(frozen=True)
class Views:
    """How the views of an image come about: the first as in evaluation, the others as in training.

    Attributes:
      augment: what training does to an image.
      seed: of the run; with view and index it decides what is drawn.
      count: V.
    """

    preprocess: Preprocess
    augment: AugmentSection = dataclasses.field(default_factory=AugmentSection)
    seed: int = 0
    count: int = 1

    def describe(self) -> str:
        """Return all that decides about them, as a text."""
        drawn = [self.augment.model_dump(), self.seed] if self.count > 1 else []
        return json.dumps([self.preprocess.model_dump(), self.count, *drawn])


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What a head reads of the images of a source, in the source's order.

    Attributes:
      values: float32 [V, N, D], on the CPU; zeros for an image that could not be read.
      causes: why an image could not be read, by its index.
    """

    values: torch.Tensor
    causes: dict[int, str]

    def batch(self, source: Source, indices: NDArray[np.int64], view: int, step: int) -> Batch:
        """Return some images as a loader gives them, with features in the place of pixels."""
        bad = [index for index in indices.tolist() if index in self.causes]
        return Batch(
            images=self.values[view, torch.from_numpy(indices)],
            labels=torch.from_numpy(source.labels[indices]),
            positions=torch.from_numpy(indices),
            readable=torch.from_numpy(~np.isin(indices, bad)),
            step=step,
            bad=tuple(BadImage(source.describe(i), self.causes[i]) for i in bad),
        )


class FeatureStore:
    """The features of a source: taken as they were kept, or computed and kept.

    They are kept in the cache folder, and found there by the weights below the head, the content
    of the images, and all that is done to them.

    Args:
      model: on the device; neither sharded nor compiled while features are computed.
      batch_size: images of a forward pass.
      what: they are, for those who watch the progress.
    """

    def __init__(
        self,
        model: VisionTransformer,
        source: Source,
        views: Views,
        runtime: Runtime,
        *,
        batch_size: int,
        num_workers: int | None = None,
        what: str = "features",
    ) -> None:
        self.model, self.source, self.views, self.runtime = model, source, views, runtime
        self.batch_size, self.num_workers, self.what = batch_size, num_workers, what
        self._features: Features | None = None

    @property
    def features(self) -> Features:
        """What was found or computed before."""
        assert self._features is not None
        return self._features

    @property
    def found(self) -> bool:
        """Whether they are there."""
        return self._features is not None

    def find(self) -> None:
        """Look for features that were kept (collective)."""
        self._features = self.runtime.from_first(self._read)

    def compute(self) -> None:
        """Compute the features, and keep them, if they were not found (collective)."""
        if self._features is not None:
            return
        was_training = self.model.training
        self.model.eval()
        causes: dict[int, str] = {}
        # The packed layers are of float32.
        packing = packed(self.model) if self.runtime.precision == "fp32" else nullcontext()
        with counting() as show, torch.no_grad(), packing:
            values = [self._compute(view, causes, show) for view in range(self.views.count)]
        self.model.train(was_training)
        for others in self.runtime.all_gather(causes):
            causes |= others
        self._features = Features(torch.stack(values), causes)
        if self.runtime.is_first and self._place is not None:
            with suppress(OSError):
                _write(self._place, self._features)

    def _compute(
        self, view: int, causes: dict[int, str], show: Callable[[str, int, int], None]
    ) -> torch.Tensor:
        """Compute a view of every image: float32 [N, D]."""
        runtime, images, views = self.runtime, len(self.source), self.views
        done, total = view * images, views.count * images
        part_ND: torch.Tensor | None = None
        for batch in self._loader(view):
            (pixels,) = runtime.send(batch.images)
            with runtime.autocast():
                features_BD = self.model.forward_features(normalize(pixels, views.preprocess))
            if part_ND is None:
                part_ND = torch.zeros(images, features_BD.shape[1], device=runtime.device)
            readable = batch.readable.to(runtime.device)
            part_ND[batch.positions.to(runtime.device)[readable]] = features_BD[readable].float()
            unread = batch.positions[~batch.readable].tolist()
            causes |= {i: image.cause for i, image in zip(unread, batch.bad, strict=True)}
            done += runtime.num_ranks * len(batch.positions)
            is_alive()
            if runtime.is_first:
                show(self.what, min(done, total), total)
        width = max(runtime.all_gather(0 if part_ND is None else part_ND.shape[1]))
        if part_ND is None:  # more ranks than images
            part_ND = torch.zeros(images, width, device=runtime.device)
        # Each image is on one rank, and zero on the others: such sums are exact.
        return runtime.all_reduce(part_ND).cpu()

    def _loader(self, view: int) -> EvalLoader:
        views, runtime = self.views, self.runtime

        def draw(index: int) -> np.random.Generator:
            return sample_generator(views.seed, view, index)

        first = EvalTransform(views.preprocess)
        return EvalLoader(
            self.source,
            TrainTransform(views.preprocess, views.augment) if view else first,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=runtime.pin_memory,
            rank=runtime.rank,
            num_ranks=runtime.num_ranks,
            generators=draw if view else None,
        )

    @functools.cached_property
    def _place(self) -> Path | None:
        """The file that keeps these features; None where they are too many, or have no place."""
        folder, source, views = cache_folder(), self.source, self.views
        size = 4 * views.count * len(source) * self.model.spec.width
        if folder is None or size > _KEPT_BYTES // 2:
            return None
        key = blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            if not name.startswith("head."):
                key.update(name.encode())
                key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        spec = {k: v for k, v in self.model.spec.to_dict().items() if k not in _OF_THE_HEAD}
        key.update(repr((spec, views.describe(), self.runtime.precision)).encode())
        for row in source.rows.tolist():
            is_alive()
            try:
                key.update(source.images.digest(row))
            except ImageError as error:
                key.update(str(error).encode())
        return folder / f"features-{key.hexdigest()}.safetensors"

    def _read(self) -> Features | None:
        """Read kept features; None if there are none, or they are damaged."""
        place = self._place
        if place is None or not place.is_file():
            return None
        try:
            file = read_safetensors(place)
            values_VND = file.tensors["values"].read()
            stored = parse_json(file.metadata["causes"])
            causes = {int(index): str(cause) for index, cause in stored.items()}
            place.touch()
        except (OSError, ValueError, KeyError, AttributeError, WeightsError):
            return None
        fits = values_VND.shape[:2] == (self.views.count, len(self.source))
        return Features(values_VND, causes) if values_VND.ndim == 3 and fits else None


def _write(place: Path, features: Features) -> None:
    """Keep features, and let go of those that were not used for longest. Raises: OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place) as beside:
        beside.touch(mode=0o600)  # of images that may be private
        causes = json.dumps(features.causes)
        write_safetensors(beside, {"values": features.values}, {"causes": causes})
    by_use = sorted(place.parent.glob("features-*.safetensors"), key=lambda p: -p.stat().st_mtime)
    sizes = np.cumsum([path.stat().st_size for path in by_use])
    for path, size in zip(by_use, sizes.tolist(), strict=True):
        if size > _KEPT_BYTES:
            path.unlink(missing_ok=True)


class FeatureLoader(TrainLoader):
    """Training images as their features: the same order, in each epoch another view of them.

    Args: where their features are, when the first epoch begins; all others as of
      :class:`TrainLoader`.
    """

    def __init__(self, store: FeatureStore, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.store = store

    def _batches_of(self, epoch: int, start_step: int) -> Iterator[Batch]:
        features = self.store.features
        for job in self._jobs(epoch, start_step):
            view = epoch % len(features.values)
            batch = features.batch(self.source, job.indices, view, job.step)
            batch.labels[~batch.readable] = IGNORED_LABEL
            yield dataclasses.replace(batch, positions=torch.from_numpy(job.positions))


def evaluate_features(
    model: VisionTransformer,
    features: Features,
    source: Source,
    runtime: Runtime,
    batch_size: int,
    on_unreadable: Callable[[str], None] = lambda line: None,
) -> Sums:
    """Evaluate a model's head on the first view of every image (collective).

    Args, result: as of `evaluate_model`, with features in the place of what is done to images.
    """
    assert model.head is not None
    counted = EachOnce(source)
    images, rank, ranks = len(source), runtime.rank, runtime.num_ranks
    own = np.arange(rank * images // ranks, (rank + 1) * images // ranks)
    with torch.inference_mode():
        for first in range(0, len(own), batch_size):
            batch = features.batch(source, own[first : first + batch_size], 0, 0)
            (values_BD,) = runtime.send(batch.images)
            with runtime.autocast():
                logits_BC = model.head(values_BD)
            counted.add(batch, logits_BC, on_unreadable)
    return counted.total(runtime)
