"""What kinds of values options have: how help shows them, and which words are of another kind."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import tyro

from vitbase.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Kind:
    """The words that an option takes.

    Attributes:
      parts: int, float, str, or the words among which to choose: what each word is.
      repeats: whether these come any number of times.
      may_be_none: whether the one word None will do, too.
    """

    parts: tuple[type | tuple[str, ...], ...]
    repeats: bool = False
    may_be_none: bool = False

    @classmethod
    def of(cls, annotation: Any) -> Kind:
        """Read it off the annotation of a field."""
        origin, inside = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return cls.of(inside[0])
        if origin in {Union, types.UnionType}:
            (kind,) = (cls.of(part) for part in inside if part is not types.NoneType)
            return dataclasses.replace(kind, may_be_none=True)
        if origin is Literal:
            return cls((tuple(map(str, inside)),))
        if origin is tuple:
            several = [cls.of(part) for part in inside if part is not Ellipsis]
            parts = tuple(part for kind in several for part in kind.parts)
            return cls(parts, repeats=Ellipsis in inside)
        return cls((_SWITCH if annotation is bool else annotation,))

    def metavar(self, option: str) -> str:
        """Say in a word or two what an option takes."""
        return " ".join(_metavar(part, option) for part in self.parts) + " ..." * self.repeats

    def fault(self, words: Sequence[str], *, more_may_follow: bool = False) -> str | None:
        """Say what the words given for an option should be instead, or return None."""
        count = len(self.parts)
        if self.may_be_none and words[:1] == ["None"] and (more_may_follow or len(words) == 1):
            return None
        if more_may_follow and not self.repeats:
            words = words[:count]
        if len(words) % count if self.repeats else len(words) != count:
            number = f"{count} values" if count > 1 else "a value"
            if not words:
                return f"needs {number}{self._wanted(0, ': ')}."
            return f"takes {number}{' each time' * self.repeats} (got {' '.join(words)})."
        for place, word in enumerate(words):
            part = self.parts[place % count]
            if not _fits(part, word):
                close = nearest(word, part) if isinstance(part, tuple) else ""
                return f"should be{self._wanted(place % count, ' ')} (got {word!r}).{close}"
        return None

    def _wanted(self, place: int, before: str) -> str:
        """Name what may stand at a place; nothing where any word may."""
        part = self.parts[place]
        if part is str:
            return ""
        words = list(map(_quoted, part)) if isinstance(part, tuple) else [_WORDS[part]]
        *others, last = [*words, "None"] if self.may_be_none else words
        return before + (f"{', '.join(others)} or {last}" if others else last)


_SWITCH = ("True", "False")
_NAMES: dict[type, str] = {int: "INT", float: "FLOAT"}
_WORDS: dict[type, str] = {int: "a valid integer", float: "a valid number"}


def _metavar(part: type | tuple[str, ...], option: str) -> str:
    if isinstance(part, tuple):
        return f"{{{','.join(part)}}}"
    return _NAMES.get(part, "PATH" if option.endswith(("_path", "_dir", "_file")) else "STR")


def _quoted(choice: str) -> str:
    return choice if choice in _SWITCH or choice.isdigit() else f"'{choice}'"


def _fits(part: type | tuple[str, ...], word: str) -> bool:
    if isinstance(part, tuple):
        return word in part
    try:
        part(word)
    except ValueError:
        return False
    return True


def as_typed(value: object) -> str:
    """Write a value as it would be typed; nothing for None."""
    if isinstance(value, tuple):
        return " ".join(map(as_typed, value))
    return "" if value is None else str(value)


def kinds_of(options: Any) -> tuple[dict[str, Kind], bool]:
    """Return what each option of a TypedDict takes, those of inner ones too; and whether other
    words may stand among them.
    """
    kinds: dict[str, Kind] = {}
    has_positional = False
    for name, hint in get_type_hints(options, include_extras=True).items():
        if is_typeddict(hint):
            kinds |= kinds_of(hint)[0]
        elif tyro.conf.Positional in get_args(hint):
            has_positional = True
        else:
            kinds[name] = Kind.of(hint)
    return kinds, has_positional


def together(words: Sequence[str], kinds: Mapping[str, Kind]) -> list[str]:
    """Return words with those that belong to no option first, in their order.

    An option that takes any number of words takes all up to the next one.
    """
    others: list[str] = []
    options: list[str] = []
    left = 0  # words that the last option may still take
    for word in words:
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            kind = kinds.get(name.replace("-", "_"))
            left = 0 if kind is None or equals else len(words) if kind.repeats else len(kind.parts)
            options.append(word)
        elif left:
            left -= 1
            options.append(word)
        else:
            others.append(word)
    return others + options


def refuse_wrong_values(
    words: list[str], kinds: Mapping[str, Kind], *, has_positional: bool
) -> None:
    """Raise a ConfigError that names the first option with words of another kind than it takes."""
    option, values = "", list[str]()
    for word in (*words, "--"):
        if not word.startswith("--"):
            values.append(word)
            continue
        if option in kinds:
            fault = kinds[option].fault(values, more_may_follow=has_positional)
            if fault is not None:
                raise ConfigError(f"Option '{option}' {fault}")
        elif values and not has_positional:
            raise ConfigError(f"What is '{values[0]}'? Options are given as --OPTION VALUE.")
        name, equals, value = word[2:].partition("=")
        option, values = name.replace("-", "_"), [value] if equals else []
