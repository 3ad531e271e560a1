"""A few images of a batch, prepared in turn by whichever thread or process has time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitbase import pulse
from vitbase.errors import ImageError
from vitbase.sources.source import Source

Generators = Callable[[int], np.random.Generator]
"""From a position to its random numbers."""

Raw = bytes | NDArray[np.uint8]
"""What a source gives: an image file's bytes, or pixels uint8 [H, W, C]."""

Bad = tuple[int, str]
"""Which of the images that were asked for could not be read, from 0, and why."""


class Task(NamedTuple):
    """Some images, where they stand in the epoch, and what gives a position its random numbers."""

    indices: Sequence[int]
    positions: Sequence[int]
    generators: Generators | None


def fill(
    task: Task,
    source: Source,
    rows: NDArray[np.uint8],
    write: Callable[[Raw, np.random.Generator | None, int], None],
) -> list[Bad]:
    """Prepare some images. One that cannot be read is all zero.

    Args:
      rows: where they go, uint8 [images, H, W, C].
      write: prepares what was read, and writes it into a row.
    Returns: which could not be read.
    """
    bad = []
    for row, (index, position) in enumerate(zip(task.indices, task.positions, strict=True)):
        generator = task.generators(position) if task.generators else None
        pulse.reads(partial(source.describe, index))
        try:
            write(source.read(index), generator, row)
        except ImageError as error:
            rows[row] = 0
            bad.append((row, str(error)))
        finally:
            pulse.has_read()
    return bad
