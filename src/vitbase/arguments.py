"""The words of a command line -> a configuration, places, options; unknown ones are refused."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypedDict

import tyro

from vitbase.config import FIELDS, Config, load_config
from vitbase.errors import ConfigError, nearest

TYRO: Any = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


def parse_config(command: str, words: list[str], *, default_recipe: str) -> Config:
    """Read `[RECIPE] [--OPTION VALUE ...]`; options on the command line win."""
    recipe = default_recipe
    if has_recipe(words):
        recipe, words = words[0], words[1:]
    asks_help = bool({"-h", "--help"} & set(words))
    base = load_config(recipe)
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
    return base.replace(**options) if options else base


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
                raise ConfigError(f"Unknown option '--{name}'.{nearest(name, known)}")


def find_value(words: list[str], option: str) -> str | None:
    """Return the value given for an option, without parsing the others."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == f"__{option}":
            return value if equals else (words[i + 1] if i + 1 < len(words) else None)
    return None


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


def parse_places(
    command: str, usage: str, count: int, words: list[str], kind: Any, description: str = ""
) -> tuple[list[str], dict[str, Any]]:
    """Split `PLACE... [--OPTION VALUE ...]`; the places come first."""
    asks_help = bool({"-h", "--help"} & set(words))
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    places, words = words[:at], words[at:]
    if len(places) != count and not asks_help:
        raise ConfigError(f"Usage: vitbase {command} {usage}; got {' '.join(places) or 'nothing'}.")
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


SECONDS_BETWEEN_LINES = 60.0


@contextlib.contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows (what, done, of how many) to whoever watches.

    In a terminal there is a bar for each; elsewhere, a line on standard error every minute.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what, total=total)
            display.update(tasks[what], completed=done)

        yield show


class _Lines:
    """Progress for a log file."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if sys.stderr is not None and now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            sys.stderr.write(f"{what}: {done:,} of {total:,} images ({done / total:.1%})\n")
            sys.stderr.flush()
