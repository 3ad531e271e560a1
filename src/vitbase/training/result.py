"""What a run ends with, from its last evaluation or from its folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vitbase.errors import CheckpointError
from vitbase.training.checkpoint import Best, Progress, RunFolder
from vitbase.training.journal import say


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run ended with. Accuracies are fractions, measured after the last update.

    `best_*` is the checkpoint that did best on the evaluation images; having been chosen on them,
    its accuracy flatters, and is never the run's result.
    """

    output_dir: Path
    updates: int
    eval_top1: float
    eval_top5: float
    eval_loss: float
    best_checkpoint: str
    best_eval_top1: float


def report_finished(folder: RunFolder, progress: Progress) -> TrainResult:
    """Tell the result of a finished run again. Raises: CheckpointError if it has left none."""
    row = folder.read_last_evaluation()
    if row is None or progress.best is None:
        raise CheckpointError(
            f"The run in {folder.path} is finished, but its metrics.jsonl holds no evaluation. "
            f"Evaluate it with: vitbase eval --checkpoint_path {folder.path}"
        )
    say(f"The run in {folder.path} is finished; nothing to do. Its result:")
    result = result_of(folder, progress.updates, row, progress.best)
    say_result(result)
    return result


def result_of(folder: RunFolder, updates: int, row: dict[str, Any], best: Best) -> TrainResult:
    return TrainResult(
        output_dir=folder.path,
        updates=updates,
        eval_top1=row["eval_top1"],
        eval_top5=row["eval_top5"],
        eval_loss=row["eval_loss"],
        best_checkpoint=best.checkpoint,
        best_eval_top1=best.eval_top1,
    )


def say_result(result: TrainResult) -> None:
    say(
        f"After {result.updates} updates: top-1 {result.eval_top1:.2%}, "
        f"top-5 {result.eval_top5:.2%}, loss {result.eval_loss:.4f}"
    )
    say(
        f"Best checkpoint: {result.best_checkpoint} with {result.best_eval_top1:.2%} "
        f"(chosen on these same evaluation images, so it flatters)"
    )
    say(f"Run folder: {result.output_dir}")
