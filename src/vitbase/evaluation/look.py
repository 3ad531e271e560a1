"""How a model looks at images in an evaluation, and what is counted of its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from vitbase.data.augment import EvalTransform
from vitbase.evaluation.real import ValidLabelSums
from vitbase.evaluation.speed import Speed
from vitbase.evaluation.views import VIEWS, Views


@dataclasses.dataclass(frozen=True)
class Look:
    """How a model looks at images, and what is counted of its answers.

    Attributes:
      transform: what an image becomes.
      views: of each image, in what the transform makes.
      restrict: logits of all outputs to those that compete, [B, C] to [B, S].
      kind: what is counted; None as the labels have it.
      speed: to which times are added.
    """

    transform: EvalTransform
    views: Views = VIEWS["none"]
    restrict: Callable[[torch.Tensor], torch.Tensor] = lambda logits_BC: logits_BC
    kind: type[ValidLabelSums] | None = None
    speed: Speed = dataclasses.field(default_factory=Speed)
