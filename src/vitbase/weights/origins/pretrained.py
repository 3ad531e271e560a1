"""What transformers reads beside the weights of any network: labels, and what images become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from vitbase.config.preprocess import Preprocess

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's


def read_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Read names of classes; None where nobody gave any."""
    names = config.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    # LABEL_0, LABEL_1: what transformers writes where no names were given.
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        return None
    return labels


def write_labels(labels: tuple[str, ...] | None, num_classes: int) -> dict[str, Any]:
    """Return names of classes, and numbers by name; those without a name get transformers' own."""
    names = list(labels or ())
    names += [f"LABEL_{number}" for number in range(len(names), num_classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def read_processor(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Read what images must become, as far as it is told."""
    preprocess: dict[str, Any] = {}
    if processor.get("do_normalize", True) and "image_mean" in processor:
        preprocess["mean"] = tuple(processor["image_mean"])
        preprocess["std"] = tuple(processor["image_std"])
    if processor.get("resample") in _RESAMPLING:
        preprocess["interpolation"] = _RESAMPLING[processor["resample"]]
    shortest = (processor.get("size") or {}).get("shortest_edge")
    crop = processor.get("crop_size") or {}
    if shortest and processor.get("do_center_crop") and "height" in crop:
        preprocess["crop_mode"] = "center"
        preprocess["crop_ratio"] = min(1.0, crop["height"] / shortest)
    elif "height" in (processor.get("size") or {}):
        preprocess["crop_mode"], preprocess["crop_ratio"] = "squash", 1.0
    return preprocess


def write_processor(preprocess: Preprocess) -> dict[str, Any]:
    """Return what `preprocessor_config.json` says.

    Source: transformers' image_processing_vit.py, image_processing_{deit,bit}.py.
    """
    sides = {"height": preprocess.height, "width": preprocess.width}
    resized = {side: int(pixels / preprocess.crop_ratio + 1e-6) for side, pixels in sides.items()}
    crop: dict[str, Any] = {"do_center_crop": True, "crop_size": sides}
    how: dict[str, Any]
    if preprocess.crop_mode == "squash" and resized == sides:
        how = {"image_processor_type": "ViTImageProcessor", "size": sides}
    elif preprocess.crop_mode == "squash":
        how = {"image_processor_type": "DeiTImageProcessor", "size": resized, **crop}
    elif preprocess.height == preprocess.width:
        shortest = {"shortest_edge": resized["height"]}
        how = {"image_processor_type": "BitImageProcessor", "size": shortest, **crop}
    else:
        # A shortest edge is not enough to cover another shape: black bars would fill it up. So it
        # is told not to resize, and its model refuses images that nobody has resized.
        how = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    resample = next(k for k, v in _RESAMPLING.items() if v == preprocess.interpolation)
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": preprocess.channels == 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "resample": resample,
        **how,
    }
