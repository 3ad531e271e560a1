"""How a run begins: the configuration completed from data and weights, the model built."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from vitbase._version import __version__
from vitbase.config.batch import PeakRate, fix_batch
from vitbase.config.config import FIELDS, Config
from vitbase.config.preprocess import Preprocess, describe_differences
from vitbase.errors import ConfigError, DataError, WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import SpecOverrides, build_model, variant_spec
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.folder import Progress, RunFolder, read_progress
from vitbase.runtime import Runtime, seed_generators
from vitbase.sources.open import TrainVal
from vitbase.training.mindspore_state import MindSporeState, read_mindspore_state
from vitbase.training.schedule import Schedule
from vitbase.training.state import share_model
from vitbase.weights.load import LoadedModel, load_model, open_weights, read_preprocess

SMALL_VARIANT = "ViTC-Ti_16"
"""The model of a run that names none and starts from random weights: few images, little time."""

_INIT_STREAM = 0  # first part of the key of torch's generators
# What may differ between the weights and the run: resized, re-initialised, or without weights.
_FREE_FIELDS = {"name", "image_size", "num_classes", "dropout"}
_FREE_FIELDS |= {"stochastic_depth", "stochastic_depth_rule", "head_init_std", "head_bias_init"}


def spec_of(config: Config) -> ViTSpec:
    """Return the architecture that a configuration describes, without weights.

    Raises: ConfigError for an unknown variant or an impossible combination.
    """
    options = config.model
    overrides: SpecOverrides = {}
    for option in (
        "dropout",
        "stochastic_depth",
        "stochastic_depth_rule",
        "head_init_std",
        "num_heads",
        "pos_embed",
        "num_registers",
        "representation_size",
        "layer_scale_init",
        "head_bias_init",
        "gelu",
    ):
        value = getattr(options, option)
        if value is not None:
            overrides[option] = value
    if options.pool is not None:
        overrides["pool"] = options.pool
        overrides["class_token"] = options.pool == "token"
    preprocess = config.data.preprocess
    return variant_spec(
        options.model or SMALL_VARIANT,
        num_classes=config.data.num_classes or 1000,
        image_size=(preprocess.height, preprocess.width),
        in_channels=preprocess.channels,
        **overrides,
    )


def complete_preprocess(config: Config) -> Config:
    """Fill in the preprocessing: as the weights that the run starts from need it, else defaults.

    Raises: ConfigError if the run should start from weights and none are given; WeightsError.
    """
    theirs: Preprocess | None = None
    if config.starts_from_weights:
        if config.model.checkpoint_path is None:
            raise ConfigError(
                "pre_trained is True, but there are no weights to start from. Give "
                "--checkpoint_path, or --pre_trained False to start from random weights."
            )
        theirs = read_preprocess(
            config.model.checkpoint_path,
            num_heads=config.model.num_heads,
            image_size=config.data.image_size,
            ignore=config.model.ignore_weights,
        )
    return config.with_preprocess(config.data.preprocess_after(theirs))


def complete_from_data(config: Config, class_names: tuple[str, ...]) -> Config:
    """Fill in what only the data can tell, so that the saved configuration repeats the run."""
    return config.replace(
        num_classes=config.data.num_classes or len(class_names),
        pre_trained=config.starts_from_weights,
    )


def complete_from_run(config: Config, saved: Config) -> Config:
    """Fill in what is unset as the run to be continued has it; its weights need not be there."""
    config = config.with_preprocess(config.data.preprocess_after(saved.data.preprocess))
    return config.replace(
        num_classes=config.data.num_classes or saved.data.num_classes,
        pre_trained=config.starts_from_weights,
    )


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """What the output folder holds of a run: nothing, or the checkpoint it goes on from."""

    config: Config
    rate: PeakRate
    checkpoint: Checkpoint | None
    progress: Progress | None
    warnings: tuple[str, ...]


def find_run(config: Config, folder: RunFolder, num_ranks: int) -> FoundRun:
    """Complete a configuration from the run that is to be continued, or for a new run.

    Raises: VitbaseError if the options are impossible, or others than the run's.
    """
    saved = folder.read_config()
    checkpoint, warnings = folder.newest_whole()
    progress = read_progress(checkpoint.path) if checkpoint else None
    if saved is None:
        config, rate = fix_batch(complete_preprocess(config), num_ranks)
    else:
        before = progress.global_batch if progress else saved.data.global_batch
        config, rate = fix_batch(complete_from_run(config, saved), num_ranks, before)
    if config.model.model is not None or not config.starts_from_weights:
        spec_of(config)  # a mistake in the architecture shows before millions of files are listed
    folder.check(config)
    return FoundRun(config, rate, checkpoint, progress, tuple(warnings))


def check_agreement(runtime: Runtime, config: Config) -> None:
    """Check that all ranks run the same code with the same options (collective).

    Raises: ConfigError on every rank, naming one that differs and in what.
    """
    own = [("vitbase's code", _code_digest()), *_listed(config)]
    first, *others = runtime.gather(own)
    for rank, theirs in enumerate(others, 1):
        differing = [
            f"{name} is {value}, on rank 0 {before}"
            for (name, before), (_, value) in zip(first, theirs, strict=True)
            if value != before
        ]
        if differing:
            error = ConfigError(
                f"Rank {rank} was started otherwise than rank 0: {'; '.join(differing)}. Start "
                f"the same command with the same version of vitbase on every server."
            )
            raise error.everywhere()


def check_same_images(runtime: Runtime, data: TrainVal) -> None:
    """Check that all ranks see the same images (collective). Raises: DataError on every rank."""
    own = []
    for source in (data.train, data.val):
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr(source.class_names).encode())
        digest.update(source.labels.tobytes())
        own.append((len(source), digest.hexdigest()))
    first, *others = runtime.gather(own)
    for rank, theirs in enumerate(others, 1):
        if theirs != first:
            error = DataError(
                f"Rank {rank} finds other images than rank 0: {theirs[0][0]} for training and "
                f"{theirs[1][0]} for evaluation, on rank 0 {first[0][0]} and {first[1][0]}, or "
                f"other labels. Give every server the same data set."
            )
            raise error.everywhere()


_OWN_PLACES = ("data_path", "val_data_path", "output_dir", "num_workers")  # of each server


def with_own_places(config: Config, own: Config) -> Config:
    """Return a configuration with what each server may have for itself."""
    return config.replace(
        **{option: getattr(getattr(own, FIELDS[option][0]), option) for option in _OWN_PLACES}
    )


def _listed(config: Config) -> list[tuple[str, str]]:
    return [
        (option, str(getattr(getattr(config, section), option)))
        for option, (section, _) in FIELDS.items()
        if option not in _OWN_PLACES
    ]


def _code_digest() -> str:
    digest = hashlib.blake2b(f"{__version__} {torch.__version__}".encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def open_model(
    config: Config, class_names: tuple[str, ...], checkpoint: Checkpoint | None, runtime: Runtime
) -> tuple[VisionTransformer, tuple[str, ...]]:
    """Build the model on the device, with the same weights on every rank (collective).

    Only the first rank reads files.

    Returns: the model, and lines for the log.
    Raises: VitbaseError on every rank.
    """
    made: list[VisionTransformer] = []

    def make() -> tuple[ViTSpec, tuple[str, ...]]:
        notes: tuple[str, ...] = ()
        if checkpoint is None:
            model, notes = build_start(config, class_names)
        else:
            model = _load_checkpoint(checkpoint, class_names)
        made.append(model)
        return model.spec, notes

    spec, notes = runtime.from_first(make)
    model = (made[0] if made else build_model(spec)).to(runtime.device)
    share_model(runtime, model)
    return model, notes


def _load_checkpoint(checkpoint: Checkpoint, class_names: tuple[str, ...]) -> VisionTransformer:
    """Load the model of a run to be continued. Raises: DataError if the classes have changed."""
    loaded = load_model(checkpoint.weights)
    if loaded.labels is not None and loaded.labels != class_names:
        raise DataError(
            f"The run was trained on the classes {', '.join(loaded.labels[:5])}…, but data_path "
            f"now has {', '.join(class_names[:5])}…. Give the same images, or another --output_dir."
        )
    return loaded.model


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


def read_position(config: Config, steps_per_epoch: int) -> MindSporeState | None:
    """Read what `continue_training` takes from `checkpoint_path` beside the weights.

    Raises: ConfigError if the run cannot continue it; CheckpointError if it is not there.
    """
    if not config.model.continue_training:
        return None
    path = config.model.checkpoint_path
    if path is None or not config.starts_from_weights:
        raise ConfigError("continue_training needs a --checkpoint_path, and --pre_trained True.")
    if config.optimizer.optimizer != "momentum":
        raise ConfigError(
            f"continue_training takes the state of MindSpore's Momentum; this run has "
            f"optimizer {config.optimizer.optimizer}. Give --optimizer momentum."
        )
    opened = open_weights(path, num_heads=config.model.num_heads, image_size=config.data.image_size)
    if config.data.num_classes != opened.spec.num_classes:
        raise ConfigError(
            f"{opened.path} has {opened.spec.num_classes} classes, this run has "
            f"{config.data.num_classes}: its training cannot be continued with other classes."
        )
    state = read_mindspore_state(opened)
    total = Schedule.of(config.optimizer.lr_init, config.schedule, steps_per_epoch).total_steps
    if state.updates >= total:
        raise ConfigError(
            f"{opened.path} was written after {state.updates} updates, and this run ends after "
            f"{total}: {config.schedule.epoch_size} epochs of {steps_per_epoch}. Give a larger "
            f"--epoch_size (or --total_steps) to continue it."
        )
    return state


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
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        stochastic_depth_rule=config.model.stochastic_depth_rule,
        ignore=config.model.ignore_weights,
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
