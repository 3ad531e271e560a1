"""Commands -> functions; nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vitbase._version import __version__
from vitbase.cli.commands import COMMANDS, function_of
from vitbase.console import escape_reports, printable_lines, say, say_text, warn, warn_text
from vitbase.errors import LAUNCHED, ConfigError, VitbaseError, nearest, tell_launcher
from vitbase.launch.words import drop_value, find_value
from vitbase.stopping import STOPPED, Stopped, end_with

_USAGE = """usage: vitbase COMMAND [...]

  train [RECIPE] [--OPTION VALUE ...]      train, or continue, a run (default recipe: fashion)
  eval [RECIPE] --checkpoint_path PATH     top-1, top-5, loss of a checkpoint or a folder of them
  eval compare A B                         two models on the same images, by their predictions
  predict IMAGE... --checkpoint_path PATH  the classes a model sees: shown, in a file, sorted
  export CHECKPOINT OUT.onnx [...]         the model for another runtime, compared there
  bench CHECKPOINT                         the ways to run it here: speed, memory, what they lose
  serve CHECKPOINT... [--port 8000]        models over HTTP: POST an image to /predict
  inspect CHECKPOINT [IMAGE...] --out DIR  what it looks at: attention, features, gradients
  probe WEIGHTS... --data_path PATH        how good features are for images, before training
  demo CHECKPOINT [--port 7860]            a page to drop images on: classes, and where it looks
  push CHECKPOINT [--to FOLDER]            a folder that timm and transformers open, or the hub
  report RUN... [--out FILE.html]          a page that shows runs, offline and on paper
  weights show FILE                        what a weights file of any origin holds
  weights convert IN OUT --dialect NAME    rewrite it for another system, and prove it equal
  data check PATH                          what training on these images would stumble over
  data pack PATH OUT                       images -> tar shards, smaller if wanted
  data doubts PREDICTIONS --out FOLDER     labels likely wrong, near-duplicates, odd images
  debug replay FOLDER                      the first layer of an update that gave no number
  launch [--OPTION VALUE ...] -- COMMAND   a command on several devices, or servers
  launch --make_rank_table [...]           the table of servers and devices that it needs
  explain [RECIPE] [--OPTION VALUE ...]    what a run would do, in numbers, without its data
  verify-resume [RECIPE] [--kills N] [...] kill a run at random updates, and prove that it goes on
  recipes                                  the recipes that ship with vitbase

`vitbase COMMAND --help` lists the options. RECIPE is a name, or the path of a .toml file.
--debug shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0: done; 1: bad data found, or a run that does not go on as it should; 2: the user's mistake;
    3: done, but for images that could not be read; 70: it stood still; 75: training was asked to
    stop, and goes on with the same command; 130: interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # a process of its own: what Python reports of it is escaped, too
        escape_reports()
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if "RANK" in os.environ and os.environ.get(LAUNCHED, "").isdigit():
        end_with(int(os.environ[LAUNCHED]))
    try:
        _run(words)
    except VitbaseError as error:
        if tell_launcher(error):
            sys.exit(2)
        if debug:
            raise
        if error.is_everywhere and os.environ.get("RANK", "0") != "0":
            sys.exit(error.exit_code)  # the first rank tells
        warn_text(_cut(printable_lines(f"vitbase: error: {error}")))
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            warn(f"\nvitbase: {stopped}")
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        if LAUNCHED not in os.environ:
            warn("\nvitbase: interrupted; the same command continues training, packing, or --out")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        tell_launcher(error)  # a fault of this package: Python prints its traceback
        raise


_LONGEST_MESSAGE = 20_000


def _cut(text: str) -> str:
    """Leave out the middle of a message that quotes a name of more than anybody reads."""
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} […] {text[-half:]}"


def _run(words: list[str]) -> None:
    if not words or words[0] in {"-h", "--help", "help"}:
        say_text(_USAGE)
        return
    if words[0] in {"--version", "version"}:
        say(f"vitbase {__version__}")
        return
    if words[0] not in COMMANDS:
        raise ConfigError(
            f"Unknown command '{words[0]}'.{nearest(words[0], COMMANDS)} "
            f"There are {', '.join(COMMANDS)}."
        )
    function_of(words[0])(words[1:])


def seed_main(command: str) -> None:
    """Run the seed's `train.py` or `eval.py`: recipe `imagenet`, or the one `--name` selects."""
    escape_reports()
    words = sys.argv[1:]
    recipe = find_value(words, "name") or "imagenet"
    words = drop_value(words, "name")
    if command == "train" and find_value(words, "output_dir") is None:
        # The seed keeps the checkpoints of device 0 in ./ckpt_0. A run on several has its own, so
        # that one after the other, or both at once, do not meet in a folder.
        devices = find_value(words, "num_devices") or os.environ.get("WORLD_SIZE", "1")
        place = "parallel" if devices != "1" else find_value(words, "device_id") or 0
        words += ["--output_dir", f"./ckpt_{place}"]
    asks_help = bool({"-h", "--help"} & set(words))
    if command == "eval" and not asks_help and find_value(words, "name") is None:
        given = find_value(words, "checkpoint_path")
        from vitbase.runs.checkpoints import find_run_folder

        if given is not None and find_run_folder(given) is not None:
            main([command, *words])  # the run knows its own recipe
            return
    main([command, recipe, *words])
