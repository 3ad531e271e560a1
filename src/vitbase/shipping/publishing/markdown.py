"""Markdown, and the YAML before it, in which a name from outside stays a name.

A name stands in a code span or a fenced block, where no markup is read; YAML has texts as JSON
writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from vitbase.console import printable

_LONGEST_NAME = 300

Yaml = str | int | float | Sequence["Yaml"] | dict[str, "Yaml"]


def code(name: str) -> str:
    """Return a name as a code span, without what is not to be seen, cut where it is very long."""
    text = printable(name)
    text = text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"
    if not text.strip():
        return "`(no name)`"
    fence = "`" * (1 + max(map(len, re.findall(r"`+", text)), default=0))
    pad = " " if "`" in (text[0], text[-1]) or text[0] == text[-1] == " " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def fenced(text: str, language: str = "") -> str:
    """Return lines as a block of code; nothing in them ends it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already; a bar in one is no border."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def folded(summary: str, body: str) -> str:
    """Return what is shown when somebody asks for it."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def front_matter(values: dict[str, Yaml]) -> str:
    """Return the YAML that a card begins with, and the lines around it."""
    return "\n".join(["---", *_mapping(values), "---"])


def _mapping(values: dict[str, Yaml]) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {line}" for line in _mapping(value))]
        elif isinstance(value, str | int | float):
            lines.append(f"{key}: {_scalar(value)}")
        else:
            lines += [f"{key}:", *(f"{line}" for each in value for line in _item(each))]
    return lines


def _item(value: Yaml) -> list[str]:
    if not isinstance(value, dict):
        return [f"- {_scalar(value)}"]
    first, *others = _mapping(value)
    return [f"- {first}", *(f"  {line}" for line in others)]


def _scalar(value: object) -> str:
    """Return a text as JSON, which YAML reads the same if all of it can be seen; or a number."""
    if isinstance(value, str):
        return json.dumps(printable(value)[:_LONGEST_NAME], ensure_ascii=False)
    if isinstance(value, float):  # YAML takes 1e-05 for a text
        return f"{value:.6f}".rstrip("0").removesuffix(".")
    return json.dumps(value)
