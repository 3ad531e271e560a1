"""Test-time augmentation: several views of an image, of which a model gives one answer.

The probabilities of the views are averaged, as for AlexNet's ten crops (Krizhevsky et al. 2012,
section 4.1): a logit has a meaning only beside the others of its view, so that their mean would
let the view with the largest numbers decide, while each probability lies between 0 and 1.
Shape legend: B images of a batch, V crops of each, H and W of one view, C classes or channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from vitbase.config.evaluating import ViewsName
from vitbase.config.preprocess import Preprocess
from vitbase.errors import ConfigError


class Views(NamedTuple):
    """Which views of an image: crops, and whether each is seen in a mirror, too."""

    crops: Literal[1, 5]
    mirrored: bool


VIEWS: dict[ViewsName, Views] = {
    "none": Views(1, False),
    "flip": Views(1, True),
    "five_crop": Views(5, False),
    "ten_crop": Views(5, True),
}


def check_views(name: ViewsName, preprocess: Preprocess) -> None:
    """Raise a ConfigError if all crops of every image would be the same."""
    if VIEWS[name].crops > 1 and preprocess.crop_mode == "squash" and preprocess.crop_ratio == 1:
        raise ConfigError(
            f"With crop_mode squash and crop_ratio 1.0 an image is seen whole, so all crops of "
            f"test_time_augmentation {name} would be the same: give --crop_ratio 0.875, or flip."
        )


def average_logits(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images_BHWC: torch.Tensor,
    views: Views,
    *,
    several: bool,
) -> torch.Tensor:
    """Ask a model for each view of some images; average its probabilities.

    Args:
      logits_of: pixels uint8 [B, H, W, C] to logits [B, C].
      images_BHWC: uint8 [B, V * H, W, C], the crops one below the other.
      views: which of them there are.
      several: whether an image may have several labels, so that each class has a sigmoid.
    Returns: [B, C] float, whose softmax (or sigmoid) is the mean of the views'; with a single view
      the logits as they are.
    """
    crops = images_BHWC.chunk(views.crops, dim=1)
    seen = [view for crop in crops for view in ([crop, crop.flip(2)] if views.mirrored else [crop])]
    if len(seen) == 1:
        return logits_of(seen[0])
    # Each view alone: no more memory than without, and a batch of the size that was asked for.
    answers_VBC = torch.stack([logits_of(view.contiguous()).float() for view in seen])
    if several:
        # log p and log (1 - p), averaged as probabilities; their difference is the logit.
        yes, no = (F.logsigmoid(sign * answers_VBC).logsumexp(0) for sign in (1, -1))
        return yes - no
    return answers_VBC.log_softmax(-1).logsumexp(0) - math.log(len(seen))
