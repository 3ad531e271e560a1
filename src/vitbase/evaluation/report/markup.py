"""HTML as values: whatever is no markup yet is escaped when it gets into an element."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable

from vitbase.console import printable

_LONGEST_TEXT = 4000
_VOID = frozenset({"img", "input", "meta", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: str | bool | int | None) -> Markup:
    """Return an element. Attributes: `class_` is class, `data_x` is data-x; None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{_joined(children)}</{name}>")


def _attribute(value: str | bool | int) -> str:
    if isinstance(value, Markup):
        return value
    return escaped("" if value is True else str(value))


def _joined(children: Iterable[Child]) -> str:
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escaped(child))
        elif child is not None:
            parts.append(_joined(child))
    return "".join(parts)


def escaped(text: str) -> str:
    """Escape text for an element or an attribute; control and directional marks are seen."""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}…"
    return html.escape(printable(text))


def data(value: object) -> Markup:
    """Return JSON inside the page, for its script: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    return Markup(f'<script type="application/json">{text}</script>')


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str = "") -> Markup:
    """Return a table that is scrolled sideways where it has no room."""
    inside = tag(
        "table",
        tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head])),
        tag("tbody", [tag("tr", [_cell(cell) for cell in row]) for row in rows]),
        class_=class_ or None,
    )
    return tag("div", inside, class_="scroll", tabindex="0")


def _cell(cell: Child) -> Markup:
    is_cell = isinstance(cell, Markup) and cell.startswith("<t")
    return cell if is_cell and isinstance(cell, Markup) else tag("td", cell)


def number(shown: str, value: float | None = None) -> Markup:
    """Return a cell with a number, and what it is sorted by."""
    return tag("td", shown, class_="n", data_v=None if value is None else f"{value:.10g}")
