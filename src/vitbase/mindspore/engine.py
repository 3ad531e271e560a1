"""A run, and an evaluation, on MindSpore: what `training/run.py` is for torch.

All that is not arithmetic is the same code: completing the configuration, data, order, the loop,
the log, counting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from vitbase.config.config import Config
from vitbase.evaluation.answers import NOTHING, Keep
from vitbase.evaluation.run import Evaluation, evaluate_on
from vitbase.mindspore.checkpoints import (
    MindSporeSaver,
    momentum_arrays,
    restore,
    stored_arrays,
)
from vitbase.mindspore.devices import MindSporeRuntime, joined_runtime
from vitbase.mindspore.learner import MindSporeLearner, Twin
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.folder import RunFolder
from vitbase.runs.result import TrainResult
from vitbase.training.guard import Guard
from vitbase.training.hangs import watching
from vitbase.training.loop import Run, fit
from vitbase.training.prepare import conclude, prepare
from vitbase.training.progress import Reporter
from vitbase.training.schedule import Place
from vitbase.training.start import (
    open_model,
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
    made = prepare(config, runtime, folder)
    if isinstance(made, TrainResult):
        return made
    config, data, loader, schedule = made.config, made.data, made.loader, made.schedule
    checkpoint, progress = made.found.checkpoint, made.found.progress
    model, notes = _open_model(config, data.train.class_names, checkpoint, runtime)
    learner = MindSporeLearner(model, config, runtime, made.layout, schedule, made.objective)
    journal = made.begin(folder, runtime, notes)
    updates, continued = 0, None
    if checkpoint is not None and progress is not None:
        restore(learner, stored_arrays(checkpoint.weights), checkpoint.path)
        learner.scaling.load_state_dict(progress.loss_scaler)
        updates, continued = progress.updates, checkpoint.path
    elif (begun := made.begun) is not None:
        restore(learner, lambda: momentum_arrays(begun, learner), begun.path)
        updates, continued = begun.updates, begun.path
    place = Place(updates, loader.steps_per_epoch, schedule.total_steps)
    guard = Guard(runtime, loader, lambda: saver.advice())  # noqa: PLW0108 (it is not made yet)
    reporter = Reporter(journal, guard, learner, loader, config)
    best = progress.best if progress else None
    saver = MindSporeSaver(folder, learner, guard, journal, config, data.train.class_names, best)
    with runtime.naming_lost_ranks():
        reporter.announce(data, made.rate, place, continued)
        for line in runtime.from_first(lambda: folder.cut_metrics_back(place.updates)):
            journal.say(line)
        closes = progress is not None and (not progress.closed or place.ends_run)
        run = Run(config, loader, data.val, learner, reporter, saver)
        place, sums = fit(run, place, closes=closes)
    return conclude(folder, runtime, place, sums, saver)
