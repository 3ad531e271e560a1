"""The paper that figures are drawn on: light or dark, opaque, so that they stand on any page."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vitbase.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]

DPI = 100
"""Pixels of an inch of a PNG."""


class Paper(NamedTuple):
    """The colours of a theme."""

    ground: str
    ink: str
    faint: str
    grid: str
    series: tuple[str, ...]


PAPERS: dict[Theme, Paper] = {
    "light": Paper(
        "#ffffff", "#1a1a1a", "#6b6b6b", "#dddddd", ("#1f6fb2", "#d1571c", "#2a8a57", "#8a4fae")
    ),
    "dark": Paper(
        "#16181c", "#ececec", "#9a9a9a", "#3a3d42", ("#62b0f0", "#ff9457", "#5fc795", "#c996e8")
    ),
}


def check_matplotlib() -> None:
    """Raise a ConfigError saying what to install, if figures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("Figures need matplotlib: pip install 'vitbase[plots]'.") from None


def _style(paper: Paper) -> Any:
    return {
        "svg.fonttype": "path",  # an SVG looks the same where other fonts are
        "svg.hashsalt": "vitbase",
        "text.parse_math": False,
        "font.size": 10,
        "text.color": paper.ink,
        "axes.edgecolor": paper.faint,
        "axes.labelcolor": paper.ink,
        "axes.facecolor": paper.ground,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "grid.color": paper.grid,
        "grid.linewidth": 0.6,
        "xtick.color": paper.ink,
        "ytick.color": paper.ink,
        "figure.facecolor": paper.ground,
        "savefig.facecolor": paper.ground,
        "legend.frameon": False,
        "legend.labelcolor": paper.ink,
        "lines.linewidth": 1.6,
    }


@contextlib.contextmanager
def drawing(paper: Paper) -> Iterator[None]:
    """Inside, what matplotlib draws has the colours of a paper, and is quiet about fonts."""
    from matplotlib import rc_context

    with rc_context(_style(paper)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks
        yield


class Drawn:
    """A figure, which a notebook shows as it is."""

    def __init__(self, figure: Figure, paper: Paper) -> None:
        self.figure, self.paper = figure, paper

    def to_png(self) -> bytes:
        # The strongest compression takes four times as long, and saves a twentieth.
        return self._save(format="png", pil_kwargs={"compress_level": 4})

    def to_svg(self) -> bytes:
        return self._save(format="svg", metadata={"Date": None})

    def _save(self, **options: Any) -> bytes:
        out = io.BytesIO()
        with drawing(self.paper):
            self.figure.savefig(out, dpi=DPI, **options)
        return out.getvalue()

    def _repr_png_(self) -> bytes:
        return self.to_png()
