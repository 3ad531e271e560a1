"""The charts of an inspection: positions, distances, lengths of tokens.

Shape legend: I images, L blocks, H heads, h and w rows and columns of patches, R prefix tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitbase.inspection.looked import Array
from vitbase.inspection.paper import DPI, Drawn, Paper, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TILES = 14
"""Rows and columns of tiles of similarities; of more patches, as many are chosen evenly."""


def draw_positions(paper: Paper, similarity_hwhw: Array, title: str) -> Drawn:
    """Draw a tile for each patch: how alike its position is to each other one."""
    from matplotlib.figure import Figure

    rows, columns = similarity_hwhw.shape[:2]
    chosen_y, chosen_x = (_spread(count, _MOST_TILES) for count in (rows, columns))
    step_y, step_x = rows + _gap(rows), columns + _gap(columns)
    mosaic = np.full((len(chosen_y) * step_y, len(chosen_x) * step_x), np.nan, np.float32)
    for down, y in enumerate(chosen_y):
        for across, x in enumerate(chosen_x):
            tile = similarity_hwhw[y, x]
            mosaic[down * step_y :, across * step_x :][:rows, :columns] = tile
    mosaic = mosaic[: -_gap(rows), : -_gap(columns)]
    aspect = mosaic.shape[0] / mosaic.shape[1]
    width, height = (5.6, 5.6 * aspect) if aspect <= 1.2 else (6.7 / aspect, 6.7)
    size = max(3.8, width + 1.8), height + 1.15
    with drawing(paper):
        figure = Figure(figsize=size, dpi=DPI)
        axes = figure.add_axes(_box(size, 0.7, 0.65, width, height))
        image = axes.imshow(mosaic, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
        middle_y = [down * step_y + (rows - 1) / 2 for down in range(len(chosen_y))]
        middle_x = [across * step_x + (columns - 1) / 2 for across in range(len(chosen_x))]
        axes.set_yticks(middle_y, [str(y + 1) for y in chosen_y], fontsize=8)
        axes.set_xticks(middle_x, [str(x + 1) for x in chosen_x], fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_ylabel("row of the patch")
        axes.set_xlabel("column of the patch")
        axes.set_title(title)
        place = figure.add_axes(_box(size, 0.9 + width, 0.65 + 0.1 * height, 0.16, 0.8 * height))
        bar = figure.colorbar(image, cax=place, ticks=[-1, 0, 1])
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)
    return Drawn(figure, paper)


def _box(
    size: tuple[float, float], left: float, bottom: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Return a place as fractions of a figure; all in inches."""
    return left / size[0], bottom / size[1], width / size[0], height / size[1]


def _gap(count: int) -> int:
    """Cells between two tiles of so many."""
    return max(1, count // 12)


def _spread(count: int, most: int) -> list[int]:
    """Return some indices, equally far from each other."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))})


def draw_distance(paper: Paper, pixels_ILH: Array, diagonal: float) -> Drawn:
    """Draw a dot for each head: how far it looks, over the depth of its block."""
    from matplotlib.figure import Figure

    mean_LH = pixels_ILH.mean(0)
    depth = len(mean_LH)
    with drawing(paper):
        size = max(5.6, 2.2 + 0.34 * depth), 3.8
        figure = Figure(figsize=size, dpi=DPI)
        axes = figure.add_axes(_box(size, 0.75, 0.85, size[0] - 0.95, 2.5))
        axes.grid(visible=True, axis="y")
        at_LH = np.arange(1, depth + 1)[:, None] + np.zeros_like(mean_LH)
        axes.scatter(at_LH, mean_LH, s=22, color=paper.series[0], alpha=0.75, linewidths=0)
        axes.plot(at_LH[:, 0], mean_LH.mean(1), color=paper.series[1], label="mean of the heads")
        axes.scatter([], [], s=22, color=paper.series[0], label="a head")
        ticks = range(1, depth + 1, max(1, depth // 12))
        axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
        axes.set_xlim(0.4, depth + 0.6)
        axes.set_ylim(0, max(1.0, float(mean_LH.max()) * 1.12))
        axes.set_xlabel("block")
        axes.set_ylabel("mean attention distance, pixels")
        images = "1 image" if len(pixels_ILH) == 1 else f"{len(pixels_ILH)} images"
        axes.set_title(f"How far heads look ({images}; the diagonal is {diagonal:.0f} px)")
        figure.legend(loc="lower right", ncols=2, fontsize=8.5)
    return Drawn(figure, paper)


def _scale_lengths(axes: Axes, low: float, high: float) -> None:
    """Let an axis show lengths of a tenth and of ten times: artifacts are so much longer."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def draw_norms(paper: Paper, patches_ILhw: Array, prefix_ILR: Array, names: list[str]) -> Drawn:
    """Draw the lengths of tokens over the depth, and how patches spread at the end.

    Args:
      names: of each prefix token, what it is: "class token" or "registers".
    """
    from matplotlib.figure import Figure

    images, depth = patches_ILhw.shape[:2]
    values_LM = patches_ILhw.transpose(1, 0, 2, 3).reshape(depth, -1)
    at = np.arange(1, depth + 1)
    marker = "o" if depth < 3 else None
    with drawing(paper):
        size = 9.0, 3.8
        figure = Figure(figsize=size, dpi=DPI)
        left = figure.add_axes(_box(size, 0.75, 0.85, 4.5, 2.5))
        right = figure.add_axes(_box(size, 6.05, 0.85, 2.75, 2.5))
        low, middle, high = np.quantile(values_LM, [0.05, 0.5, 0.95], axis=1)
        left.fill_between(at, low, high, color=paper.series[0], alpha=0.25, linewidth=0)
        left.plot(at, middle, color=paper.series[0], marker=marker, label="patches: median, 90%")
        left.plot(
            at,
            values_LM.max(1),
            color=paper.series[0],
            linestyle=":",
            marker=marker and "^",
            label="longest patch",
        )
        for kind, colour in (("class token", paper.series[1]), ("registers", paper.series[2])):
            which = [n for n, name in enumerate(names) if name == kind]
            if which:
                mean_L = prefix_ILR[..., which].mean((0, 2))
                left.plot(at, mean_L, color=colour, marker=marker, label=kind)
        ticks = list(range(1, depth + 1, max(1, depth // 12)))
        left.set_xticks(ticks, [str(tick) for tick in ticks])
        _scale_lengths(left, float(values_LM.min()), float(values_LM.max()))
        left.grid(visible=True, axis="y")
        left.set_xlabel("block")
        left.set_ylabel("length of the token")
        left.set_title("Lengths of tokens by depth")
        right.hist(values_LM[-1], bins=40, color=paper.series[0])
        right.set_xlabel("length of the token")
        count = "1 image" if images == 1 else f"{images} images"
        right.set_ylabel(f"patches of {count}")
        right.set_title("After the last block")
        figure.legend(loc="lower left", ncols=4, fontsize=8.5)
    return Drawn(figure, paper)
