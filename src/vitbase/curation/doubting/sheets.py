"""Contact sheets: small images side by side, with what is doubted of each below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vitbase.console import printable
from vitbase.data.decode import Pixels

COLUMNS = 6
SIDE = 160
"""Pixels that the longer side of an image has."""

_MARGIN, _LINE, _TITLE = 10, 13, 30
_PAPER, _INK, _FAINT, _MARK = (255, 255, 255), (20, 20, 20), (225, 225, 225), (200, 30, 30)


class Cell(NamedTuple):
    """An image of a sheet.

    Attributes:
      pixels: uint8 [h, w, 3], of at most SIDE; None if it cannot be read.
      lines: what is said of it.
      marked: whether it has a red frame.
    """

    pixels: Pixels | None
    lines: tuple[str, ...]
    marked: bool = False


def draw_sheet(title: str, rows: Sequence[Sequence[Cell]]) -> bytes:
    """Return a sheet as PNG.

    Args:
      title: its first line.
      rows: of at most COLUMNS images each.
    """
    lines = max((len(cell.lines) for row in rows for cell in row), default=0)
    step_x, step_y = SIDE + _MARGIN, SIDE + lines * _LINE + 2 * _MARGIN
    size = _MARGIN + COLUMNS * step_x, _TITLE + len(rows) * step_y
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    draw.text((_MARGIN, _MARGIN), _fitted(title, size[0] - 2 * _MARGIN, draw, font), _INK, font)
    for down, row in enumerate(rows):
        for across, cell in enumerate(row):
            left, top = _MARGIN + across * step_x, _TITLE + down * step_y
            _draw_image(sheet, draw, cell, left, top)
            for number, line in enumerate(cell.lines):
                place = left, top + SIDE + 3 + number * _LINE
                draw.text(place, _fitted(line, SIDE, draw, font), _INK, font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_image(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int
) -> None:
    frame = (left, top, left + SIDE, top + SIDE)
    draw.rectangle(frame, _FAINT)
    if cell.pixels is None:
        draw.line((left, top, left + SIDE, top + SIDE), _MARK)
        draw.line((left, top + SIDE, left + SIDE, top), _MARK)
    else:
        height, width = cell.pixels.shape[:2]
        place = left + (SIDE - width) // 2, top + (SIDE - height) // 2
        sheet.paste(Image.fromarray(cell.pixels), place)
    if cell.marked:
        draw.rectangle(frame, outline=_MARK, width=2)


def _fitted(
    text: str,
    width: int,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """Return a text that fits: of a longer one the end, which tells names apart.

    Letters that the font may not have are escaped.
    """
    text = printable(text).encode("ascii", "backslashreplace").decode()
    if draw.textlength(text, font) <= width:
        return text
    text = text[-width:]  # no letter is narrower than a pixel
    while text and draw.textlength(f"..{text}", font) > width:
        text = text[1:]
    return f"..{text}"
