"""Charts of matplotlib as SVG inside a page: text stays text, colours are those of the page.

A chart is drawn with stand-ins, which become CSS variables: so it is light, dark and printed with
the page around it. It is read back as XML, so that nothing in a name can become markup. For other
pages than ours, :func:`pictured` makes PNG of the same charts, in the colours of the light page.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vitbase.console import printable
from vitbase.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, GOOD, BAD = (
    f"vitbase:{name}" for name in ("ink", "faint", "grid", "good", "bad")
)
SERIES = tuple(f"vitbase:run{number}" for number in range(12))
"""Names of the colours of runs; as many runs can be compared."""
_STAND_INS = {
    **{
        name: f"#{number:02x}{number:02x}{number:02x}"
        for number, name in enumerate((INK, FAINT, GRID, GOOD, BAD), 1)
    },
    **{name: f"#{number:02x}0610" for number, name in enumerate(SERIES, 0x10)},
}
_VARIABLES = {stand_in: name.replace("vitbase:", "--") for name, stand_in in _STAND_INS.items()}
_DPI = 150
"""Pixels of an inch of a PNG."""
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitbase",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}


def check_charts() -> None:
    """Check that charts can be drawn here. Raises: ConfigError saying what to install."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "A report's charts need matplotlib: pip install 'vitbase[plots]'."
        ) from None


class Chart:
    """A figure to draw into, and its SVG when that is done."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.figure, self.axes = figure, axes
        self.svg = ""


@contextlib.contextmanager
def charted(width: float, height: float, title: str) -> Iterator[Chart]:
    """Give a chart of so many inches; afterwards its `svg` is set.

    Args:
      title: what it shows, for those who cannot see it.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.colors import get_named_colors_mapping
    from matplotlib.figure import Figure

    pictures = _pictures.get()
    for name, colour in (_STAND_INS if pictures is None else _light()).items():
        get_named_colors_mapping()[name] = colour  # one by one: `update` leaves a cache as it is
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the measuring font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        chart = Chart(figure, figure.add_subplot())
        yield chart
        out = io.BytesIO()
        if pictures is not None:
            paper = _light()["vitbase:paper"]
            figure.savefig(
                out, format="png", dpi=_DPI, facecolor=paper, metadata={"Software": None}
            )
            pictures[title] = out.getvalue()
            return
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    chart.svg = _for_page(out.getvalue(), title)


_pictures: ContextVar[dict[str, bytes] | None] = ContextVar("pictures", default=None)


@contextlib.contextmanager
def pictured() -> Iterator[dict[str, bytes]]:
    """Inside, charts become PNG, kept by their titles, and no SVG: what draws them returns ""."""
    pictures: dict[str, bytes] = {}
    token = _pictures.set(pictures)
    try:
        yield pictures
    finally:
        _pictures.reset(token)


@functools.cache
def _light() -> dict[str, str]:
    """Return the colours of the light page by their names here, as its style has them."""
    style = (files("vitbase.evaluation.report") / "page.css").read_text(encoding="utf-8")
    root = style[: style.index("}")]
    return {f"vitbase:{name}": colour for name, colour in re.findall(r"--(\w+): (#\w+)", root)}


def _for_page(svg: bytes, title: str) -> str:
    """Return an SVG document as an element of a page."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for element in root.iter():
        if re.fullmatch(r"[A-Za-z0-9.]+_\d+", element.get("id", "")):
            del element.attrib["id"]  # each figure has the same ones
        style = element.get("style")
        if style:
            element.set("style", re.sub(r"#[0-9a-f]{6}\b", _variable, style))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")


def _variable(stand_in: re.Match[str]) -> str:
    name = _VARIABLES.get(stand_in[0])
    return stand_in[0] if name is None else f"var({name})"


def shortened(name: str, most: int = 24) -> str:
    """Return a name as a chart has place for it, without what moves other text."""
    text = printable(name[:300])
    return text if len(text) <= most else f"{text[: most - 1]}…"
