"""How other packages prepare the images that they evaluate on: a protocol is a row of one table.

A protocol sets fields of the preprocessing; options that somebody gives win over it, and what it
does not set is as the weights have it, the image's size first of all. Each row is held against the
package itself, pixel by pixel, within its own tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitbase.config.config import Config
from vitbase.config.preprocess import OPTION_OF, Preprocess
from vitbase.data.augment import EvalTransform
from vitbase.data.resize import Rounding
from vitbase.errors import ConfigError
from vitbase.evaluation.views import VIEWS, check_views

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SQUARE = {"crop_mode": "squash", "crop_ratio": 1.0, "interpolation": "bilinear", **_HALF}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way of preparing images.

    Attributes:
      sets: fields of the preprocessing, and their values.
      source: where it is written down.
      tolerance: levels of 255 by which a pixel may differ from the package's own.
      sampled: TensorFlow's resize without antialiasing, and how its numbers are rounded.
      whole_from: the side from which on images are not cropped.
    """

    sets: Mapping[str, Any]
    source: str
    tolerance: int
    sampled: Rounding | None = None
    whole_from: int | None = None

    def at(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the fields that it sets for images of a size (height, width)."""
        whole = self.whole_from is not None and min(size) >= self.whole_from
        return {**self.sets, **({"crop_ratio": 1.0} if whole else {})}


PROTOCOLS: Mapping[str, Protocol] = {
    "weights": Protocol({}, "the file of the weights, or its origin", 0),
    "vit_paper": Protocol(
        _SQUARE,
        "vit_jax/input_pipeline.py, the paper's fine-tuning: tf.image.resize of the whole image",
        tolerance=1,  # it keeps fractions of a level, which are rounded here
        sampled="nearest",
    ),
    "google_jax": Protocol(
        _SQUARE,
        "big_vision/pp/ops_image.py: resize(size)|value_range(-1, 1)",
        tolerance=1,
        sampled="truncate",  # the operation casts back to uint8
    ),
    "timm": Protocol(
        {"crop_mode": "center", "crop_ratio": 0.9, "interpolation": "bicubic"},
        "timm/models/vision_transformer.py, _cfg; its models of 384 pixels and more see the whole",
        tolerance=2,
        whole_from=384,
    ),
    "deit": Protocol(
        {"crop_mode": "center", "crop_ratio": 0.875, "interpolation": "bicubic", **_IMAGENET},
        "deit/datasets.py: Resize(int(size / 0.875), bicubic), CenterCrop(size)",
        tolerance=2,
    ),
    "torchvision": Protocol(
        {"crop_mode": "center", "crop_ratio": 0.875, "interpolation": "bilinear", **_IMAGENET},
        "torchvision/transforms/_presets.py, ImageClassification: Resize(256), CenterCrop(224)",
        tolerance=2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What images become, and what there is to say of it."""

    preprocess: Preprocess
    transform: EvalTransform
    notes: tuple[str, ...] = ()


def prepare(
    config: Config, weights: Preprocess, path: object, defaults: Mapping[str, Any] | None = None
) -> Preparation:
    """Say what images become for weights: as they need it, or as a protocol has it.

    With a protocol that somebody asks for, or a suite, what a recipe or a run's configuration says
    of preprocessing has no say; options that somebody gives always do.

    Args:
      weights: what images must become for them.
      path: of the weights, for messages.
      defaults: fields that a data set sets below the protocol.
    Raises: ConfigError if the protocol is for images of other channels, or views would be alike.
    """
    name = config.evaluation.protocol
    protocol = PROTOCOLS[name]
    data = config.data
    own = {option for option in OPTION_OF.values() if getattr(data, option) is not None}
    if "protocol" in config.given or config.evaluation.suite is not None:
        own &= config.given
    kept = {option: getattr(data, option) for option in own}
    unset: dict[str, Any] = dict.fromkeys(OPTION_OF.values())
    base = data.model_copy(update={**unset, **kept}).preprocess_after(weights)
    colours = len(protocol.sets.get("mean", ())) or weights.channels
    if colours != weights.channels:
        raise ConfigError(
            f"Protocol '{name}' is for images of {colours} channels, but {path} takes "
            f"{weights.channels}: give --protocol weights."
        )
    says = protocol.at((base.height, base.width))
    sets = {**(defaults or {}), **says}
    free = {field: value for field, value in sets.items() if OPTION_OF[field] not in own}
    preprocess = base.model_copy(update=free)
    views = config.evaluation.test_time_augmentation
    check_views(views, preprocess)
    transform = EvalTransform(preprocess, sampled=protocol.sampled, crops=VIEWS[views].crops)
    notes: tuple[str, ...] = ()
    if name != "weights":
        told = {field: value for field, value in says.items() if field in free}
        given = {OPTION_OF[field]: getattr(preprocess, field) for field in says.keys() - told}
        notes = (_describe(name, protocol, told, given, preprocess),)
    return Preparation(preprocess, transform, notes)


def _describe(
    name: str,
    protocol: Protocol,
    told: Mapping[str, Any],
    given: Mapping[str, Any],
    preprocess: Preprocess,
) -> str:
    text = f"Protocol {name} at {preprocess.height}x{preprocess.width} sets " + (
        ", ".join(f"{field} {value}" for field, value in told.items()) or "nothing"
    )
    if protocol.sampled and preprocess.interpolation == "bilinear":
        text += ", no antialiasing"
    if given:
        text += "; given options win: " + ", ".join(f"{k} {v}" for k, v in sorted(given.items()))
    return f"{text} ({protocol.source})."
