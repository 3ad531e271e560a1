"""A run: from a configuration to a trained, evaluated, resumable model."""

from __future__ import annotations

from pathlib import Path

from vitbase.config.batch import BatchLayout, batch_layout
from vitbase.config.config import Config
from vitbase.console import say
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.errors import ConfigError
from vitbase.files import write_whole
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Board, Journal
from vitbase.runs.result import TrainResult, report_finished
from vitbase.runtime import Runtime, launched_ranks, opened_runtime
from vitbase.sources.open import TrainVal, open_train_val
from vitbase.training.loop import TrainingLoop
from vitbase.training.objective import Objective
from vitbase.training.start import (
    check_agreement,
    check_same_images,
    complete_from_data,
    find_run,
    open_model,
    read_position,
    with_own_places,
)
from vitbase.training.state import momentum_tensors


def train(config: Config) -> TrainResult:
    """Train as configured, or continue the run in the output folder, or report a finished one.

    Returns: the result after the last update, on every rank.
    Raises: VitbaseError for whatever the user can mend, before anything is written where possible.
    """
    devices = config.run.num_devices
    if devices is not None and devices > 1 and launched_ranks() is None:
        raise ConfigError(
            f"num_devices {devices} needs a process for each device. Start them with "
            f"`vitbase train RECIPE --num_devices {devices}`, or this program with torchrun."
        )
    options = config.run
    with opened_runtime(
        options.device_target, options.device_id, options.precision, tf32=options.tf32
    ) as runtime:
        return _train(config, runtime)


def _train(config: Config, runtime: Runtime) -> TrainResult:
    folder = RunFolder(config.output_dir)
    check_agreement(runtime, config)
    found = runtime.from_first(lambda: find_run(config, folder, runtime.num_ranks))
    config = with_own_places(found.config, config)
    checkpoint, progress = found.checkpoint, found.progress
    if progress is not None and progress.finished:
        return runtime.from_first(lambda: report_finished(folder, progress))
    layout = batch_layout(config, runtime.num_ranks)
    data = runtime.everywhere(lambda: open_train_val(config))
    check_same_images(runtime, data)
    config = complete_from_data(config, data.train.class_names)
    loader = runtime.everywhere(lambda: _build_loader(config, runtime, layout, data))
    objective = runtime.everywhere(
        lambda: Objective(config, data.train, config.data.num_classes or 0, runtime.device)
    )
    begun = None
    if checkpoint is None:
        begun = runtime.from_first(lambda: read_position(config, loader.steps_per_epoch))
    model, notes = open_model(config, data.train.class_names, checkpoint, runtime)
    runtime.from_first(lambda: folder.start(config))
    board = _open_board(folder.path) if config.run.tensorboard and runtime.is_first else None
    journal = Journal(folder.metrics_file, rank=runtime.rank, board=board)
    for line in (*data.notes, *notes, *found.warnings):
        journal.say(line)
    if data.held_out and runtime.is_first:
        write_whole(folder.path / "held_out.txt", "".join(f"{path}\n" for path in data.held_out))
        say(f"The held-out images are listed in {folder.path / 'held_out.txt'}")
    run = TrainingLoop(config, runtime, folder, data, model, loader, layout, objective, journal)
    if checkpoint is not None and progress is not None:
        run.restore(checkpoint, progress)
    elif begun is not None:
        run.state.restore(momentum_tensors(begun), begun.path)
        run.updates = begun.updates
    with runtime.naming_lost_ranks():
        run.announce(found.rate, checkpoint.path if checkpoint else begun.path if begun else None)
        return run.go()


def _open_board(folder: Path) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "Option 'tensorboard' needs the package of that name: "
            "pip install 'vitbase[tensorboard]'."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))


def _build_loader(
    config: Config, runtime: Runtime, layout: BatchLayout, data: TrainVal
) -> TrainLoader:
    return TrainLoader(
        data.train,
        TrainTransform(config.data.preprocess, config.augment),
        seed=config.run.seed,
        batch_size=layout.batch_size,
        accumulation_steps=layout.accumulation_steps,
        num_workers=config.data.num_workers,
        max_bad_images=config.data.max_bad_images if config.data.on_bad_image == "skip" else 0,
        repeats=config.augment.repeated_augmentation,
        balanced=config.data.sampling == "balanced",
        pin_memory=runtime.pin_memory,
        rank=runtime.rank,
        num_ranks=runtime.num_ranks,
    )
