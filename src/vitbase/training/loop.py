"""The training loop: updates, log lines, evaluations and checkpoints, from any place on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from functools import partial
from typing import NoReturn

from vitbase.config.config import Config
from vitbase.data.loader import TrainLoader
from vitbase.evaluation.features import evaluate_features
from vitbase.evaluation.run import Sums, evaluate_model
from vitbase.sources.open import Source
from vitbase.stopping import Stopped, asked, looking
from vitbase.training.frozen import Frozen
from vitbase.training.guard import Jump
from vitbase.training.progress import Reporter
from vitbase.training.saver import Saver
from vitbase.training.schedule import Place
from vitbase.training.signs import Signs
from vitbase.training.step import Learner
from vitbase.training.stops import Stops


@dataclasses.dataclass(frozen=True)
class Run:
    """One rank's share of a run: who gives the images, learns, says and writes.

    Attributes:
      frozen: the features that are trained on and evaluated in place of images, if they are.
      signs: of life.
    """

    config: Config
    loader: TrainLoader
    val: Source
    learner: Learner
    reporter: Reporter
    saver: Saver
    frozen: Frozen | None = None
    signs: Signs = dataclasses.field(default_factory=Signs)


def fit(run: Run, place: Place, *, closes: bool = False) -> tuple[Place, Sums]:
    """Train from a place to the end of the run, or of its patience (collective).

    Args:
      closes: whether the run stopped at this place before it was evaluated, which comes first.
    Returns: the place where it ended, and what the last evaluation has counted.
    Raises: Stopped where a signal has asked for it, after saving what was not saved.
    """
    sums: Sums | None = None
    stops = Stops(run.learner.runtime, run.config.checkpoint.checkpoint_every_minutes)
    with run.reporter.live(place), looking():
        while closes or not (place.ends_run or run.saver.is_out_of_patience(place)):
            try:
                if not closes:
                    place = _train_epoch(run, stops, place)
                sums = _close_epoch(run, stops, place)
                closes = False
            except Jump as jump:
                place = dataclasses.replace(place, updates=jump.updates)
                closes = place.ends_epoch
                if jump.progress is not None:
                    run.saver.best = jump.progress.best
        if not place.ends_run:
            run.reporter.gave_up(run.saver.best)
        run.saver.finish()
    stops.close()
    run.reporter.end_run()
    assert sums is not None
    return place, sums


def _train_epoch(run: Run, stops: Stops, place: Place) -> Place:
    """Take the updates of an epoch that are left. Returns: the place at its end."""
    learner, reporter, saver = run.learner, run.reporter, run.saver
    every = run.config.checkpoint.checkpoint_every_steps
    learner.model.train()
    reporter.begin_epoch()
    with contextlib.closing(run.loader.epoch(place.epoch, place.step)) as batches:
        while True:
            reporter.guard.check_place(place.updates)
            after = place.after_update()
            logs = reporter.is_due(after)
            mix = learner.objective.draw_mix(place.epoch, place.step)
            told = run.signs.of_update(place, run.loader, batches)
            settle = partial(reporter.waits.settle, reporter.guard.settle)
            taken = learner.step(place.updates, told, mix, measure=logs, settle=settle)
            place = after
            reporter.saw(place, taken)
            if logs:
                reporter.log(place, taken)
            gives_up = saver.look()
            with reporter.waits.during("exchanging"):
                decision = stops.decide(gives_up)
            if decision == "stop":
                _stop(run, stops, place)
            if place.ends_epoch:
                break
            if decision == "save" or (every is not None and place.updates % every == 0):
                run.signs.saves(place)
                with reporter.waits.during("saving"):
                    saver.save(place, None)
                stops.saved()
    reporter.end_epoch()
    return place


def _close_epoch(run: Run, stops: Stops, place: Place) -> Sums | None:
    """Evaluate at the end of an epoch, if it is time, and save."""
    epoch, _ = place.taken
    due = place.ends_run or epoch % run.config.schedule.eval_every_epochs == 0
    sums = _evaluate(run, stops, place) if due else None
    if due or run.frozen is None:  # an epoch on features is done again in no time
        run.signs.saves(place)
        run.saver.save(place, sums, closed=True)
        stops.saved()
    return sums


def _stop(run: Run, stops: Stops, place: Place) -> NoReturn:
    """Save, and end (collective). Raises: Stopped."""
    stops.close()
    run.signs.saves(place)
    run.saver.save(place, None)
    run.saver.finish()
    signal = asked()
    raise Stopped(
        f"Stopped{f' by {signal.name}' if signal else ', as another rank was asked to'} after "
        f"update {place.updates}, which is saved: the same command goes on from there."
    )


def _evaluate(run: Run, stops: Stops, place: Place) -> Sums:
    learner, config = run.learner, run.config
    size = config.data.eval_batch_size or learner.layout.batch_size
    warn = run.reporter.journal.warn
    started = time.perf_counter()
    sums: Sums | None
    numbers = itertools.count(1)

    def go_on() -> bool:
        run.signs.evaluates(place, next(numbers))
        return stops.decide() != "stop"

    run.signs.evaluates(place, 0)
    with learner.average.applied() if learner.average else contextlib.nullcontext():
        if run.frozen is not None:
            sums = evaluate_features(
                learner.model, run.frozen.val.features, run.val, learner.runtime, size, warn
            )
        else:
            sums = evaluate_model(
                learner.model,
                run.val,
                config.data.preprocess,
                learner.runtime,
                batch_size=size,
                num_workers=config.data.num_workers,
                on_unreadable=warn,
                go_on=go_on,
            )
    if sums is None:
        _stop(run, stops, place)
    run.signs.has_evaluated()
    run.reporter.evaluated(place, sums, run.val.class_names, time.perf_counter() - started)
    return sums
