"""`vitbase eval`."""

from __future__ import annotations

from vitbase.cli.arguments import has_recipe, parse_config, take_switch
from vitbase.cli.compare import run_compare
from vitbase.cli.naming import telling_whose
from vitbase.config.config import Config
from vitbase.console import printable, say, say_json, warn
from vitbase.errors import ConfigError
from vitbase.launch.words import find_value


def run_eval(words: list[str]) -> None:
    if words[:1] == ["compare"]:  # no recipe is called so
        run_compare(words[1:])
        return
    words, as_json = take_switch(words, "--json")
    given = find_value(words, "checkpoint_path")
    recipe: str | None = None
    if given is not None and not has_recipe(words):
        from vitbase.runs.checkpoints import CONFIG_FILE, check_config_file, find_run_folder
        from vitbase.weights.find import list_weights

        run = find_run_folder(given)
        recipe = str(run / CONFIG_FILE) if run else None
        if run is not None:
            check_config_file(run / CONFIG_FILE)
        else:
            list_weights(given)  # that nothing is there is the better message
            raise ConfigError(
                f"{given} lies in no run folder, so it does not tell what to evaluate on. Name a "
                f"recipe too, such as: vitbase eval imagenet --checkpoint_path {given}"
            )
    recipe = recipe or "imagenet"
    config = parse_config("eval", words, default_recipe=recipe)
    with telling_whose(words, config, recipe):
        _evaluate(config, as_json)


def _evaluate(config: Config, as_json: bool) -> None:
    from vitbase.engines import evaluate_each
    from vitbase.runs.checkpoints import is_own_weights
    from vitbase.runtime import is_first_rank

    for result in evaluate_each(config, on_unreadable=lambda line: warn(printable(line))):
        if not is_first_rank():
            continue
        for note in result.notes:
            warn(printable(note))
        place = result.weights.parent if is_own_weights(result.weights) else None
        name = (place or result.weights).name
        if as_json:
            say_json({"checkpoint": str(place or result.weights), **result.sums.to_row()})
        else:
            figures = printable(result.sums.describe(result.class_names))
            say(f"{name}: {figures}  ({result.seconds:.1f} s)")
