"""What every engine does before its model learns, and after: options, images, loss, the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vitbase.config.batch import BatchLayout, PeakRate
from vitbase.config.complete import complete
from vitbase.config.config import Config
from vitbase.data.augment import TrainTransform
from vitbase.data.device_decode import DeviceDecoder, DeviceTrainLoader
from vitbase.data.loader import TrainLoader
from vitbase.evaluation.features import FeatureLoader, FeatureStore
from vitbase.evaluation.run import Sums
from vitbase.pulse import stands_at
from vitbase.runs.environment import write_environment
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Board, Journal
from vitbase.runs.result import TrainResult, report_finished, result_of, say_result
from vitbase.runtime import Runtime
from vitbase.sources.open import Source, TrainVal, open_train_val
from vitbase.training.agreement import check_agreement, check_same_images
from vitbase.training.fp8 import check_fp8
from vitbase.training.mindspore_state import MindSporeState
from vitbase.training.objective import Objective
from vitbase.training.recorded import check_recordable
from vitbase.training.saver import Saver
from vitbase.training.schedule import Place, Schedule
from vitbase.training.start import (
    FoundRun,
    check_reached,
    check_start,
    find_run,
    read_position,
)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that could begin, or go on.

    Attributes:
      config: complete.
      rate: the learning rate, and the rule that gave it.
      found: what the run folder holds.
      begun: what MindSpore has begun, and this run continues.
      notes: for the log.
    """

    config: Config
    layout: BatchLayout
    rate: PeakRate
    data: TrainVal
    loader: TrainLoader
    objective: Objective
    schedule: Schedule
    found: FoundRun
    begun: MindSporeState | None
    notes: tuple[str, ...]

    def begin(
        self,
        folder: RunFolder,
        runtime: Runtime,
        notes: tuple[str, ...],
        open_board: Callable[[Path], Board] | None = None,
    ) -> Journal:
        """Begin to write the run folder, and its log (collective).

        Args:
          notes: of the model, for the log.
        """
        runtime.from_first(lambda: folder.start(self.config))
        if self.config.run.report:
            runtime.from_first(lambda: write_environment(folder.path, runtime.describe()))
        boards: list[Board] = []
        if open_board is not None:
            runtime.from_first(lambda: boards.append(open_board(folder.path)))
        board = boards[0] if boards else None
        journal = Journal(folder.metrics_file, rank=runtime.rank, board=board)
        for line in (*self.notes, *notes, *self.found.warnings):
            journal.say(line)
        if self.data.held_out:
            place = runtime.from_first(lambda: folder.write_held_out(self.data.held_out))
            journal.say(f"The held-out images are listed in {place}")
        return journal


def prepare(config: Config, runtime: Runtime, folder: RunFolder) -> Prepared | TrainResult:
    """Complete the options, open the images, and find what there is of a run (collective).

    Returns: the result of a run that is finished already, which is reported.
    Raises: VitbaseError on all ranks, before anything is written.
    """
    check_agreement(runtime, config)
    check_recordable(config, runtime)
    check_fp8(config, runtime)
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
    whole, layout = completed.config, completed.layout
    loader = runtime.everywhere(lambda: build_loader(whole, runtime, layout, data.train))
    objective = runtime.everywhere(
        lambda: Objective(whole, data.train.labels, whole.data.num_classes or 0, runtime.device)
    )
    stands_at("the opening of the model", seldom=True)
    schedule = Schedule.of(whole.optimizer.lr_init, whole.schedule, loader.steps_per_epoch)
    begun = None
    if checkpoint is None:
        begun = runtime.from_first(lambda: read_position(whole, schedule, loader.steps_per_epoch))
    elif progress is not None:
        check_reached(checkpoint, progress, schedule)
    notes = (*data.notes, *completed.notes)
    return Prepared(
        whole, layout, completed.rate, data, loader, objective, schedule, found, begun, notes
    )


def conclude(
    folder: RunFolder, runtime: Runtime, place: Place, sums: Sums, saver: Saver
) -> TrainResult:
    """Return the result of a run that has ended, and say it."""
    assert saver.best is not None
    result = result_of(folder, place.updates, sums.to_row(), saver.best)
    if runtime.is_first:
        say_result(result)
    return result


def build_loader(
    config: Config,
    runtime: Runtime,
    layout: BatchLayout,
    source: Source,
    features: FeatureStore | None = None,
) -> TrainLoader:
    kind: Callable[..., TrainLoader] = TrainLoader
    if features is not None:
        kind = partial(FeatureLoader, features)
    elif config.data.decoder == "device":
        kind = partial(DeviceTrainLoader, DeviceDecoder(runtime, config.data.preprocess))
    return kind(
        source,
        TrainTransform(config.data.preprocess, config.augment),
        seed=config.run.seed,
        batch_size=layout.batch_size,
        accumulation_steps=layout.accumulation_steps,
        num_workers=config.data.num_workers,
        processes=config.data.worker_processes,
        max_bad_images=config.data.max_bad_images if config.data.on_bad_image == "skip" else 0,
        repeats=config.augment.repeated_augmentation,
        balanced=config.data.sampling == "balanced",
        pin_memory=runtime.pin_memory,
        rank=runtime.rank,
        num_ranks=runtime.num_ranks,
    )
