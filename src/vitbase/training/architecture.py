"""The model of a run: the architecture that its options describe, or that of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess, describe_differences
from vitbase.errors import CheckpointError, ConfigError, WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_model, variant_spec
from vitbase.weights.load import LoadedModel, load_model, read_preprocess

SMALL_VARIANT = "ViTC-Ti_16"
"""The model of a run that names none and starts from random weights: few images, little time."""

_SPEC_FIELDS = tuple(ViTSpec.model_fields)  # an option of the model has the name of its field
_INIT_STREAM = 0  # first part of the key of torch's generators
_REGULARISATION = ("dropout", "stochastic_depth", "stochastic_depth_rule")
# What may differ between the weights and the run: resized, re-initialised, or not of the weights.
_FREE_FIELDS = {"name", "image_size", "num_classes", "head_init_std", "head_bias_init"}
_FREE_FIELDS |= {*_REGULARISATION}


def spec_of(config: Config) -> ViTSpec:
    """Return the architecture that a configuration describes, without weights.

    Raises: ConfigError for an unknown variant or an impossible combination.
    """
    options = config.model
    overrides: dict[str, Any] = {
        name: value for name in _SPEC_FIELDS if (value := getattr(options, name, None)) is not None
    }
    if options.pool is not None:
        overrides["class_token"] = options.pool == "token"
    preprocess = config.data.preprocess
    return variant_spec(
        options.model or SMALL_VARIANT,
        num_classes=config.data.num_classes or 1000,
        image_size=(preprocess.height, preprocess.width),
        in_channels=preprocess.channels,
        **overrides,
    )


def preprocess_of_weights(config: Config) -> Preprocess | None:
    """Read what images must become for the weights that a run starts from; None if it does not.

    Raises: ConfigError if the run should start from weights and none are given; WeightsError.
    """
    if not config.starts_from_weights:
        return None
    if config.model.checkpoint_path is None:
        origin = config.origin
        recipes = origin is not None and "pre_trained" not in origin.given
        why = (
            f"Recipe {origin.recipe} starts from weights"
            if origin and recipes
            else ("pre_trained is True, but there are no weights to start from")
        )
        raise ConfigError(
            f"{why}: give --checkpoint_path WEIGHTS, or --pre_trained False to start from random "
            f"weights."
        )
    return read_preprocess(
        config.model.checkpoint_path,
        num_heads=config.model.num_heads,
        image_size=config.data.image_size,
        ignore=config.model.ignore_weights,
        prefix=config.model.weights_prefix,
    )


def build_start(
    config: Config, class_names: tuple[str, ...]
) -> tuple[VisionTransformer, tuple[str, ...]]:
    """Build the model of a new run: from `checkpoint_path`, or from random weights.

    Returns: the model, and lines for the log.
    Raises: WeightsError if the weights are of another architecture than `model` names.
    """
    seed_generators(config.run.seed, _INIT_STREAM)
    if not config.starts_from_weights:
        return build_model(spec_of(config)), ()
    loaded = load_for_training(config, class_names)
    return loaded.model, (*loaded.report.lines(), *_preprocess_notes(config, loaded))


def load_for_training(config: Config, class_names: tuple[str, ...] | None) -> LoadedModel:
    """Load `checkpoint_path` for a task: its classes, image size and regularisation.

    Raises: WeightsError if the weights are of another architecture than `model` names.
    """
    assert config.model.checkpoint_path is not None
    preprocess = config.data.preprocess
    loaded = load_model(
        config.model.checkpoint_path,
        num_heads=config.model.num_heads,
        num_classes=config.data.num_classes,
        labels=class_names,
        image_size=(preprocess.height, preprocess.width),
        ignore=config.model.ignore_weights,
        prefix=config.model.weights_prefix,
        **{name: getattr(config.model, name) for name in _REGULARISATION},
    )
    if loaded.spec.in_channels != preprocess.channels:
        raise WeightsError(
            f"{loaded.path} takes images of {loaded.spec.in_channels} channels, this run has "
            f"{preprocess.channels}. Give --image_channels {loaded.spec.in_channels}."
        )
    if config.model.model is not None:
        differing = _differing_fields(spec_of(config), loaded.spec)
        if differing:
            raise WeightsError(
                f"{loaded.path} is of another architecture than the run's model "
                f"{config.model.model}: {', '.join(differing)}. Give --model and its options as "
                f"the weights have them, or --model None to take theirs."
            )
    return loaded


def check_continues(config: Config, path: Path, found: ViTSpec) -> None:
    """Check that a checkpoint has the architecture of the run that it is to be continued in.

    A run whose architecture is that of the weights it started from does not say one.

    Raises: CheckpointError naming what differs.
    """
    if config.model.model is None and config.starts_from_weights:
        return
    wanted = spec_of(config)
    differing = _differing_fields(wanted, found)
    for field in ("image_size", "num_classes"):
        ours, theirs = getattr(wanted, field), getattr(found, field)
        if ours != theirs:
            differing.append(f"{field} is {theirs} in the file, not {ours}")
    if differing:
        raise CheckpointError(
            f"{path} is of another run: {', '.join(differing)}. Move it away to go on from an "
            f"earlier one."
        )


def _differing_fields(wanted: ViTSpec, found: ViTSpec) -> list[str]:
    theirs: dict[str, Any] = found.to_dict()
    return [
        f"{field} is {theirs[field]} in the file, not {value}"
        for field, value in wanted.to_dict().items()
        if field not in _FREE_FIELDS and theirs[field] != value
    ]


def _preprocess_notes(config: Config, loaded: LoadedModel) -> tuple[str, ...]:
    differences = describe_differences(loaded.preprocess, config.data.preprocess)
    if not differences:
        return ()
    options = " and ".join(f"--{name}" for name, _, _ in differences)
    return (
        "Warning: this run prepares images otherwise than the weights were trained on: "
        + "; ".join(f"{name} {ours} instead of {theirs}" for name, theirs, ours in differences)
        + f". Leave out {options} to do as the weights.",
    )


def seed_generators(*key: int) -> None:
    """Set torch's generators, on every device, as a function of a key.

    Initialisation and each training step do so with keys of their own, so that what a step draws
    (dropout, stochastic depth) does not depend on what was drawn before it. The key is hashed as
    a whole: (1, 2) and (2, 1) are different streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
