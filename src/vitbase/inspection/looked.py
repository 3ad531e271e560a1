"""What was found in a model, as plain arrays.

Shape legend, of every array of an inspection: I images, L blocks, H heads, h and w rows and columns
of patches, R class token and registers, y and x pixels, C channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitbase.inspection.kinds import Kind
from vitbase.model.spec import ViTSpec

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class LookedAt:
    """An image as the model sees it.

    Attributes:
      path: its file.
      pixels: uint8 [y, x, C], resized and cropped.
      target: the class that gradients explain, and its probability; None without a head, or if
        nothing asked.
    """

    path: Path
    pixels: Pixels
    target: tuple[str, float] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """What was found.

    Attributes:
      weights: the file.
      spec: of the model, at the size that it was looked at.
      images: those that could be read.
      unreadable: the others, and why.
      left_out: images beyond the limit, which were not looked at.
      arrays: of each kind, by name; docs/inspection.md tells their shapes.
      layer: index of the block whose attention and norms are drawn.
      head: index of the head that is drawn; None: all.
      notes: what was not made, and why.
    """

    weights: Path
    spec: ViTSpec
    images: tuple[LookedAt, ...]
    unreadable: tuple[tuple[Path, str], ...]
    left_out: int
    arrays: dict[Kind, dict[str, Array]]
    layer: int
    head: int | None
    notes: tuple[str, ...]
