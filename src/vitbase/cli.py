"""Commands -> functions; nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

import tyro

from vitbase._version import __version__
from vitbase.arguments import (
    TYRO,
    drop_value,
    find_value,
    has_recipe,
    image_size_of,
    parse_config,
    parse_launch,
    parse_places,
    refuse_unknown,
    take_switch,
)
from vitbase.cli_data import run_data
from vitbase.config import Config, read_recipe_text, recipe_names
from vitbase.console import say, warn
from vitbase.errors import LAUNCHED, ConfigError, VitbaseError, nearest, tell_launcher

_USAGE = """usage: vitbase COMMAND [...]

  train [RECIPE] [--OPTION VALUE ...]      train, or continue, a run (default recipe: fashion)
  eval [RECIPE] --checkpoint_path PATH     top-1, top-5, loss of a checkpoint or a folder of them
  predict IMAGE... --checkpoint_path PATH  the classes a model sees in images
  weights show FILE                        what a weights file of any origin holds
  weights convert IN OUT --dialect NAME    rewrite it for another system, and prove it equal
  data check PATH                          what training on these images would stumble over
  data pack PATH OUT                       images -> tar shards, smaller if wanted
  launch [--OPTION VALUE ...] -- COMMAND   a command on several devices, or servers
  explain [RECIPE] [--OPTION VALUE ...]    what a run would do, in numbers, without its data
  recipes                                  the recipes that ship with vitbase

`vitbase COMMAND --help` lists the options. RECIPE is a name, or the path of a .toml file.
--debug shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 bad data found, 2 the user's mistake, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _run(words)
    except VitbaseError as error:
        if tell_launcher(error):
            sys.exit(2)
        if debug:
            raise
        if error.is_everywhere and os.environ.get("RANK", "0") != "0":
            sys.exit(2)  # the first rank tells
        warn(f"vitbase: error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        if LAUNCHED not in os.environ:
            warn("\nvitbase: interrupted; the same command continues training or packing")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        tell_launcher(error)  # a fault of this package: Python prints its traceback
        raise


def _run(words: list[str]) -> None:
    if not words or words[0] in {"-h", "--help", "help"}:
        say(_USAGE)
        return
    if words[0] in {"--version", "version"}:
        say(f"vitbase {__version__}")
        return
    command = _COMMANDS.get(words[0])
    if command is None:
        raise ConfigError(
            f"Unknown command '{words[0]}'.{nearest(words[0], _COMMANDS)} "
            f"There are {', '.join(_COMMANDS)}."
        )
    command(words[1:])


def _train(words: list[str]) -> None:
    config = parse_config("train", words, default_recipe="fashion")
    devices = config.run.num_devices or 1
    if devices > 1 and "RANK" not in os.environ:  # each device has a process of its own
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from vitbase.launch.plan import run_local

        sys.exit(run_local(devices, ["train", *words]))
    from vitbase.training.run import train  # torch: not needed to see a mistake in an option

    train(config)


def _explain(words: list[str]) -> None:
    config = parse_config("explain", words, default_recipe="fashion")
    from vitbase.explanation import explain

    explanation = explain(config)
    width = max(len(fact.name) for fact in explanation.facts)
    values = max(len(fact.value) for fact in explanation.facts)
    for fact in explanation.facts:
        say(f"{fact.name:<{width}}  {fact.value:<{values}}  {fact.source}")
    say("")
    warmup = f"{config.schedule.warmup_epochs:g} epochs"
    if config.schedule.warmup_steps is not None:
        warmup = f"{config.schedule.warmup_steps} steps"
    say(
        f"learning rate ({config.schedule.schedule}, warm-up {warmup}, "
        f"peak {explanation.peak_lr:g}):"
    )
    for step, rate in explanation.learning_rates:
        epoch = step / explanation.steps_per_epoch
        say(f"  step {step:>{len(str(explanation.total_steps))}}  epoch {epoch:>6.1f}  {rate:.3g}")


def _eval(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    given = find_value(words, "checkpoint_path")
    recipe: str | None = None
    if given is not None and not has_recipe(words):
        from vitbase.weights.checkpoints import find_run_folder, find_weights

        run = find_run_folder(given)
        recipe = str(run / "config.toml") if run else None
        if recipe is None:
            find_weights(given)  # that nothing is there is the better message
            raise ConfigError(
                f"{given} lies in no run folder, so it does not tell what to evaluate on. Name a "
                f"recipe too, such as: vitbase eval imagenet --checkpoint_path {given}"
            )
    config = parse_config("eval", words, default_recipe=recipe or "imagenet")
    from vitbase.evaluation.run import evaluate_each
    from vitbase.runtime import is_first_rank

    for result in evaluate_each(config, on_unreadable=warn):
        if not is_first_rank():
            continue
        for note in result.notes:
            warn(note)
        place = result.weights.parent if result.weights.name == "weights.safetensors" else None
        name = (place or result.weights).name
        if as_json:
            say(json.dumps({"checkpoint": str(place or result.weights), **result.sums.to_row()}))
        else:
            say(f"{name}: {result.sums.describe()}  ({result.seconds:.1f} s)")


class _PredictOptions(TypedDict):
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help="image files, or folders of them", metavar="IMAGE..."),
    ]
    checkpoint_path: Annotated[
        str, tyro.conf.arg(help="a run folder, a checkpoint, or a weights file")
    ]
    num_heads: Annotated[int | None, tyro.conf.arg(help="where the weights do not tell")]
    image_height: Annotated[int | None, tyro.conf.arg(help="pixels; none: as the weights")]
    image_width: Annotated[int | None, tyro.conf.arg(help="pixels; none: as the weights")]
    top: Annotated[int, tyro.conf.arg(help="classes for each image")]
    device_target: Annotated[str, tyro.conf.arg(help="Ascend, GPU, CPU or auto")]


def _predict(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    refuse_unknown(words, (*_PredictOptions.__annotations__, "help"))
    options: _PredictOptions = tyro.cli(
        _PredictOptions,
        prog="vitbase predict",
        description="The classes a model sees in images. --json prints a JSON object a line.",
        args=words,
        default=_PredictOptions(
            images=(),
            checkpoint_path="",
            num_heads=None,
            image_height=None,
            image_width=None,
            top=5,
            device_target="auto",
        ),
        config=TYRO,
        use_underscores=True,
    )
    if not options["images"] or not options["checkpoint_path"]:
        raise ConfigError("Usage: vitbase predict IMAGE... --checkpoint_path PATH [--json]")
    if options["top"] < 1:
        raise ConfigError("Option 'top' should be at least 1.")
    image_size = image_size_of(options["image_height"], options["image_width"])
    device_target = Config().replace(device_target=options["device_target"]).run.device_target
    from vitbase.shipping.predict import expand, predict_each
    from vitbase.weights.checkpoints import find_weights
    from vitbase.weights.load import load_model

    images = expand(options["images"])
    weights = find_weights(options["checkpoint_path"])[-1]
    loaded = load_model(weights, num_heads=options["num_heads"], image_size=image_size)
    if not as_json:
        say(f"Weights: {weights}")
    failed = 0
    for found in predict_each(images, loaded, top=options["top"], device_target=device_target):
        if found.error is not None:
            failed += 1
        if as_json:
            row: dict[str, Any] = {"image": str(found.image)}
            if found.error is not None:
                row["error"] = found.error
            else:
                row["classes"] = [{"class": c, "probability": p} for c, p in found.classes]
            say(json.dumps(row, ensure_ascii=False))
        elif found.error is not None:
            say(f"{found.image}: {found.error}")
        else:
            say(str(found.image))
            width = max(len(name) for name, _ in found.classes)
            for name, probability in found.classes:
                say(f"  {name:<{width}}  {probability:7.2%}")
    if failed:
        raise VitbaseError(f"{failed} of {len(images)} images could not be read.")


class _WeightsOptions(TypedDict, total=False):
    num_heads: Annotated[
        int | None, tyro.conf.arg(help="attention heads, where the file does not tell")
    ]
    image_height: Annotated[
        int | None, tyro.conf.arg(help="pixels trained on, where no square and not told")
    ]
    image_width: Annotated[int | None, tyro.conf.arg(help="likewise")]
    ignore: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="tensors to leave out, by name or pattern, such as 'decoder_*'"),
    ]


class _ConvertOptions(_WeightsOptions, total=False):
    dialect: Annotated[str, tyro.conf.arg(help="whose names and layout to write")]
    allow: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="what may be computed otherwise there: gelu, resnet_form, norm_eps"),
    ]


def _weights(words: list[str]) -> None:
    actions = {"show": _show_weights, "convert": _convert_weights}
    if not words or words[0] not in actions:
        asked = f"Unknown action '{words[0]}'. " if words and words[0][:1] != "-" else ""
        raise ConfigError(
            f"{asked}Usage: vitbase weights show FILE [--tensors] [--json]\n"
            f"   or: vitbase weights convert IN OUT --dialect NAME"
        )
    actions[words[0]](words[1:])


def _show_weights(words: list[str]) -> None:
    words, with_tensors = take_switch(words, "--tensors")
    words, as_json = take_switch(words, "--json")
    places, options = parse_places("weights", "show FILE", 1, words, _WeightsOptions)
    from vitbase.weights.show import show_weights

    size = image_size_of(options.pop("image_height", None), options.pop("image_width", None))
    shown = show_weights(places[0], image_size=size, **options)
    if as_json:
        say(json.dumps(shown.to_dict(), ensure_ascii=False))
    else:
        for line in shown.lines():
            say(line)
        if with_tensors or shown.error is not None:
            say("")
            for line in shown.tensor_lines():
                say(line)
    if shown.error is not None:
        raise VitbaseError(shown.error)


def _convert_weights(words: list[str]) -> None:
    (source, path), options = parse_places("weights", "convert IN OUT", 2, words, _ConvertOptions)
    if "dialect" not in options:
        from vitbase.weights.tables_hf import DIALECT_NAMES

        raise ConfigError(f"Give --dialect, one of {', '.join(DIALECT_NAMES)}.")
    from vitbase.weights.convert import TOLERANCE, convert_weights

    size = image_size_of(options.pop("image_height", None), options.pop("image_width", None))
    done = convert_weights(source, path, image_size=size, **options)
    for line in done.loaded.report.lines():
        say(line)
    say(f"Written to {done.path} ({done.dialect}): {done.tensors} tensors")
    for field, before, after in done.changed:
        say(f"Note: {done.dialect} computes with {field} {after}, the original with {before}.")
    say(
        f"Opened again: outputs on 4 random images differ by at most {done.difference:.2g}"
        + (" (equal bit for bit)." if done.difference == 0 else f" (bound: {TOLERANCE:g}).")
    )
    for note in done.notes:
        say(note)


def _launch(words: list[str]) -> None:
    command, options, only_print = parse_launch(words, _COMMANDS)
    if command[0] == "train":
        parse_config("train", command[1:], default_recipe="fashion")  # a mistake shows at once
    # Read when torch is loaded: without it, a server that goes leaves pages of C++ frames here.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vitbase.launch.plan import plan_launch, run_plan

    plan = plan_launch(command, **options)
    if only_print:
        say(plan.command())
    elif code := run_plan(plan):
        sys.exit(code)


def _recipes(words: list[str]) -> None:
    if words:
        raise ConfigError(f"`vitbase recipes` takes no arguments, but got '{words[0]}'.")
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        title = read_recipe_text(name).splitlines()[0].lstrip("# ")
        say(f"{name:<{width}}  {title}")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "eval": _eval,
    "predict": _predict,
    "weights": _weights,
    "data": run_data,
    "launch": _launch,
    "explain": _explain,
    "recipes": _recipes,
}


def seed_main(command: str) -> None:
    """Run the seed's `train.py` or `eval.py`: recipe `imagenet`, or the one `--name` selects."""
    words = sys.argv[1:]
    recipe = find_value(words, "name") or "imagenet"
    words = drop_value(words, "name")
    if command == "train" and find_value(words, "output_dir") is None:
        # The seed keeps the checkpoints of device 0 in ./ckpt_0.
        words += ["--output_dir", f"./ckpt_{find_value(words, 'device_id') or 0}"]
    asks_help = bool({"-h", "--help"} & set(words))
    if command == "eval" and not asks_help and find_value(words, "name") is None:
        given = find_value(words, "checkpoint_path")
        from vitbase.weights.checkpoints import find_run_folder

        if given is not None and find_run_folder(given) is not None:
            main([command, *words])  # the run knows its own recipe
            return
    main([command, recipe, *words])
