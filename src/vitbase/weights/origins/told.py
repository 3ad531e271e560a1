"""What stands beside the tensors: our own metadata, or a `config.json` of Hugging Face's or timm's.

Its values are checked here: what is built with them later trusts them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from vitbase.config.preprocess import Preprocess
from vitbase.errors import ConfigError, WeightsError
from vitbase.files import parse_json
from vitbase.model.layers import Gelu
from vitbase.model.spec import Pool, ViTSpec
from vitbase.model.zoo import find_variant, variant_spec
from vitbase.weights.files.open import METADATA_KEY
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Dialect

# transformers' ACT2FN: names of the two forms.
_GELUS: dict[str, Gelu] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
_DAMAGE = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, ConfigError)
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}

# What timm's model functions set that no shape tells, by their names; None: no model of ours.
# Source: timm/models/vision_transformer.py.
_TIMM_NAMES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    (r"vit_.*_rpn_.*", None),  # norms behind the layers, under the names of those before them
    (r"vit_(so400m|giantopt)_patch16_siglip_.*", {"num_heads": 16, "act_layer": "gelu_tanh"}),
    (r"vit_(base_patch32_siglip_.*|large_patch16_siglip_gap_512)", {"act_layer": "gelu_tanh"}),
    (r"vit_(so400m|gigantic)_.*|vit_base_patch16_gap_.*", {"num_heads": 16}),
    (r"test_vit2?", {"num_heads": 2}),
)


@dataclasses.dataclass(frozen=True)
class Told:
    """What stands beside the tensors; None where it does not.

    Attributes:
      spec: the whole architecture, as our own metadata have it.
    """

    spec: ViTSpec | None = None
    num_heads: int | None = None
    gelu: Gelu | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    pool: Pool | None = None
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def read_told(file: TensorFile, dialect: Dialect) -> Told:
    """Read what stands beside the tensors.

    Raises: WeightsError naming the file, and the key that is wrong.
    """
    try:
        if METADATA_KEY in file.metadata:
            return _read_own(file)
        if file.config is not None and dialect.name == "hf":
            return _read_hf(file.config, file.processor)
        if file.config is not None and "pretrained_cfg" in file.config:
            return _read_timm(file.config)
        return Told()
    except _DAMAGE as error:
        where = "metadata" if METADATA_KEY in file.metadata else "config.json"
        raise WeightsError(f"{file.path} has damaged {where}: {error}") from None


def _gelu_of(key: str, activation: object) -> Gelu:
    if not isinstance(activation, str) or activation not in _GELUS:
        raise WeightsError(
            f"its config.json has {key} {activation!r}, which is no GELU that vitbase computes"
        )
    return _GELUS[activation]


def _count_of(key: str, value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{key} {value!r} should be a number from 1")
    return value


def _epsilon_of(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError(f"layer_norm_eps {value!r} should be a number from 0")


def _size_of(key: str, value: object) -> tuple[int, int] | None:
    """Read a side in pixels, or (height, width)."""
    if value is None:
        return None
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"{key} {value!r} should be a side in pixels, or two")
    return sides[0], sides[1]


def _is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether no pooler stands before its head."""
    return any("ForImageClassification" in str(name) for name in config.get("architectures") or ())


def _read_own(file: TensorFile) -> Told:
    metadata = parse_json(file.metadata[METADATA_KEY])
    labels = metadata["labels"]
    preprocess = metadata["preprocess"]
    return Told(
        spec=ViTSpec.from_dict(metadata["spec"]),
        preprocess=Preprocess.model_validate(preprocess).model_dump() if preprocess else {},
        labels=tuple(labels) if labels else None,
    )


def _read_hf(config: Mapping[str, Any], processor: Mapping[str, Any] | None) -> Told:
    gelu = _gelu_of("hidden_act", config.get("hidden_act", "gelu"))
    if config.get("pooler_act", "tanh") != "tanh" and not _is_classifier(config):
        raise WeightsError(f"its config.json has pooler_act {config['pooler_act']!r}, not 'tanh'")
    names = config.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    # LABEL_0, LABEL_1: what transformers writes where no names were given.
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        labels = ()
    preprocess: dict[str, Any] = {}
    if processor is not None:
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
    return Told(
        num_heads=_count_of("num_attention_heads", config.get("num_attention_heads")),
        gelu=gelu,
        norm_eps=_epsilon_of(config.get("layer_norm_eps")),
        image_size=_size_of("image_size", config.get("image_size")),
        preprocess=preprocess,
        labels=labels or None,
    )


def _read_timm(config: Mapping[str, Any]) -> Told:
    architecture = str(config.get("architecture")).partition(".")[0]
    implied: dict[str, Any] = {}
    for pattern, values in _TIMM_NAMES:
        if re.fullmatch(pattern, architecture):
            if values is None:
                raise WeightsError(
                    f"it is of timm's {architecture}, which computes otherwise than vitbase can"
                )
            implied = values
            break
    made_with = {**implied, **(config.get("model_args") or {})}
    trained = {**config, **config["pretrained_cfg"]}
    heads = _count_of("num_heads", made_with.get("num_heads"))
    if heads is None:
        try:
            heads = variant_spec(find_variant(architecture)[0]).num_heads
        except ConfigError:
            heads = None  # none of ours: its width tells
    size = made_with.get("img_size") or tuple(trained.get("input_size") or ())[1:] or None
    renamed = {
        "mean": "mean",
        "std": "std",
        "interpolation": "interpolation",
        "crop_pct": "crop_ratio",
        "crop_mode": "crop_mode",
    }
    labels = trained.get("label_names")
    averaged = made_with.get("global_pool", trained.get("global_pool")) == "avg"
    return Told(
        pool="gap" if averaged else None,
        num_heads=heads,
        gelu=_gelu_of("act_layer", made_with.get("act_layer") or "gelu"),
        image_size=_size_of("img_size", size),
        preprocess={renamed[k]: v for k, v in trained.items() if k in renamed},
        labels=tuple(map(str, labels)) if labels else None,
    )
