"""What was found -> figures, a function for each kind.

Shape legend: I images, L blocks, H heads, h and w rows and columns of patches, y and x pixels,
C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from vitbase.inspection.attention import query_of
from vitbase.inspection.charts import draw_distance, draw_norms, draw_positions
from vitbase.inspection.kinds import Kind
from vitbase.inspection.looked import Array, Looked, LookedAt, Pixels
from vitbase.inspection.overlay import heat, overlay, resized
from vitbase.inspection.paper import Drawn, Paper
from vitbase.inspection.sheet import Scale, Tile, draw_sheet

SIDE = 180
"""Pixels of the longer side of a picture of a sheet."""

_MOST_FILTERS = 64

Figures = Iterator[tuple[str, Drawn]]
_HEAT = Scale("brighter: more, in each picture by itself", "least", "most")


def draw_kind(looked: Looked, kind: Kind, paper: Paper) -> Figures:
    """Yield the figures of a kind, each with its name, which holds letters and digits alone."""
    return _DRAWN[kind](looked, looked.arrays[kind], paper)


def _draw_filters(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    if "components" in arrays:
        shown, share = arrays["components"], float(arrays["share"].sum())
        title = "Filters of the patch embedding"
        note = f"{len(shown)} principal components, {share:.0%} of the variance"
    else:
        shown = arrays["filters"]
        title = "Filters of the first convolution"
        few = min(len(shown), _MOST_FILTERS)
        note = f"all {few}" if few == len(shown) else f"the first {few} of {len(shown)}"
    tiles = [Tile(_as_picture(one)) for one in shown[:_MOST_FILTERS]]
    columns = 7 if len(tiles) <= 28 else 16
    side = 84 if len(tiles) <= 28 else 48
    yield "filters", draw_sheet(paper, title, tiles, columns=columns, side=side, note=note)


def _as_picture(filter_yxC: Array) -> Pixels:
    """Return a filter with 0 as middle grey; channels beyond three are left out."""
    filter_yxC = filter_yxC[..., :3] if filter_yxC.shape[-1] >= 3 else filter_yxC[..., :1]
    most = max(float(np.abs(filter_yxC).max()), 1e-30)
    pixels = (127.5 + 127.5 * filter_yxC / most).round().astype(np.uint8)
    return _in_blocks(pixels, 84)


def _in_blocks(pixels_hwC: Pixels, side: int) -> Pixels:
    """Enlarge so that each value stays a square with sharp edges."""
    times = max(1, math.ceil(side / max(pixels_hwC.shape[:2])))
    return pixels_hwC.repeat(times, 0).repeat(times, 1)


def _draw_positions(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    fixed = " (fixed, sine and cosine)" if looked.spec.pos_embed == "sincos2d" else ""
    title = f"Position embeddings of patches{fixed}"
    yield "positions", draw_positions(paper, arrays["similarity"], title)


def _draw_distance(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    diagonal = math.hypot(*looked.spec.image_size)
    yield "distance", draw_distance(paper, arrays["pixels"], diagonal)


def _draw_attention(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    spec, layer = looked.spec, looked.layer
    heads = range(spec.num_heads) if looked.head is None else (looked.head,)
    note = f"of the {query_of(spec)}"
    others = ["class token"] * spec.class_token + ["registers"] * bool(spec.num_registers)
    if others:
        note += f"; percent: what patches get, the rest goes to {' and '.join(others)}"
    for number, image in enumerate(looked.images, 1):
        maps_Hhw = arrays["maps"][number - 1, layer]
        tiles = [Tile(_shown(image), "image")]
        if looked.head is None:
            tiles.append(Tile(_laid(image, maps_Hhw.mean(0)), "mean of heads"))
        for head in heads:
            share = f": {float(maps_Hhw[head].sum()):.0%}" if others else ""
            tiles.append(Tile(_laid(image, maps_Hhw[head]), f"head {head + 1}{share}"))
        yield (
            f"attention-{number:02}",
            draw_sheet(
                paper,
                f"Attention of block {layer + 1} of {spec.depth}: {image.path.name}",
                tiles,
                columns=max(3, math.ceil(math.sqrt(len(tiles) * 1.4))),
                side=SIDE if looked.head is None else 320,
                note=note,
                scale=_HEAT,
            ),
        )


def _draw_rollout(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    by = "class token" if looked.spec.pool in ("token", "token_gap") else "mean of the patches"
    maps = _laid_each(looked, arrays["maps"])
    note = f"what each patch gives to what the head reads, the {by}, through all blocks"
    yield "rollout", _pairs(looked, paper, "Attention rollout", maps, note, _HEAT)


def _draw_features(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    colours = [_in_blocks((255 * one).round().astype(np.uint8), SIDE) for one in arrays["colours"]]
    share = float(arrays["share"].sum())
    note = (
        f"three principal components of all images together as red, green and blue, {share:.0%} of "
        "the variance"
    )
    yield "features", _pairs(looked, paper, "Features of patches", colours, note, None)


def _draw_norms(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    spec, layer = looked.spec, looked.layer
    norms_Ihw = arrays["patches"][:, layer]
    low, high = float(norms_Ihw.min()), float(norms_Ihw.max())
    span = max(high - low, 1e-30)
    maps = [_in_blocks(heat((one - low) / span), SIDE) for one in norms_Ihw]
    scale = Scale("length of the token, in all pictures alike", f"{low:.3g}", f"{high:.3g}")
    note = f"after block {layer + 1} of {spec.depth}; a few far brighter ones are artifacts"
    yield "norms", _pairs(looked, paper, "Lengths of patch tokens", maps, note, scale)
    names = ["class token"] * spec.class_token + ["registers"] * spec.num_registers
    yield "norms-by-block", draw_norms(paper, arrays["patches"], arrays["prefix"], names)


def _draw_gradcam(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    maps = _laid_each(looked, arrays["maps"])
    note = "what speaks for the class above each picture, at the last block's first norm"
    yield "gradcam", _pairs(looked, paper, "Grad-CAM", maps, note, _HEAT, _class_of)


def _draw_gradients(looked: Looked, arrays: dict[str, Array], paper: Paper) -> Figures:
    maps = []
    for attribution_yxC in arrays["attributions"]:
        map_yx = np.abs(attribution_yxC.sum(-1))
        most = max(float(np.quantile(map_yx, 0.995)), 1e-30)
        maps.append(heat((map_yx / most).clip(0, 1)))
    note = "how much each pixel moves the logit of the class above it, for or against"
    yield "gradients", _pairs(looked, paper, "Integrated gradients", maps, note, _HEAT, _class_of)


def _pairs(
    looked: Looked,
    paper: Paper,
    title: str,
    maps: list[Pixels],
    note: str,
    scale: Scale | None,
    says: Callable[[LookedAt], str] = lambda image: "",
) -> Drawn:
    """Draw each image with its map beside it."""
    tiles: list[Tile] = []
    for number, (image, picture) in enumerate(zip(looked.images, maps, strict=True), 1):
        size = _size(image)
        tiles += [
            Tile(_shown(image), f"{number} {image.path.name}"),
            Tile(resized(picture, size), says(image)),
        ]
    columns = 2 * max(1, min(4, math.ceil(math.sqrt(len(looked.images)))))
    return draw_sheet(paper, title, tiles, columns=columns, side=SIDE, note=note, scale=scale)


def _class_of(image: LookedAt) -> str:
    return "" if image.target is None else f"{image.target[0]} {image.target[1]:.0%}"


def _size(image: LookedAt) -> tuple[int, int]:
    """Return the rows and columns that an image has on a sheet."""
    height, width = image.pixels.shape[:2]
    factor = SIDE / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shown(image: LookedAt) -> Pixels:
    pixels = image.pixels
    if 3 * max(pixels.shape[:2]) <= SIDE:
        pixels = _in_blocks(pixels, SIDE)
    return resized(pixels, _size(image))


def _laid(image: LookedAt, map_hw: Array) -> Pixels:
    return overlay(_shown(image), map_hw, _size(image))


def _laid_each(looked: Looked, maps_Ihw: Array) -> list[Pixels]:
    return [_laid(image, map_hw) for image, map_hw in zip(looked.images, maps_Ihw, strict=True)]


_DRAWN: dict[Kind, Callable[[Looked, dict[str, Array], Paper], Figures]] = {
    "filters": _draw_filters,
    "positions": _draw_positions,
    "distance": _draw_distance,
    "attention": _draw_attention,
    "rollout": _draw_rollout,
    "features": _draw_features,
    "norms": _draw_norms,
    "gradcam": _draw_gradcam,
    "gradients": _draw_gradients,
}
