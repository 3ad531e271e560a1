"""How a run begins, or goes on: what its folder holds, its model, and the place it starts at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vitbase.config.complete import Completed, Facts
from vitbase.config.config import Config
from vitbase.errors import CheckpointError, ConfigError, DataError
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_model
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.folder import RunFolder
from vitbase.runs.progress import Progress, read_progress
from vitbase.runtime import Runtime
from vitbase.training.architecture import (
    build_start,
    check_continues,
    preprocess_of_weights,
    spec_of,
)
from vitbase.training.mindspore_state import MindSporeState, read_mindspore_state
from vitbase.training.schedule import Schedule
from vitbase.training.state import share_model
from vitbase.weights.load import load_model, open_weights


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """What the output folder holds of a run: nothing, or the checkpoint it goes on from.

    Attributes:
      facts: what the configuration is completed from.
      checkpoint: the newest one that is whole.
      progress: of that checkpoint.
      warnings: of others, for the log.
    """

    facts: Facts
    checkpoint: Checkpoint | None = None
    progress: Progress | None = None
    warnings: tuple[str, ...] = ()


def find_run(config: Config, folder: RunFolder) -> FoundRun:
    """Gather what is known before the data is opened: from the run's folder, else its weights.

    Raises: VitbaseError if folder or weights cannot be read, or no run could be in the folder.
    """
    folder.check_place(config.run.name)
    saved = folder.read_config()
    checkpoint, warnings = folder.newest_whole()
    if checkpoint is None and saved is not None:
        raise CheckpointError(
            f"No checkpoint in {folder.checkpoints} can be continued:\n  "
            + "\n  ".join(warning.removesuffix("; using an earlier one.") for warning in warnings)
            + f"\nRemove {folder.path} to begin the run again, or give another --output_dir."
        )
    progress = read_progress(checkpoint.path) if checkpoint else None
    if saved is None:
        facts = Facts(weights=preprocess_of_weights(config))
    else:
        batch = progress.global_batch if progress else saved.data.global_batch
        facts = Facts(saved=saved, global_batch=batch)
    return FoundRun(facts, checkpoint, progress, tuple(warnings))


def check_start(completed: Completed, folder: RunFolder) -> None:
    """Check what can be checked before millions of files are listed.

    Raises: ConfigError if the architecture is impossible, or the folder has another run.
    """
    config = completed.config
    if config.model.model is not None or not config.starts_from_weights:
        spec_of(config)
    folder.check(config)


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
            model = _load_checkpoint(config, checkpoint.weights, class_names)
        made.append(model)
        return model.spec, notes

    spec, notes = runtime.from_first(make)
    model = (made[0] if made else build_model(spec)).to(runtime.device)
    share_model(runtime, model)
    return model, notes


def _load_checkpoint(
    config: Config, weights: Path, class_names: tuple[str, ...]
) -> VisionTransformer:
    """Load the model of a run to be continued.

    Raises: CheckpointError if it is another run's; DataError if the classes have changed.
    """
    loaded = load_model(weights)
    check_continues(config, weights, loaded.spec)
    if loaded.labels is not None and loaded.labels != class_names:
        raise DataError(
            f"The run was trained on the classes {', '.join(loaded.labels[:5])}…, but data_path "
            f"now has {', '.join(class_names[:5])}…. Give the same images, or another --output_dir."
        )
    return loaded.model


def check_reached(checkpoint: Checkpoint, progress: Progress, schedule: Schedule) -> None:
    """Check that a checkpoint is of a place in this run. Raises: CheckpointError on every rank."""
    if not 0 < progress.updates <= schedule.total_steps:
        raise CheckpointError(
            f"Checkpoint {checkpoint.path} was taken after update {progress.updates}, and this run "
            f"has {schedule.total_steps}: it is of another run. Move it away."
        ).everywhere()


def read_position(
    config: Config, schedule: Schedule, steps_per_epoch: int
) -> MindSporeState | None:
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
    if state.updates >= schedule.total_steps:
        raise ConfigError(
            f"{opened.path} was written after {state.updates} updates, and this run ends after "
            f"{schedule.total_steps}: {config.schedule.epoch_size} epochs of {steps_per_epoch}. "
            f"Give a larger --epoch_size (or --total_steps) to continue it."
        )
    return state
