"""`vitbase verify-resume`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from vitbase.cli.arguments import drop_value, has_recipe, parse_config
from vitbase.console import say
from vitbase.errors import ConfigError
from vitbase.launch.words import find_value

_USAGE = """usage: vitbase verify-resume [RECIPE] [--kills N] [--OPTION VALUE ...]

Trains, kills the run at random updates, lets the same command go on, and compares weights,
training state and metrics bit for bit with those of a run that nobody killed.

  --kills N           how often; the last time by SIGTERM, else by SIGKILL (default: 3)
  --verify_seed N     of the updates at which that happens (default: 0)
  --other_devices N   also go on half-way on so many devices, within 1e-5 (default: do not)
  --output_dir PATH   keeps the runs; none: a folder that is removed

and the options of `vitbase train`. What is not given is small: total_steps 40, with a row for each
and a checkpoint every 5, of which the last 2 are kept. Default recipe: fashion. Ends with 0 if it
holds, 1 if it does not."""

_DEFAULT = "fashion"
_SMALL = {"log_every_steps": "1", "checkpoint_every_steps": "5", "keep_checkpoint_max": "2"}
_STEPS = "40"


def run_verify(words: list[str]) -> None:
    if {"-h", "--help"} & set(words):
        say(_USAGE)
        return
    numbers: dict[str, int | None] = {}
    for option, default, least in (
        ("kills", 3, 1),
        ("verify_seed", 0, 0),
        ("other_devices", None, 1),
    ):
        numbers[option] = _number(words, option, least) if _is_given(words, option) else default
        words = drop_value(words, option)
    folder = find_value(words, "output_dir")
    words = drop_value(words, "output_dir")
    words = [*words] if has_recipe(words) else [_DEFAULT, *words]
    for option, value in _SMALL.items():
        if not _is_given(words, option):
            words += [f"--{option}", value]
    if not _is_given(words, "total_steps") and not _is_given(words, "epoch_size"):
        words += ["--total_steps", _STEPS]
    config = parse_config("train", words, default_recipe=_DEFAULT)  # a mistake shows at once
    if config.run.log_every_steps != 1:
        raise ConfigError("Option 'log_every_steps' should be 1: each update is compared.")
    from vitbase.launch.verify import Verification, verify

    kills, seed = numbers["kills"], numbers["verify_seed"]
    assert kills is not None
    assert seed is not None
    with tempfile.TemporaryDirectory(prefix="vitbase-verify-") as temporary:
        place = Path(folder or temporary)
        if not verify(Verification(tuple(words), place, kills, seed, numbers["other_devices"])):
            sys.exit(1)


def _is_given(words: list[str], option: str) -> bool:
    return any(word.partition("=")[0].replace("-", "_") == f"__{option}" for word in words)


def _number(words: list[str], option: str, least: int) -> int:
    value = find_value(words, option)
    if value is None or not value.isascii() or not value.isdecimal() or int(value) < least:
        raise ConfigError(
            f"Option '{option}' should be a whole number of at least {least}, but is {value}."
        )
    return int(value)
