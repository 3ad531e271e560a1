"""The words of a command line -> a configuration, places, options; unknown ones are refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, TypedDict

import tyro

from vitbase.cli.help import EVALUATION, option, options_type
from vitbase.cli.naming import telling_whose
from vitbase.cli.values import kinds_of, refuse_wrong_values, together
from vitbase.config.config import FIELDS, Config, load_config, section_of, with_options
from vitbase.config.hints import hint_for
from vitbase.console import printable, printable_lines, say_text, warn
from vitbase.errors import LAUNCHED, ConfigError, nearest
from vitbase.launch.words import drop_value, find_value

_TYRO: Any = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


def parse_config(
    command: str,
    words: list[str],
    *,
    default_recipe: str,
    description: str = "",
    switches: Sequence[str] = (),
    others: Any = None,
) -> Config:
    """Read `[RECIPE] [--OPTION VALUE ...]`; options on the command line win.

    Args:
      description: of the switches, for the help.
      switches: as of :func:`parse_options`.
      others: a TypedDict of options of the command that are none of a run, for the help; they have
        been taken out before.
    """
    recipe, whole = default_recipe, words
    if has_recipe(words):
        recipe, words = words[0], words[1:]
    asks_help = bool({"-h", "--help"} & set(words))
    base = load_config(recipe)
    given = parse_options(
        options_type(command, base, others),
        words,
        f"vitbase {command} {'[RECIPE]' if asks_help else recipe}",
        f"Defaults are those of {printable(recipe)}.{description}",
        switches=switches,
    )
    options = {name: value for section in given.values() for name, value in section.items()}
    if options.get("image_size", 1) < 1:
        raise ConfigError("Option 'image_size' should be at least 1.")
    with telling_whose(whole, base, recipe):
        config, notes = with_options(base, options)
    # Of the processes of a run one says it: the launcher, or else the first rank.
    if os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ:
        for note in notes:
            warn(note)
    return config


def parse_options(
    kind: Any, words: list[str], program: str, description: str, switches: Sequence[str] = ()
) -> dict[str, Any]:
    """Read `--OPTION VALUE ...`, or print help and exit.

    Args:
      kind: a TypedDict of the options, of which only those that are given are returned.
      program: the command, and what comes before its options.
      switches: options without a value, which were taken out before.
    Raises: ConfigError that says in a line what is wrong.
    """
    kinds, has_positional = kinds_of(kind)
    refuse_unknown(words, (*kinds, "help", *switches))
    if has_positional:
        words = together(words, kinds)
    if not {"-h", "--help"} & set(words):
        refuse_wrong_values(words, kinds, has_positional=has_positional)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options: dict[str, Any] = tyro.cli(
                kind,
                prog=printable(program),
                description=printable_lines(description) or None,
                args=words,
                config=_TYRO,
                use_underscores=True,
            )
    except SystemExit as stopped:
        if not stopped.code:  # help was asked for
            raise
        raise ConfigError(_one_line(said.getvalue())) from None
    return options


def _one_line(box: str) -> str:
    """Return what stands in a box of several lines, without its title, and advice below a rule."""
    rows = [row.strip(" │") for row in box.splitlines()[1:]]
    rules = re.compile("[─╰-]{2}|$")  # without UTF-8 there is one below the title, too
    inside = itertools.dropwhile(rules.match, rows)
    return " ".join(itertools.takewhile(lambda row: not rules.match(row), inside))


def has_recipe(words: list[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


def refuse_unknown(words: list[str], known: Sequence[str]) -> None:
    """Raise a ConfigError that names the first option that there is not, and what is meant."""
    for word in words:
        if re.match("--?[a-zA-Z]", word) and word != "-h":
            written = word.partition("=")[0]
            name = written.lstrip("-").replace("-", "_")
            if name not in known or not written.startswith("--"):
                hint = hint_for(name) or _of_evaluation(name) or nearest(name, known)
                raise ConfigError(f"Unknown option '{written}'.{hint}")


def _of_evaluation(name: str) -> str:
    is_its = name in FIELDS and section_of(name) == EVALUATION
    return " It is an option of `vitbase eval`." if is_its else ""


def take_options(words: list[str], options: Any) -> tuple[list[str], dict[str, str]]:
    """Take the options of a TypedDict, each a text, out of words that have others, too.

    Raises: ConfigError if one has no value.
    """
    taken: dict[str, str] = {}
    for name in options.__annotations__:
        value = find_value(words, name)
        if value is not None:
            taken[name] = value
            words = drop_value(words, name)
        elif any(word.partition("=")[0].replace("-", "_") == f"__{name}" for word in words):
            raise ConfigError(f"Option '{name}' should have a value.")
    return words, taken


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
        say_text(usage)
        return
    if not words or words[0] not in actions:
        asked = f"Unknown action '{words[0]}'. " if words and words[0][:1] != "-" else ""
        first, *others = usage.split("\n")
        raise ConfigError(f"{asked}{first[0].upper()}{first[1:]}", *others)
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
    return places, parse_options(kind, words, f"vitbase {command} {usage}", description)


def take_image_size(options: dict[str, Any]) -> tuple[int, int] | None:
    """Take the height and width that options ask for out of them; image_size stands for both.

    Raises: ConfigError naming one that is not given, or is no number of pixels.
    """
    asked = {name: options.pop(name, None) for name in ("image_size", *_SIDES)}
    for name, pixels in asked.items():
        if pixels is not None and pixels < 1:
            raise ConfigError(f"Option '{name}' should be at least 1.")
    both = asked.pop("image_size")
    sides = {name: both if pixels is None else pixels for name, pixels in asked.items()}
    absent = [name for name, pixels in sides.items() if pixels is None]
    if len(absent) == 1:
        raise ConfigError(f"Give --{absent[0]} too.")
    return None if absent else (sides["image_height"], sides["image_width"])


_SIDES = ("image_height", "image_width")


class LaunchOptions(TypedDict, total=False):
    rank_table: Annotated[str, option("JSON of servers and devices; none: local ones")]
    server_id: Annotated[str, option("which server of the table this machine is")]
    num_devices: Annotated[int, option("local ranks; none: all local devices")]
    port: Annotated[int, option("of the first server, where all meet", 29500)]
    max_restarts: Annotated[int, option("of all ranks after a failure", 3)]
    timeout: Annotated[int, option("seconds to wait for other servers", 600)]
    secret_file: Annotated[
        str, option("what all servers share, to know each other by; or VITBASE_SECRET")
    ]


class TableOptions(TypedDict, total=False):
    server: Annotated[
        tuple[str, ...],
        option(
            "addresses and their devices: 10.0.0.1:8 10.0.0.2:8, or node[01-04]:8; none: "
            "those of the SLURM or Volcano job, or this machine"
        ),
    ]
    device_ids: Annotated[str, option("of every server: 4-7, 0,2 or [4,8)")]
    merge: Annotated[tuple[str, ...], option("tables of single servers, to become one")]


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
