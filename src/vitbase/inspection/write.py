"""An inspection on disk: figures, arrays, and a page of JSON that lists them.

No name from outside becomes a file's: figures of images are numbered.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitbase._version import __version__
from vitbase.errors import DataError
from vitbase.files import json_line, plain_name, refuse_full, write_whole, written_whole
from vitbase.inspection.kinds import Kind
from vitbase.inspection.looked import Array, Looked
from vitbase.inspection.paper import Drawn

VERSION = 1
"""Of inspect.json."""

SUMMARY = "inspect.json"


def write_inspection(
    looked: Looked, figures: Mapping[Kind, Mapping[str, Drawn]], out: Path
) -> list[str]:
    """Write PNG and SVG of each figure, an .npz of arrays for each kind, and inspect.json.

    Args:
      looked: what was found.
      figures: of each kind, by name; none where they cannot be drawn.
      out: a folder that is empty, or not there; it appears whole.
    Returns: the names of the files.
    Raises: DataError if the folder cannot be written.
    """
    refuse_full(out)
    written: list[str] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(out) as beside:
            beside.mkdir()
            for name, content in _files(looked, figures):
                write_whole(beside / name, content)
                written.append(name)
    except OSError as error:
        raise DataError(f"Cannot write --out {out}: {error.strerror or error}") from None
    return written


def _files(
    looked: Looked, figures: Mapping[Kind, Mapping[str, Drawn]]
) -> Iterator[tuple[str, bytes | str]]:
    for kind, arrays in looked.arrays.items():
        for name, drawn in figures.get(kind, {}).items():
            yield f"{name}.png", drawn.to_png()
            yield f"{name}.svg", drawn.to_svg()
        yield f"{kind}.npz", _packed(arrays)
    yield SUMMARY, json_line(summary(looked, figures), indent=1) + "\n"


def _packed(arrays: Mapping[str, Array]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def summary(looked: Looked, figures: Mapping[Kind, Mapping[str, Drawn]]) -> dict[str, Any]:
    """Return what inspect.json says, as plain values."""
    spec = looked.spec
    return {
        "version": VERSION,
        "vitbase": __version__,
        "weights": plain_name(str(looked.weights)),
        "model": {
            "name": spec.name,
            "image_size": [*spec.image_size],
            "grid": [*spec.grid_hw],
            "patch_size": spec.patch_size,
            "depth": spec.depth,
            "num_heads": spec.num_heads,
            "class_token": spec.class_token,
            "registers": spec.num_registers,
            "stem": spec.stem,
            "pool": spec.pool,
            "num_classes": spec.num_classes,
        },
        "layer": looked.layer + 1,
        "head": None if looked.head is None else looked.head + 1,
        "images": [
            {
                "number": number,
                "image": plain_name(str(image.path)),
                "class": None if image.target is None else plain_name(image.target[0]),
                "probability": None if image.target is None else image.target[1],
            }
            for number, image in enumerate(looked.images, 1)
        ],
        "unreadable": [
            {"image": plain_name(str(path)), "error": error} for path, error in looked.unreadable
        ],
        "left_out": looked.left_out,
        "kinds": {
            kind: {
                "figures": [*figures.get(kind, {})],
                "arrays": f"{kind}.npz",
                "shapes": {name: [*array.shape] for name, array in arrays.items()},
            }
            for kind, arrays in looked.arrays.items()
        },
        "notes": [plain_name(note) for note in looked.notes],
    }
