"""The recipes that ship with the package, as texts; nothing that takes long to load."""

from __future__ import annotations

from pathlib import Path

from vitbase.disk import read_regular
from vitbase.errors import ConfigError, nearest

_FOLDER = Path(__file__).with_name("recipes")

_LONGEST = 1 << 18
"""Bytes of a configuration; with every option it has some thousands."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_recipe_text(recipe: str) -> str:
    """Read a shipped recipe, or any ``.toml`` file, as text.

    Raises: ConfigError if there is no such recipe or file.
    """
    if recipe.endswith(".toml"):
        try:
            # A path in it may hold bytes that are no UTF-8.
            return read_regular(recipe, _LONGEST).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise ConfigError(
                f"Cannot read the configuration file {recipe}: {error.strerror or error}."
            ) from None
    names = recipe_names()
    if recipe not in names:
        raise ConfigError(
            f"Unknown recipe '{recipe}'.{nearest(recipe, names)} "
            f"There are {', '.join(names)}; or give the path of a .toml file."
        )
    return (_FOLDER / f"{recipe}.toml").read_text(encoding="utf-8")
