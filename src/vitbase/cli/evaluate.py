"""`vitbase eval`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict

from vitbase.cli.arguments import has_recipe, parse_config, take_options, take_switch
from vitbase.cli.commands import loading
from vitbase.cli.compare import run_compare
from vitbase.cli.help import option
from vitbase.cli.naming import telling_whose
from vitbase.config.config import Config
from vitbase.console import printable, say, say_json, warn
from vitbase.disk import as_path
from vitbase.errors import ConfigError
from vitbase.launch.words import find_value

_DESCRIPTION = (
    " --json prints a JSON object a checkpoint. --calibrate fits a temperature and keeps it beside "
    "the weights. --save_features keeps what the head reads with the predictions."
)


class _Results(TypedDict, total=False):
    """What to keep of an evaluation."""

    out: Annotated[str, option("folder for evaluation.json: every figure; none: not kept")]
    save_predictions: Annotated[
        str, option("file .parquet or .csv: a row for each image; none: not kept")
    ]


class _Asked(NamedTuple):
    """What is to become of the results."""

    out: Path | None
    save_predictions: Path | None
    save_features: bool
    calibrate: bool
    as_json: bool


def run_evaluate(words: list[str]) -> None:
    if words[:1] == ["compare"]:  # no recipe is called so
        run_compare(words[1:])
        return
    words, as_json = take_switch(words, "--json")
    words, calibrate = take_switch(words, "--calibrate")
    words, features = take_switch(words, "--save_features")
    words, places = take_options(words, _Results)
    asked = _Asked(
        as_path(places["out"]) if "out" in places else None,
        as_path(places["save_predictions"]) if "save_predictions" in places else None,
        features,
        calibrate,
        as_json,
    )
    if features and asked.save_predictions is None:
        raise ConfigError("--save_features needs --save_predictions FILE.parquet.")
    given = find_value(words, "checkpoint_path")
    recipe: str | None = None
    if given is not None and not has_recipe(words):
        from vitbase.runs.checkpoints import CONFIG_FILE, check_config_file, find_run_folder
        from vitbase.weights.find import list_weights

        run = find_run_folder(given)
        recipe = str(run / CONFIG_FILE) if run else None
        if run is not None:
            check_config_file(run / CONFIG_FILE)
        elif find_value(words, "suite") is None:
            list_weights(given)  # that nothing is there is the better message
            raise ConfigError(
                f"{given} lies in no run folder, so it does not tell what to evaluate on. Name a "
                f"recipe too, such as: vitbase eval imagenet --checkpoint_path {given}"
            )
    recipe = recipe or "imagenet"
    config = parse_config(
        "eval",
        words,
        default_recipe=recipe,
        description=_DESCRIPTION,
        switches=("json", "calibrate", "save_features"),
        others=_Results,
    )
    with telling_whose(words, config, recipe):
        _evaluate(config, asked)


def _evaluate(config: Config, asked: _Asked) -> None:
    with loading():
        from vitbase.engines import evaluate_each
        from vitbase.evaluation.answers import Keep
        from vitbase.evaluation.calibration import write_calibration
        from vitbase.evaluation.predictions import write_predictions
        from vitbase.evaluation.record import RECORD_FILE, Record
        from vitbase.runs.checkpoints import is_own_weights
        from vitbase.runtime import is_first_rank

    _check_places(config, asked)
    keep = Keep(temperatures=asked.calibrate or asked.out is not None, features=asked.save_features)
    data = config.data.val_data_path or config.data.data_path or ""
    tell = warn if asked.as_json else say
    for result in evaluate_each(config, lambda line: warn(printable(line)), keep):
        if not is_first_rank():
            continue
        for note in result.notes:
            warn(printable(note))
        place = result.weights.parent if is_own_weights(result.weights) else None
        name = (place or result.weights).name
        whose = f"{name} {result.data_set}".rstrip()
        speed = result.speed.describe() if result.speed else f"{result.seconds:.1f} s"
        whole_name = str(place or result.weights)
        if result.kept is None:  # means of several evaluations, or several valid labels an image
            if asked.as_json:
                say_json({"checkpoint": whole_name, **result.to_row()})
            else:
                say(f"{whose}: {printable(result.sums.describe(result.class_names))}  ({speed})")
            continue
        record = Record(result, data)
        if asked.as_json:
            figures = record.to_dict(confusion=False)
            say_json({"checkpoint": whole_name, **result.to_row(), **figures})
        else:
            say(f"{whose}: {printable(record.describe())}  ({speed})")
        if asked.out is not None:
            for note in record.keep(asked.out):
                warn(printable(note))
            tell(printable(f"Every figure: {asked.out / RECORD_FILE}"))
        if asked.save_predictions is not None:
            write_predictions(asked.save_predictions, record.predictions)
            tell(printable(f"A row for each image: {asked.save_predictions}"))
        if asked.calibrate:
            if record.calibration is None:
                raise ConfigError("--calibrate needs images that can be read, of one label each.")
            file = write_calibration(result.weights, record.calibration, data)
            tell(printable(f"{file}: {record.calibration.describe()}"))


def _check_places(config: Config, asked: _Asked) -> None:
    """Raise a ConfigError, before anything is computed, if results cannot be kept as asked."""
    from vitbase.evaluation.predictions import check_place
    from vitbase.runs.checkpoints import is_own_weights
    from vitbase.weights.find import list_weights

    suite = config.evaluation.suite
    if suite is not None and (asked.out or asked.save_predictions or asked.calibrate):
        raise ConfigError(
            f"--out, --save_predictions and --calibrate are of one data set, and --suite {suite} "
            f"has several: evaluate that one by itself."
        )
    if asked.out is not None and os.path.lexists(asked.out) and not asked.out.is_dir():
        raise ConfigError(f"--out {asked.out} is no folder: give another one.")
    if asked.save_predictions is not None:
        check_place(asked.save_predictions, features=asked.save_features)
    given = config.model.checkpoint_path
    if given is None or (asked.out is None and asked.save_predictions is None):
        return
    found = list_weights(given)
    if len(found) > 1:
        last = found[-1].parent if is_own_weights(found[-1]) else found[-1]
        raise ConfigError(
            f"--out and --save_predictions are of one checkpoint, and checkpoint_path {given} has "
            f"{len(found)}: give one of them, such as {last}."
        )
