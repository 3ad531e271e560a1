"""A run: from a configuration to a trained, evaluated, resumable model."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vitbase.config.config import Config
from vitbase.errors import ConfigError
from vitbase.pulse import stands_at
from vitbase.runs.checkpoints import CKPT_SUFFIX
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Board
from vitbase.runs.passed_over import read_passed_over
from vitbase.runs.result import TrainResult
from vitbase.runtime import Runtime, joined_runtime, launched_ranks
from vitbase.training.estimate import describe, estimate_run
from vitbase.training.frozen import Frozen
from vitbase.training.hangs import SELDOM, watching
from vitbase.training.loop import Run, fit
from vitbase.training.passing import PassingGuard
from vitbase.training.prepare import build_loader, conclude, prepare
from vitbase.training.progress import Reporter
from vitbase.training.saver import NATIVE, Saver
from vitbase.training.schedule import Place
from vitbase.training.start import (
    open_model,
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
    made = prepare(config, runtime, folder)
    if isinstance(made, TrainResult):
        return made
    config, data, loader, schedule = made.config, made.data, made.loader, made.schedule
    checkpoint, progress = made.found.checkpoint, made.found.progress
    model, notes = open_model(config, data.train.class_names, checkpoint, runtime)
    dialect = config.checkpoint.checkpoint_format
    if dialect != NATIVE:  # refused before the first update is taken
        runtime.everywhere(lambda: choose_dialect(dialect, model.spec, CKPT_SUFFIX))
    journal = made.begin(folder, runtime, notes, _open_board if config.run.tensorboard else None)
    frozen: Frozen | None = None
    if config.model.freeze_backbone and config.model.frozen_views:
        frozen = Frozen(model, data, config, runtime)
        frozen.find()
        loader = build_loader(config, runtime, made.layout, data.train, frozen.train)
    on_features = frozen is not None
    learner = Learner(
        model, config, runtime, made.layout, schedule, made.objective, on_features=on_features
    )
    if config.model.memory_budget is not None:
        journal.say(
            f"Of {model.spec.depth} blocks {learner.memory.recomputed} are computed again for the "
            f"backward pass; training takes about {learner.memory.total / 2**30:.3g} GiB."
        )
    updates, continued = 0, None
    if checkpoint is not None and progress is not None:
        read = stored_tensors(checkpoint.path)
        learner.restore(read, checkpoint.path, progress.loss_scaler)
        updates, continued = progress.updates, checkpoint.path
    elif made.begun is not None:
        learner.restore(momentum_tensors(made.begun), made.begun.path)
        updates, continued = made.begun.updates, made.begun.path
    place = Place(updates, loader.steps_per_epoch, schedule.total_steps)
    if checkpoint is None:
        runtime.from_first(folder.forget_passed_over)
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
    closing = contextlib.closing
    with runtime.naming_lost_ranks(), closing(saver), closing(loader):
        reporter.announce(data, made.rate, place, continued)
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
    return conclude(folder, runtime, place, sums, saver)


def _open_board(folder: Path) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "Option 'tensorboard' needs the package of that name: "
            "pip install 'vitbase[tensorboard]'."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
