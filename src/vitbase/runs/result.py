"""What a run ends with, from its last evaluation or from its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from vitbase.console import say
from vitbase.errors import CheckpointError
from vitbase.runs.folder import RunFolder
from vitbase.runs.progress import SCORES, Best, Progress


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run ended with. Accuracies are fractions, measured after the last update.

    `best_*` is the checkpoint that did best on the evaluation images; having been chosen on them,
    its score flatters, and is never the run's result.

    Attributes:
      metrics: the figures of the last evaluation, by their names in `metrics.jsonl`.
      best_score: top-1 accuracy; mean average precision where images have several labels.
    """

    output_dir: Path
    updates: int
    metrics: Mapping[str, float]
    best_checkpoint: str
    best_score: float

    @property
    def eval_top1(self) -> float:
        """Top-1 accuracy. Raises: KeyError if the images have several labels."""
        return self.metrics["eval_top1"]

    @property
    def eval_top5(self) -> float:
        """Top-5 accuracy. Raises: KeyError if the images have several labels."""
        return self.metrics["eval_top5"]

    @property
    def eval_loss(self) -> float:
        return self.metrics["eval_loss"]


def report_finished(folder: RunFolder, progress: Progress) -> TrainResult:
    """Tell the result of a finished run again. Raises: CheckpointError if it has left none."""
    row = folder.read_last_evaluation(progress.updates)
    if row is None or progress.best is None:
        raise CheckpointError(
            f"The run in {folder.path} is finished, but its metrics.jsonl holds no evaluation "
            f"after update {progress.updates}, its last. "
            f"Evaluate it with: vitbase eval --checkpoint_path {folder.path}"
        )
    if _contradicts(row, progress.best):
        raise CheckpointError(
            f"The run in {folder.path} is finished, but its metrics.jsonl does not fit its best "
            f"score, {progress.best.score:.2%}: it is of another run. "
            f"Evaluate it with: vitbase eval --checkpoint_path {folder.path}"
        )
    say(f"The run in {folder.path} is finished; nothing to do. Its result:")
    result = result_of(folder, progress.updates, row, progress.best)
    say_result(result)
    return result


def _contradicts(row: Mapping[str, float], best: Best) -> bool:
    """Whether an evaluation cannot be one of the run that has this best score."""
    score = row.get(best.score_name, math.nan)
    return score > best.score or (row.get("epoch") == best.epoch and score < best.score)


def result_of(folder: RunFolder, updates: int, row: Mapping[str, float], best: Best) -> TrainResult:
    metrics = {k: v for k, v in row.items() if k.startswith("eval_") and k != "eval_seconds"}
    return TrainResult(folder.path, updates, metrics, best.checkpoint, best.score)


def say_result(result: TrainResult) -> None:
    figures = [
        f"{shown} {result.metrics[name]:.2%}"
        for name, shown in SCORES.items()
        if name in result.metrics
    ]
    say(f"After {result.updates} updates: {', '.join(figures)}, loss {result.eval_loss:.4f}")
    say(
        f"Best checkpoint: {result.best_checkpoint} with {result.best_score:.2%} "
        f"(chosen on these same evaluation images, so it flatters)"
    )
    say(f"Run folder: {result.output_dir}")
