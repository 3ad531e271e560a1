"""The command `vitbase debug replay`."""

from __future__ import annotations

from typing import Annotated, TypedDict

from vitbase.cli.arguments import parse_places, run_action, take_switch
from vitbase.cli.help import option
from vitbase.config.config import Config
from vitbase.console import printable, say, say_json

_USAGE = """usage: vitbase debug replay FOLDER [--device_target NAME] [--json]

FOLDER is what training kept of an update whose loss or gradient was NaN or infinite,
RUN/blackbox/update-N, or the run itself: then its first. `vitbase debug replay --help` lists the
options; docs/reliability.md tells the whole."""

_REPLAY = """Repeat an update whose loss or gradient was NaN or infinite, in fp32, and name the
first layer whose output is not finite, else the first gradient. Where fp32 gives numbers, the
update is repeated in the precision of the run as well. --json prints what was found as JSON."""


class _ReplayOptions(TypedDict, total=False):
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_debug(words: list[str]) -> None:
    """Run `vitbase debug ACTION [...]`."""
    run_action(words, {"replay": _replay}, _USAGE)


def _replay(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    (folder,), options = parse_places("debug", "replay FOLDER", 1, words, _ReplayOptions, _REPLAY)
    from vitbase.training.replay import replay

    device = Config().replace(device_target=options.get("device_target", "auto")).run.device_target
    found = replay(folder, device)
    if as_json:
        say_json(found.to_dict())
    else:
        for line in found.lines():
            say(printable(line))
