"""A run, and an evaluation, on MindSpore: what `training/run.py` is for torch.

All that is not arithmetic is the same code: completing the configuration, data, order, the loop,
the log, counting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from vitbase.config.complete import complete
from vitbase.config.config import Config
from vitbase.console import say
from vitbase.evaluation.answers import NOTHING, Keep
from vitbase.evaluation.environment import write_environment
from vitbase.evaluation.run import Evaluation, evaluate_on
from vitbase.mindspore.checkpoints import (
    MindSporeSaver,
    momentum_arrays,
    restore,
    stored_arrays,
)
from vitbase.mindspore.devices import MindSporeRuntime, joined_runtime
from vitbase.mindspore.learner import MindSporeLearner, Twin
from vitbase.pulse import stands_at
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Journal
from vitbase.runs.result import TrainResult, report_finished, result_of, say_result
from vitbase.sources.open import open_train_val
from vitbase.training.agreement import check_agreement, check_same_images
from vitbase.training.guard import Guard
from vitbase.training.hangs import watching
from vitbase.training.loop import Run, fit
from vitbase.training.objective import Objective
from vitbase.training.progress import Reporter
from vitbase.training.run import build_loader
from vitbase.training.schedule import Place, Schedule
from vitbase.training.start import (
    check_reached,
    check_start,
    find_run,
    open_model,
    read_position,
)


def train(config: Config) -> TrainResult:
    """Train as configured, on options that were checked.

    Returns and raises: as `vitbase.train`.
    """
    options = config.run
    with (
        joined_runtime(options.device_target, options.device_id, options.precision) as runtime,
        watching(options.hang_minutes, runtime),
        contextlib.closing(RunFolder(config.output_dir)) as folder,
        folder.naming_faults(),
    ):
        return _train(config, runtime, folder)


def evaluate_each(
    config: Config, on_unreadable: Callable[[str], None] = lambda line: None, keep: Keep = NOTHING
) -> Iterator[Evaluation]:
    """Evaluate as `evaluation.run.evaluate_each` does, on MindSpore."""
    options = config.run
    with joined_runtime(options.device_target, options.device_id, options.precision) as runtime:
        yield from evaluate_on(
            runtime,
            lambda model, preprocess: Twin.of(model, runtime, preprocess),
            config,
            on_unreadable,
            keep,
        )


def _open_model(
    config: Config,
    class_names: tuple[str, ...],
    checkpoint: Checkpoint | None,
    runtime: MindSporeRuntime,
) -> tuple[Twin, tuple[str, ...]]:
    """Build the model as the other engine does, from the same seed or weights, and hand it over."""
    model, notes = open_model(config, class_names, checkpoint, runtime)
    return runtime.everywhere(lambda: Twin.of(model, runtime, config.data.preprocess)), notes


def _train(config: Config, runtime: MindSporeRuntime, folder: RunFolder) -> TrainResult:
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
    model, notes = _open_model(config, data.train.class_names, checkpoint, runtime)
    learner = MindSporeLearner(model, config, runtime, layout, schedule, objective)
    runtime.from_first(lambda: folder.start(config))
    if config.run.report:
        runtime.from_first(lambda: write_environment(folder.path, runtime.describe()))
    journal = Journal(folder.metrics_file, rank=runtime.rank)
    for line in (*data.notes, *completed.notes, *notes, *found.warnings):
        journal.say(line)
    if data.held_out and runtime.is_first:
        say(f"The held-out images are listed in {folder.write_held_out(data.held_out)}")
    updates, continued = 0, None
    if checkpoint is not None and progress is not None:
        check_reached(checkpoint, progress, schedule)
        restore(learner, stored_arrays(checkpoint.weights), checkpoint.path)
        learner.scaling.load_state_dict(progress.loss_scaler)
        updates, continued = progress.updates, checkpoint.path
    elif begun is not None:
        taken_over = begun
        restore(learner, lambda: momentum_arrays(taken_over, learner), begun.path)
        updates, continued = begun.updates, begun.path
    place = Place(updates, loader.steps_per_epoch, schedule.total_steps)
    guard = Guard(runtime, loader, lambda: saver.advice())  # noqa: PLW0108 (it is not made yet)
    reporter = Reporter(journal, guard, learner, loader, config)
    best = progress.best if progress else None
    saver = MindSporeSaver(folder, learner, guard, journal, config, data.train.class_names, best)
    with runtime.naming_lost_ranks():
        reporter.announce(data, completed.rate, place, continued)
        for line in runtime.from_first(lambda: folder.cut_metrics_back(place.updates)):
            journal.say(line)
        closes = progress is not None and (not progress.closed or place.ends_run)
        run = Run(config, loader, data.val, learner, reporter, saver)
        place, sums = fit(run, place, closes=closes)
    assert saver.best is not None
    result = result_of(folder, place.updates, sums.to_row(), saver.best)
    if runtime.is_first:
        say_result(result)
    return result
