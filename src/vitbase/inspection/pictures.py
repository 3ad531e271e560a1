"""Images as a user names them, read as evaluation reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import EvalTransform
from vitbase.disk import LONGEST_IMAGE, read_regular
from vitbase.errors import DataError, ImageError
from vitbase.inspection.looked import LookedAt


def read_pictures(
    paths: Sequence[Path], preprocess: Preprocess
) -> tuple[list[LookedAt], list[tuple[Path, str]]]:
    """Read images, resized and cropped as in evaluation.

    Returns: those that can be read; the others, and why not.
    Raises: DataError if there are images, and none can be read.
    """
    transform = EvalTransform(preprocess)
    shape = preprocess.height, preprocess.width, preprocess.channels
    read: list[LookedAt] = []
    failed: list[tuple[Path, str]] = []
    for path in paths:
        pixels = np.zeros(shape, np.uint8)
        try:
            transform(read_regular(path, LONGEST_IMAGE), None, pixels)
        except ImageError as error:
            failed.append((path, str(error)))
        except OSError as error:
            failed.append((path, error.strerror or str(error)))
        else:
            read.append(LookedAt(path, pixels))
    if failed and not read:
        path, why = failed[0]
        which = f"The image {path}" if len(failed) == 1 else f"None of {len(failed)} images"
        more = f"cannot be read: {why}" if len(failed) == 1 else f"can be read; {path}: {why}"
        raise DataError(f"{which} {more.rstrip('.')}.")
    return read, failed
