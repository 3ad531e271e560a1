"""A head that learns on features computed once, since the backbone below it is frozen."""

from __future__ import annotations

import torch

from vitbase.config.config import Config
from vitbase.data.normalize import normalize
from vitbase.evaluation.features import FeatureStore, Views
from vitbase.model.vit import VisionTransformer
from vitbase.runtime import Runtime
from vitbase.sources.open import TrainVal

_USUAL_SIZE = 768.0
"""Mean sum of squares of a feature that recipes' rates are meant for: ViT-B's width, as its last
norm leaves it."""


class Frozen:
    """The features of a run's images.

    Args:
      model: on the device, before anything is done to it.
    """

    def __init__(
        self, model: VisionTransformer, data: TrainVal, config: Config, runtime: Runtime
    ) -> None:
        views = Views(
            config.data.preprocess, config.augment, config.run.seed, config.model.frozen_views or 1
        )
        self.batch_size = config.data.eval_batch_size or config.data.batch_size
        self.model, self.runtime, self.views = model, runtime, views
        self.train, self.val = (
            FeatureStore(
                model,
                source,
                each,
                runtime,
                batch_size=self.batch_size,
                num_workers=config.data.num_workers,
                what=f"features of the {what} images",
            )
            for source, each, what in (
                (data.train, views, "training"),
                (data.val, Views(views.preprocess), "evaluation"),
            )
        )

    def find(self) -> None:
        """Look for features that were kept (collective)."""
        for store in (self.train, self.val):
            store.find()

    def compute(self) -> None:
        """Compute those that were not found (collective)."""
        for store in (self.train, self.val):
            store.compute()

    def rate_factor(self) -> float:
        """Return what a rate for features of the usual size is to be multiplied with for these.

        A step of plain gradient descent grows with the square of its inputs: features twice as
        large need a fourth of the rate.
        """
        values_ND = self.train.features.values[0]
        size = float(values_ND.square().sum(1, dtype=torch.float64).mean())
        return _USUAL_SIZE / size if size > 0 else 1.0

    @property
    def images_to_compute(self) -> int:
        """Views of images whose features were not kept from an earlier run."""
        stores = (self.train, self.val)
        return sum(len(store.source) * store.views.count for store in stores if not store.found)

    def rehearse(self, count: int) -> None:
        """Compute the features of images that show nothing, to see how long it takes."""
        preprocess = self.views.preprocess
        shape = (count, preprocess.height, preprocess.width, preprocess.channels)
        (images,) = self.runtime.send(torch.zeros(shape, dtype=torch.uint8))
        with torch.no_grad(), self.runtime.autocast():
            self.model.forward_features(normalize(images, preprocess))
