"""A run: from a configuration to a trained, evaluated, resumable model."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from vitbase.config.batch import BatchLayout
from vitbase.config.complete import complete
from vitbase.config.config import Config
from vitbase.console import say
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.errors import ConfigError
from vitbase.evaluation.environment import write_environment
from vitbase.evaluation.features import FeatureLoader, FeatureStore
from vitbase.pulse import stands_at
from vitbase.runs.checkpoints import CKPT_SUFFIX
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Board, Journal
from vitbase.runs.passed_over import forget_passed_over, read_passed_over
from vitbase.runs.result import TrainResult, report_finished, result_of, say_result
from vitbase.runtime import Runtime, joined_runtime, launched_ranks
from vitbase.sources.open import Source, open_train_val
from vitbase.training.agreement import check_agreement, check_same_images
from vitbase.training.estimate import describe, estimate_run
from vitbase.training.frozen import Frozen
from vitbase.training.hangs import SELDOM, watching
from vitbase.training.loop import Run, fit
from vitbase.training.objective import Objective
from vitbase.training.passing import PassingGuard
from vitbase.training.progress import Reporter
from vitbase.training.saver import NATIVE, Saver
from vitbase.training.schedule import Place, Schedule
from vitbase.training.start import (
    check_reached,
    check_start,
    find_run,
    open_model,
    read_position,
)
from vitbase.training.state import momentum_tensors, stored_tensors
from vitbase.training.step import Learner
from vitbase.weights.save import choose_dialect


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
    with (
        joined_runtime(
            options.device_target,
            options.device_id,
            options.precision,
            tf32=options.tf32,
            # Long enough for the watch to tell first who is absent.
            wait_at_least=60 * options.hang_minutes * (SELDOM + 1),
        ) as runtime,
        watching(options.hang_minutes, runtime),
        contextlib.closing(RunFolder(config.output_dir)) as folder,
        folder.naming_faults(),
    ):
        return _train(config, runtime, folder)


def _train(config: Config, runtime: Runtime, folder: RunFolder) -> TrainResult:
    check_agreement(runtime, config)
    found = runtime.from_first(lambda: find_run(config, folder))
    completed = runtime.everywhere(lambda: complete(config, found.facts, runtime.num_ranks))
    runtime.from_first(lambda: check_start(completed, folder))
    checkpoint, progress = found.checkpoint, found.progress
    if progress is not None and progress.finished:
        return runtime.from_first(lambda: report_finished(folder, progress))
    stands_at("the opening of the images", seldom=True)
    data = runtime.everywhere(lambda: open_train_val(completed.config))
    check_same_images(runtime, data, config.data.num_classes or len(data.train.class_names))
    counted = found.facts.counted(len(data.train), len(data.train.class_names))
    completed = runtime.everywhere(lambda: complete(config, counted, runtime.num_ranks))
    config, layout = completed.config, completed.layout
    loader = runtime.everywhere(lambda: build_loader(config, runtime, layout, data.train))
    objective = runtime.everywhere(
        lambda: Objective(config, data.train.labels, config.data.num_classes or 0, runtime.device)
    )
    stands_at("the opening of the model", seldom=True)
    schedule = Schedule.of(config.optimizer.lr_init, config.schedule, loader.steps_per_epoch)
    begun = None
    if checkpoint is None:
        begun = runtime.from_first(lambda: read_position(config, schedule, loader.steps_per_epoch))
    model, notes = open_model(config, data.train.class_names, checkpoint, runtime)
    dialect = config.checkpoint.checkpoint_format
    if dialect != NATIVE:  # refused before the first update is taken
        runtime.everywhere(lambda: choose_dialect(dialect, model.spec, CKPT_SUFFIX))
    runtime.from_first(lambda: folder.start(config))
    if config.run.report:
        runtime.from_first(lambda: write_environment(folder.path, runtime.describe()))
    board = _open_board(folder.path) if config.run.tensorboard and runtime.is_first else None
    journal = Journal(folder.metrics_file, rank=runtime.rank, board=board)
    for line in (*data.notes, *completed.notes, *notes, *found.warnings):
        journal.say(line)
    if data.held_out and runtime.is_first:
        say(f"The held-out images are listed in {folder.write_held_out(data.held_out)}")
    frozen: Frozen | None = None
    if config.model.freeze_backbone and config.model.frozen_views:
        frozen = Frozen(model, data, config, runtime)
        frozen.find()
        loader = build_loader(config, runtime, layout, data.train, frozen.train)
    on_features = frozen is not None
    learner = Learner(model, config, runtime, layout, schedule, objective, on_features=on_features)
    updates, continued = 0, None
    if checkpoint is not None and progress is not None:
        check_reached(checkpoint, progress, schedule)
        read = stored_tensors(checkpoint.path)
        learner.restore(read, checkpoint.path, progress.loss_scaler)
        updates, continued = progress.updates, checkpoint.path
    elif begun is not None:
        learner.restore(momentum_tensors(begun), begun.path)
        updates, continued = begun.updates, begun.path
    place = Place(updates, loader.steps_per_epoch, schedule.total_steps)
    if checkpoint is None:
        runtime.from_first(lambda: forget_passed_over(folder.path))
    passed_over = runtime.from_first(lambda: read_passed_over(folder.path)).cut_back(updates)
    guard = PassingGuard(
        learner,
        loader,
        lambda: saver.advice(),  # noqa: PLW0108 (it is not made yet)
        folder,
        journal,
        config,
        data.train.class_names,
        passed_over,
        lambda: saver.wait(),  # noqa: PLW0108 (it is not made yet)
    )
    reporter = Reporter(journal, guard, learner, loader, config)
    best = progress.best if progress else None
    saver = Saver(folder, learner, guard, journal, config, data.train.class_names, best)
    with runtime.naming_lost_ranks(), contextlib.closing(saver):
        reporter.announce(data, completed.rate, place, continued)
        stands_at("the estimate of how long it takes", seldom=True)
        estimate = estimate_run(learner, loader, len(data.val), config, place, frozen)
        for line in describe(estimate, model.spec, config, place):
            journal.say(line)
        for line in runtime.from_first(lambda: folder.cut_metrics_back(place.updates)):
            journal.say(line)
        if frozen is not None:
            stands_at("the computing of features", seldom=True)
            frozen.compute()
            if config.optimizer.optimizer == "momentum":  # the others divide by the gradient's size
                learner.scale_rates(factor := frozen.rate_factor())
                journal.say(f"The rate is multiplied by {factor:.3g}, for the features' size.")
        place, sums = fit(
            Run(config, loader, data.val, learner, reporter, saver, frozen),
            place,
            closes=progress is not None and (not progress.closed or place.ends_run),
        )
    assert saver.best is not None
    result = result_of(folder, place.updates, sums.to_row(), saver.best)
    if runtime.is_first:
        say_result(result)
    return result


def _open_board(folder: Path) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "Option 'tensorboard' needs the package of that name: "
            "pip install 'vitbase[tensorboard]'."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))


def build_loader(
    config: Config,
    runtime: Runtime,
    layout: BatchLayout,
    source: Source,
    features: FeatureStore | None = None,
) -> TrainLoader:
    kind = TrainLoader if features is None else partial(FeatureLoader, features)
    return kind(
        source,
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
