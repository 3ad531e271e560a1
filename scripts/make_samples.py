"""Make the embedded data set: a class-balanced part of Fashion-MNIST, in its own format.

    python scripts/make_samples.py train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz

The arguments are the four files of the full set (Debian: package ``dataset-fashion-mnist``).
The first 1,000 training and 200 test images of every class are kept, in their original order, and
written into the current folder; the package has them in src/vitbase/sources/samples. The same input
gives the same bytes.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

TRAIN_PER_CLASS = 1000
VAL_PER_CLASS = 200
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801


def take_balanced(images_path: str, labels_path: str, per_class: int, prefix: str) -> None:
    """Write the first ``per_class`` images of each class as a pair of gzipped IDX files."""
    images = gzip.decompress(Path(images_path).read_bytes())
    labels = gzip.decompress(Path(labels_path).read_bytes())
    magic, count, rows, columns = struct.unpack(">4I", images[:16])
    assert (magic, count) == (IMAGES_MAGIC, struct.unpack(">2I", labels[:8])[1])
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(count, rows * columns)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    firsts = [np.flatnonzero(classes == c)[:per_class] for c in np.unique(classes)]
    assert {len(first) for first in firsts} == {per_class}
    kept = np.sort(np.concatenate(firsts))
    images_header = struct.pack(">4I", IMAGES_MAGIC, len(kept), rows, columns)
    labels_header = struct.pack(">2I", LABELS_MAGIC, len(kept))
    _write_gzip(f"{prefix}-images-idx3-ubyte.gz", images_header + pixels[kept].tobytes())
    _write_gzip(f"{prefix}-labels-idx1-ubyte.gz", labels_header + classes[kept].tobytes())


def _write_gzip(name: str, content: bytes) -> None:
    Path(name).write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    take_balanced(sys.argv[1], sys.argv[2], TRAIN_PER_CLASS, "train")
    take_balanced(sys.argv[3], sys.argv[4], VAL_PER_CLASS, "t10k")
