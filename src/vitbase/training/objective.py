"""What a run minimises: labels, smoothed and mixed as its options say, against the outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitbase.config.config import Config
from vitbase.data.balance import balanced_class_weights, balanced_positive_weights
from vitbase.data.mix import Mix, draw_mix
from vitbase.errors import ConfigError
from vitbase.sources.source import Labels, class_counts
from vitbase.training.losses import build_loss


class Objective:
    """The loss of a run, and what it does to the images and labels of a step before.

    Args:
      labels: of the training images; they decide about class weights.
      num_classes: outputs of the model.
      class_weights: in place of those that the labels give.

    Attributes:
      chance_loss: of guessing, which is outputs that are all zero.
      class_weights: on the device [C]; None: every class counts the same.

    Raises: ConfigError if the loss does not fit the labels.
    """

    def __init__(
        self,
        config: Config,
        labels: Labels,
        num_classes: int,
        device: torch.device,
        class_weights: Tensor | None = None,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        options = config.loss
        self.smoothing = options.label_smoothing
        if labels.ndim == 2 and options.loss == "softmax":
            raise ConfigError(
                "The images have several labels each, which loss softmax cannot learn: give "
                "--loss sigmoid."
            )
        self.chance_loss = math.log(max(num_classes, 2))
        if options.loss == "sigmoid":
            terms = num_classes if options.over_classes == "sum" else 1
            self.chance_loss = terms * math.log(2)
        weights = class_weights
        if options.class_weights == "balanced" and weights is None:
            counts_C = class_counts(labels, num_classes)
            if options.loss == "softmax":
                weights_C = balanced_class_weights(counts_C)
            else:
                weights_C = balanced_positive_weights(counts_C, len(labels))
                self.chance_loss *= float(1 + ((weights_C - 1) * counts_C / len(labels)).mean())
            weights = torch.from_numpy(weights_C).float().to(device)
        self.class_weights = weights
        self._loss = build_loss(
            options.loss,
            num_classes,
            class_weights=weights,
            label_smoothing=options.label_smoothing,
            over_classes=options.over_classes,
            target_threshold=0.0 if options.binary_targets else None,
        )

    def draw_mix(self, epoch: int, step: int) -> Mix:
        """Decide what a step mixes, the same on every rank."""
        augment, data = self.config.augment, self.config.data.preprocess
        return draw_mix(
            self.config.run.seed,
            epoch,
            step,
            (data.height, data.width),
            mixup_alpha=augment.mixup_alpha,
            cutmix_alpha=augment.cutmix_alpha,
            mix_probability=augment.mix_probability,
            mix_switch_probability=augment.mix_switch_probability,
        )

    def loss_sum(self, logits_BC: Tensor, labels: Tensor, mix: Mix) -> Tensor:
        """Return the loss, summed over the images that could be read.

        Args:
          labels: int [B] or float [B, C], negative where the image could not be read.
          mix: what was done to the images.
        """
        if mix.kind == "none" and labels.ndim == 1:
            return self._loss(logits_BC, labels)
        readable_B = labels >= 0 if labels.ndim == 1 else (labels >= 0).all(1)
        targets_BC = mix.targets(labels, self.num_classes, self.smoothing)
        return self._loss(logits_BC, targets_BC, readable_B)
