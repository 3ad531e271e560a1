"""`vitbase verify-resume`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, TypedDict

from vitbase.cli.arguments import has_recipe, parse_config, parse_options, take_options
from vitbase.cli.help import option
from vitbase.errors import ConfigError
from vitbase.launch.words import find_value

_ABOUT = (
    "Kills a run at random updates, lets the same command go on, and compares weights, training "
    "state and metrics bit for bit with those of a run that nobody killed. Takes the options of "
    "`vitbase train`, too; what is not given is small: total_steps 40, with a checkpoint every 5, "
    "of which 2 are kept. Ends with 0 if it holds, 1 if it does not."
)
_DEFAULT = "fashion"
_SMALL = {"log_every_steps": 1, "checkpoint_every_steps": 5, "keep_checkpoint_max": 2}
_STEPS = 40


class VerifyOptions(TypedDict, total=False):
    kills: Annotated[int, option("how often; the last of several by SIGTERM, else SIGKILL", 3)]
    verify_seed: Annotated[int, option("of the updates at which that happens", 0)]
    other_devices: Annotated[int, option("also go on half-way on so many; none: do not")]
    output_dir: Annotated[str, option("keeps the runs; none: a folder that is removed")]


def run_verify(words: list[str]) -> None:
    own: list[str] = [word for word in words if word in {"-h", "--help"}]
    words, taken = take_options(words, VerifyOptions)
    own += [f"--{name}={value}" for name, value in taken.items()]
    options = parse_options(VerifyOptions, own, "vitbase verify-resume [RECIPE]", _ABOUT)
    kills, seed = options.get("kills", 3), options.get("verify_seed", 0)
    devices = options.get("other_devices")
    for name, given, least in (("kills", kills, 1), ("other_devices", devices, 1)):
        if given is not None and given < least:
            raise ConfigError(f"Option '{name}' should be at least {least}, but is {given}.")
    words = [*words] if has_recipe(words) else [_DEFAULT, *words]
    for name, small in _SMALL.items():
        if find_value(words, name) is None:
            words += [f"--{name}", str(small)]
    if find_value(words, "total_steps") is None and find_value(words, "epoch_size") is None:
        words += ["--total_steps", str(_STEPS)]
    config = parse_config("train", words, default_recipe=_DEFAULT)  # a mistake shows at once
    if config.run.log_every_steps != 1:
        raise ConfigError("Option 'log_every_steps' should be 1: each update is compared.")
    from vitbase.launch.verify import Verification, verify

    with tempfile.TemporaryDirectory(prefix="vitbase-verify-") as temporary:
        place = Path(options.get("output_dir", temporary))
        if not verify(Verification(tuple(words), place, kills, seed, devices)):
            sys.exit(1)
