"""What an image must become before a model sees it: what data and weights both speak of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Preprocess(BaseModel):
    """What an image must become before the model sees it. Travels with weights.

    Evaluation resizes the short side to ``size / crop_ratio``, or with ``crop_mode`` "squash" both
    sides whatever the image's aspect, then crops the centre.
    ``mean`` and ``std`` are per channel, for pixels scaled to [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    height: int
    width: int
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


OPTION_OF = {
    field: f"image_{field}" if field in {"height", "width", "channels"} else field
    for field in Preprocess.model_fields
}
"""Field of the preprocessing -> the option that sets it."""


def describe_differences(weights: Preprocess, run: Preprocess) -> list[tuple[str, object, object]]:
    """List (option, the weights' value, the run's) where they differ; the size may."""
    names = [field for field, option in OPTION_OF.items() if field == option]
    pairs = [(name, getattr(weights, name), getattr(run, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def default_preprocess(height: int, width: int, channels: Literal[1, 3]) -> Preprocess:
    """Return the preprocessing that ImageNet's classifiers share; grey is the mean of colours."""
    colour = channels == 3
    return Preprocess(
        height=height,
        width=width,
        channels=channels,
        mean=(0.485, 0.456, 0.406) if colour else (0.449,),
        std=(0.229, 0.224, 0.225) if colour else (0.226,),
    )
