"""A sheet of pictures side by side, each with a line above it.

The pictures are put together before matplotlib sees them: a figure of forty axes takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitbase.evaluation.report.svg import shortened
from vitbase.inspection.looked import Pixels
from vitbase.inspection.overlay import HEAT, resized
from vitbase.inspection.paper import DPI, Drawn, Paper, drawing

_GAP, _LABEL, _MARGIN, _TITLE, _LINE, _BAR = 8, 18, 16, 40, 18, 44
_NARROWEST = 440
"""Pixels: so wide is the line below the scale."""
_LETTER = 6.6
"""Pixels of a letter of a label, which is at most so wide on average."""


class Tile(NamedTuple):
    """A picture of a sheet: uint8 [y, x, 3], and what stands above it."""

    pixels: Pixels
    label: str = ""


class Scale(NamedTuple):
    """What the colours of maps mean: the values of the darkest and of the brightest."""

    label: str
    low: str
    high: str


def draw_sheet(
    paper: Paper,
    title: str,
    tiles: Sequence[Tile],
    *,
    columns: int,
    side: int = 180,
    note: str = "",
    scale: Scale | None = None,
) -> Drawn:
    """Draw pictures of one size in rows.

    Args:
      title: of the sheet.
      tiles: the pictures, all of one aspect.
      columns: pictures in a row, at most.
      side: pixels of the longer side of each.
      note: a line below the title.
      scale: of the colours, if they have one.
    """
    height, width = tiles[0].pixels.shape[:2]
    factor = side / max(height, width)
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    has_labels = any(tile.label for tile in tiles)
    step_y, step_x = height + _GAP + (_LABEL if has_labels else 0), width + _GAP
    inner = rows * step_y - _GAP, columns * step_x - _GAP
    ground = [int(paper.ground[at : at + 2], 16) for at in (1, 3, 5)]
    sheet = np.full((*inner, 3), ground, np.uint8)
    labels: list[tuple[int, int, str]] = []
    for number, tile in enumerate(tiles):
        top, left = number // columns * step_y, number % columns * step_x
        if has_labels:
            labels.append((left, top + _LABEL - 5, tile.label))
            top += _LABEL
        sheet[top : top + height, left : left + width] = resized(tile.pixels, (height, width))
    return _on_paper(paper, title, note, sheet, labels, int(width / _LETTER), scale)


def _on_paper(
    paper: Paper,
    title: str,
    note: str,
    sheet: Pixels,
    labels: Sequence[tuple[int, int, str]],
    letters: int,
    scale: Scale | None,
) -> Drawn:
    from matplotlib.figure import Figure

    note_lines = _wrapped(note, max(sheet.shape[1], _NARROWEST - 2 * _MARGIN) - 4)
    head = _MARGIN // 2 + _TITLE - 8 + len(note_lines) * _LINE
    foot = _MARGIN + (_BAR if scale else 0)
    width = max(sheet.shape[1] + 2 * _MARGIN, _NARROWEST)
    height = head + sheet.shape[0] + foot
    with drawing(paper):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        box = (
            _MARGIN / width,
            foot / height,
            sheet.shape[1] / width,
            sheet.shape[0] / height,
        )
        axes = figure.add_axes(box)
        axes.imshow(
            sheet,
            interpolation="none",
            aspect="auto",
            extent=(0, sheet.shape[1], sheet.shape[0], 0),
        )
        axes.set_axis_off()
        for left, top, label in labels:
            axes.text(left, top, shortened(label, max(4, letters)), fontsize=8)
        at = _MARGIN / width
        figure.text(
            at,
            1 - (_MARGIN + 10) / height,
            shortened(title, max(20, int(width / 7.4))),
            fontsize=11,
            weight="bold",
        )
        for number, line in enumerate(note_lines):
            figure.text(
                at,
                1 - (_MARGIN + 10 + _LINE * (number + 1)) / height,
                line,
                fontsize=8.5,
                color=paper.faint,
            )
        if scale is not None:
            _draw_scale(figure, paper, scale, width, height)
    return Drawn(figure, paper)


def _wrapped(text: str, pixels: int) -> list[str]:
    """Break a text into lines that fit."""
    import textwrap

    return textwrap.wrap(text, max(20, int(pixels / 6.3))) if text else []


def _draw_scale(figure: object, paper: Paper, scale: Scale, width: int, height: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    colours = LinearSegmentedColormap.from_list(
        "heat", [tuple(c / 255 for c in row) for row in HEAT]
    )
    bar = 140
    axes = figure.add_axes((_MARGIN / width, 26 / height, bar / width, 10 / height))
    axes.imshow(np.linspace(0, 1, 128)[None], cmap=colours, aspect="auto")
    axes.set_xticks([0, 127], [scale.low, scale.high], fontsize=8)
    axes.set_yticks([])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[1].set_horizontalalignment("right")
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(
        (_MARGIN + bar + 10) / width, 27 / height, scale.label, fontsize=8.5, color=paper.faint
    )
