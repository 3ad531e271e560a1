"""Which engine trains and evaluates: torch, or MindSpore. Nobody else asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vitbase.config.config import Config, load_config
from vitbase.config.evaluating import EvaluationSection
from vitbase.console import say, warn
from vitbase.errors import CheckpointError, ConfigError, VitbaseError
from vitbase.evaluation.answers import NOTHING, Keep
from vitbase.evaluation.report.svg import check_charts
from vitbase.evaluation.run import Evaluation
from vitbase.mindspore.fits import check_installed, check_options
from vitbase.runs.checkpoints import CONFIG_FILE, REPORT
from vitbase.runs.folder import RunFolder
from vitbase.runs.result import TrainResult
from vitbase.runtime import is_first_rank, launched_ranks


def train(config: Config) -> TrainResult:
    """Train as configured, or continue the run in the output folder, or report a finished one.

    Returns: the result after the last update, on every rank.
    Raises: VitbaseError for whatever the user can mend, before anything is written where possible.
    """
    if config.evaluation != EvaluationSection():
        raise ConfigError(
            "Options protocol, test_time_augmentation, suite and map are of `vitbase eval`; a run "
            "evaluates with the preprocessing that it trains with."
        )
    if config.run.report:
        check_charts()
    result = _engine(config)(config)
    if config.run.report and is_first_rank():
        _write_page(result.output_dir)
    return result


def _engine(config: Config) -> Callable[[Config], TrainResult]:
    if config.run.engine == "torch":
        from vitbase.training.run import train as train_on_torch

        return train_on_torch
    check_options(config)
    check_installed()
    from vitbase.mindspore.engine import train as train_on_mindspore

    return train_on_mindspore


def _write_page(run: Path) -> None:
    """Write the report of a run; what hinders it is said, and no reason to lose the run."""
    from vitbase.evaluation.report.page import write_report  # pillow and numpy's parts of it

    out = run / REPORT / "report.html"
    try:
        if launched_ranks() in {None, 1}:  # several have gone their ways by now
            _evaluate_last(run)
    except VitbaseError as error:
        warn(f"WARNING: the report has no evaluation: {error}")
    try:
        write_report([run], out)
    except VitbaseError as error:
        warn(f"WARNING: no report was written: {error}")
    else:
        say(f"Report: {out}")


def _evaluate_last(run: Path) -> None:
    """Leave an evaluation of the last checkpoint in the report folder, if it is not there yet."""
    from vitbase.evaluation.record import Record, has_record_of

    last, _ = RunFolder(run).newest_whole()
    if last is None:
        raise CheckpointError(f"{run} has no whole checkpoint.")
    if has_record_of(run / REPORT, last.weights):
        return
    config = load_config(str(run / CONFIG_FILE)).replace(checkpoint_path=str(last.path))
    for result in evaluate_each(config, warn, Keep(temperatures=True)):
        record = Record(result, config.data.val_data_path or config.data.data_path or "")
        for note in record.keep(run / REPORT):
            warn(note)


def evaluate(config: Config) -> list[Evaluation]:
    """Evaluate the checkpoint, or each checkpoint of the folder, that `checkpoint_path` names.

    Raises: ConfigError, DataError, CheckpointError or WeightsError.
    """
    return list(evaluate_each(config))


def evaluate_each(
    config: Config, on_unreadable: Callable[[str], None] = lambda line: None, keep: Keep = NOTHING
) -> Iterator[Evaluation]:
    """As :func:`evaluate`, yielding each result as soon as it is there.

    A damaged checkpoint is reported and passed over, unless there is no whole one.

    Args:
      on_unreadable: receives a line for each checkpoint and image that cannot be read.
      keep: what to keep of the answer to each image.
    """
    if config.model.checkpoint_path is None:
        raise ConfigError("Nothing to evaluate: give --checkpoint_path.")
    if config.run.engine == "torch":
        from vitbase.evaluation.run import evaluate_each as evaluate_on_torch

        yield from evaluate_on_torch(config, on_unreadable, keep)
        return
    if keep.features:
        raise ConfigError("Engine mindspore does not read --save_features: --engine torch does.")
    check_installed()
    from vitbase.mindspore.engine import evaluate_each as evaluate_on_mindspore

    yield from evaluate_on_mindspore(config, on_unreadable, keep)
