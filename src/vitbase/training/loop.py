"""The training loop: updates, log lines, evaluations and checkpoints, from any place on."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from vitbase.config.config import Config
from vitbase.data.loader import TrainLoader
from vitbase.evaluation.features import evaluate_features
from vitbase.evaluation.run import Sums, evaluate_model
from vitbase.sources.open import Source
from vitbase.training.frozen import Frozen
from vitbase.training.progress import Reporter
from vitbase.training.saver import Saver
from vitbase.training.schedule import Place
from vitbase.training.step import Learner


@dataclasses.dataclass(frozen=True)
class Run:
    """One rank's share of a run: who gives the images, learns, says and writes.

    Attributes:
      frozen: the features that are trained on and evaluated in place of images, if they are.
    """

    config: Config
    loader: TrainLoader
    val: Source
    learner: Learner
    reporter: Reporter
    saver: Saver
    frozen: Frozen | None = None


def fit(run: Run, place: Place) -> tuple[Place, Sums]:
    """Train from a place to the end of the run, or of its patience (collective).

    Returns: the place where it ended, and what the last evaluation has counted.
    """
    learner, reporter, saver = run.learner, run.reporter, run.saver
    every = run.config.checkpoint.checkpoint_every_steps
    sums: Sums | None = None
    with reporter.live(place):
        while not place.ends_run:
            learner.model.train()
            reporter.begin_epoch()
            with contextlib.closing(run.loader.epoch(place.epoch, place.step)) as batches:
                while True:
                    after = place.after_update()
                    logs = reporter.is_due(after)
                    mix = learner.objective.draw_mix(place.epoch, place.step)
                    taken = learner.step(place.updates, batches, mix, measure=logs)
                    place = after
                    reporter.saw(place, taken)
                    if logs:
                        reporter.log(place, taken)
                    if place.ends_epoch:
                        break
                    if every is not None and place.updates % every == 0:
                        saver.save(place, None)
            reporter.end_epoch()
            epoch, _ = place.taken
            due = place.ends_run or epoch % run.config.schedule.eval_every_epochs == 0
            sums = _evaluate(run, place) if due else None
            if due or run.frozen is None:  # an epoch on features is done again in no time
                saver.save(place, sums)
            if saver.is_out_of_patience(place) and not place.ends_run:
                reporter.gave_up(saver.best)
                break
    reporter.end_run()
    assert sums is not None
    return place, sums


def _evaluate(run: Run, place: Place) -> Sums:
    learner, config = run.learner, run.config
    size = config.data.eval_batch_size or learner.layout.batch_size
    warn = run.reporter.journal.warn
    started = time.perf_counter()
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
            )
    run.reporter.evaluated(place, sums, run.val.class_names, time.perf_counter() - started)
    return sums
