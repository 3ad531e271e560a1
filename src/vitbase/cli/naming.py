"""Errors name what somebody gave: a path without an option as it was typed; others with whose."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from vitbase.config.config import FIELDS, Config
from vitbase.errors import VitbaseError


@contextlib.contextmanager
def telling_whose(words: list[str], config: Config, default_recipe: str) -> Iterator[None]:
    """Let an error tell of values that nobody gave where they come from.

    Args:
      words: of the command, as they were given.
      config: what became of them.
      default_recipe: what was taken where they name none.
    """
    try:
        yield
    except VitbaseError as error:
        is_named = bool(words) and not words[0].startswith("-")
        whose = _of(words[0] if is_named else default_recipe, is_named)
        given = {word[2:].partition("=")[0].replace("-", "_") for word in words if word[:2] == "--"}
        if "image_size" in given:
            given |= {"image_height", "image_width"}
        lines = [str(line) for line in error.args]
        for option in FIELDS.keys() - given:
            pattern = _mention(option, config.value(option))
            found = ((n, re.search(pattern, line)) for n, line in enumerate(lines))
            place, mention = next((pair for pair in found if pair[1] is not None), (0, None))
            if mention is not None:
                text = lines[place]
                lines[place] = f"{text[: mention.end()]} ({whose}){text[mention.end() :]}"
        error.args = tuple(lines)
        raise


def _of(recipe: str, is_named: bool) -> str:
    if recipe.endswith(".toml"):
        return f"of {recipe}"
    return f"of recipe {recipe}" + ("" if is_named else ", as none was named")


def _mention(option: str, value: object) -> str:
    """Return the pattern of an option and its value in a message, or in a list of differences.

    Advice is no mention: it has dashes, and is about other values.
    """
    dashes = "(?:--)?" if option.endswith("_path") else "(?<!-)"
    spellings = {str(value)}
    if isinstance(value, str):
        spellings.add(str(Path(value)))
    elif isinstance(value, float):
        spellings.add(f"{value:g}")
    longest_first = sorted(spellings, key=len, reverse=True)
    values = "|".join(map(re.escape, longest_first))
    return rf"{dashes}\b{option}(?:: the run has .*, asked for)? (?:{values})(?![\w/])"


@contextlib.contextmanager
def without_option(option: str) -> Iterator[None]:
    """Let an error name a path as it was given: as a word of its own, without this option."""
    try:
        yield
    except VitbaseError as error:
        lines = (str(line).replace(f": --{option} FOLDER.", ".") for line in error.args)
        error.args = tuple(re.sub(rf"(?:--)?\b{option} ", "", line) for line in lines)
        raise
