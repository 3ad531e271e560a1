"""What kinds of values options have: how help shows them, and which words are of another kind."""

from __future__ import annotations

import dataclasses
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


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
        return cls((("True", "False") if annotation is bool else annotation,))

    def metavar(self, option: str) -> str:
        """Say in a word or two what an option takes."""
        return " ".join(_metavar(part, option) for part in self.parts) + " ..." * self.repeats


_NAMES: dict[type, str] = {int: "INT", float: "FLOAT"}


def _metavar(part: type | tuple[str, ...], option: str) -> str:
    if isinstance(part, tuple):
        return f"{{{','.join(part)}}}"
    return _NAMES.get(part, "PATH" if option.endswith(("_path", "_dir", "_file")) else "STR")


def as_typed(value: object) -> str:
    """Write a value as it would be typed; nothing for None."""
    if isinstance(value, tuple):
        return " ".join(map(as_typed, value))
    return "" if value is None else str(value)
