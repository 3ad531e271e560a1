"""`vitbase recipes`."""

from __future__ import annotations

from vitbase.config.shipped import read_recipe_text, recipe_names
from vitbase.console import say
from vitbase.errors import ConfigError


def run_recipes(words: list[str]) -> None:
    if words in (["-h"], ["--help"]):
        say("usage: vitbase recipes")
        return
    if words:
        raise ConfigError(f"`vitbase recipes` takes no arguments, but got '{words[0]}'.")
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        title = read_recipe_text(name).splitlines()[0].lstrip("# ")
        say(f"{name:<{width}}  {title}")
