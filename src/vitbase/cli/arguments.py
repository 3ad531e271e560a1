"""The words of a command line -> a configuration, places, options; unknown ones are refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, TypedDict

import tyro

from vitbase.config.config import FIELDS, Config, load_config, with_options
from vitbase.config.hints import hint_for
from vitbase.console import say, warn
from vitbase.errors import LAUNCHED, ConfigError, nearest
from vitbase.launch.words import find_value

TYRO: Any = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


def parse_config(command: str, words: list[str], *, default_recipe: str) -> Config:
    """Read `[RECIPE] [--OPTION VALUE ...]`; options on the command line win."""
    recipe = default_recipe
    if has_recipe(words):
        recipe, words = words[0], words[1:]
    asks_help = bool({"-h", "--help"} & set(words))
    base = load_config(recipe)
    words = write_sizes_out(words)
    refuse_unknown(words, (*FIELDS, "help", *(("json",) if command == "eval" else ())))
    given: dict[str, Any] = tyro.cli(
        _options_type(base),
        prog=f"vitbase {command} {'RECIPE' if asks_help else recipe}",
        description=f"Defaults shown are those of {recipe}.",
        args=words,
        config=TYRO,
        use_underscores=True,
    )
    options = {name: value for section in given.values() for name, value in section.items()}
    config, notes = with_options(base, options)
    # Of the processes of a run one says it: the launcher, or else the first rank.
    if os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ:
        for note in notes:
            warn(note)
    return config


def write_sizes_out(words: list[str]) -> list[str]:
    """Write `--image_size N` as height and width."""
    side = find_value(words, "image_size")
    if side is None:
        return words
    kept = drop_value(words, "image_size")
    for option in ("image_height", "image_width"):
        if find_value(kept, option) is None:
            kept += [f"--{option}", side]
    return kept


def _options_type(base: Config) -> Any:
    """Build the command line's type: a section is a TypedDict, so only given options are set."""
    sections: dict[str, dict[str, Any]] = {}
    for name, (section, field) in FIELDS.items():
        default = getattr(getattr(base, section), name)
        hint = tyro.conf.arg(help=field.description, help_behavior_hint=f"(default: {default})")
        sections.setdefault(section, {})[name] = Annotated[field.annotation, hint]
    types = {
        section: TypedDict(section, options, total=False)  # type: ignore[operator]
        for section, options in sections.items()
    }
    return TypedDict("options", types)  # type: ignore[operator]


def has_recipe(words: list[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


def refuse_unknown(words: list[str], known: Sequence[str]) -> None:
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name = word[2:].split("=", 1)[0].replace("-", "_")
            if name not in known:
                hint = hint_for(name) or nearest(name, known)
                raise ConfigError(f"Unknown option '--{name}'.{hint}")


def drop_value(words: list[str], option: str) -> list[str]:
    """Return the words without an option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.partition("=")[0].replace("-", "_") == f"__{option}":
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


def take_switch(words: list[str], switch: str) -> tuple[list[str], bool]:
    """Take an option without a value out of the words."""
    return [word for word in words if word != switch], switch in words


def run_action(
    words: list[str], actions: Mapping[str, Callable[[list[str]], None]], usage: str
) -> None:
    """Run `ACTION [...]` of a command that has several, or show how it is used.

    Raises: ConfigError if it has no such action.
    """
    if words and words[0] in {"-h", "--help"}:
        say(usage)
        return
    if not words or words[0] not in actions:
        asked = f"Unknown action '{words[0]}'. " if words and words[0][:1] != "-" else ""
        raise ConfigError(f"{asked}{usage[0].upper()}{usage[1:]}")
    actions[words[0]](words[1:])


def parse_places(
    command: str, usage: str, count: int, words: list[str], kind: Any, description: str = ""
) -> tuple[list[str], dict[str, Any]]:
    """Split `PLACE... [--OPTION VALUE ...]`; the places come first."""
    asks_help = bool({"-h", "--help"} & set(words))
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    places, words = words[:at], words[at:]
    if len(places) != count and not asks_help:
        raise ConfigError(f"Usage: vitbase {command} {usage}; got {' '.join(places) or 'nothing'}.")
    words = write_sizes_out(words)
    refuse_unknown(words, (*kind.__annotations__, "help"))
    options: dict[str, Any] = tyro.cli(
        kind,
        prog=f"vitbase {command} {usage}",
        description=description or None,
        args=words,
        config=TYRO,
        use_underscores=True,
    )
    return places, options


def image_size_of(height: int | None, width: int | None) -> tuple[int, int] | None:
    """Join two options, of which both are given or none.

    Raises: ConfigError naming the one that is not, or is no number of pixels.
    """
    sides = {"image_height": height, "image_width": width}
    given = {name: pixels for name, pixels in sides.items() if pixels is not None}
    for name, pixels in given.items():
        if pixels < 1:
            raise ConfigError(f"Option '{name}' should be at least 1.")
    if len(given) == 1:
        absent = next(name for name in sides if name not in given)
        raise ConfigError(f"Give --{absent} too.")
    return (height, width) if height is not None and width is not None else None


class LaunchOptions(TypedDict, total=False):
    rank_table: Annotated[str, tyro.conf.arg(help="JSON of servers and devices; none: local ones")]
    server_id: Annotated[str, tyro.conf.arg(help="which server of the table this machine is")]
    num_devices: Annotated[int, tyro.conf.arg(help="local ranks (default: all local devices)")]
    port: Annotated[int, tyro.conf.arg(help="of the first server, where all meet (29500)")]
    max_restarts: Annotated[int, tyro.conf.arg(help="of all ranks after a failure (default: 3)")]
    timeout: Annotated[int, tyro.conf.arg(help="seconds to wait for other servers (default: 600)")]
    secret_file: Annotated[
        str, tyro.conf.arg(help="what all servers share, to know each other by; or VITBASE_SECRET")
    ]


class TableOptions(TypedDict, total=False):
    server: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="addresses and their devices: 10.0.0.1:8 10.0.0.2:8, or node[01-04]:8; none: "
            "those of the SLURM or Volcano job, or this machine"
        ),
    ]
    device_ids: Annotated[str, tyro.conf.arg(help="of every server: 4-7, 0,2 or [4,8)")]
    merge: Annotated[tuple[str, ...], tyro.conf.arg(help="tables of single servers, to become one")]


def parse_table(words: list[str]) -> dict[str, Any]:
    """Read the options of `vitbase launch --make_rank_table`."""
    words, _ = take_switch(words, "--make_rank_table")
    usage = "--make_rank_table [--server ADDRESS:DEVICES ...] [--device_ids IDS] [--merge FILE ...]"
    _, options = parse_places("launch", usage, 0, words, TableOptions)
    return options


def parse_launch(
    words: list[str], commands: Collection[str]
) -> tuple[list[str], dict[str, Any], bool]:
    """Split `[--OPTION VALUE ...] [--print] -- COMMAND ...`.

    Returns: the command's words; the options; whether to print only.
    """
    at = words.index("--") if "--" in words else len(words)
    command = words[at + 1 :]
    words, only_print = take_switch(words[:at], "--print")
    usage = "[--rank_table FILE] [--OPTION VALUE ...] [--print] -- COMMAND"
    _, options = parse_places("launch", usage, 0, words, LaunchOptions)
    if not command or not (command[0] in commands or command[0].endswith(".py")):
        raise ConfigError(
            f"Usage: vitbase launch {usage}, where COMMAND is a vitbase command such as "
            f"`train imagenet`, or a Python script and its options; got "
            f"{' '.join(command) or 'nothing after --'}."
        )
    return command, options, only_print
