"""A tensor in a file: what it is, known before it is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import WeightsError

_MOST_DIMS = 8
_LONGEST_SIDE = 2**31 - 1
_MOST_NUMBERS = 2**48  # where a shape holds none at all, its other sides still multiply to this
_LONGEST_NAME = 500


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """Shape and type of a tensor, checked against the bytes that are there, and how to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The tensors of a weights file, not yet read, and what travels with them.

    Attributes:
      path: the file.
      format: of the file: "safetensors", "npz", "torch" or "mindspore".
      tensors: by the file's own names.
      metadata: text inside the file.
      config: the `config.json` beside it, of Hugging Face's or timm's kind, if there is one.
      processor: the `preprocessor_config.json` beside it, if there is one.
      parts: the files that hold the tensors, where it is an index of them.
      notes: what a log should say of how it was opened.
      entries: how much of a name is the entry of the file, or the entries, that its tensor is in.
    """

    path: Path
    format: str
    tensors: Mapping[str, FileTensor]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] | None = None
    parts: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    entries: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.tensors:
            # Names stand in messages, which are of one line and to be read.
            if len(name) > _LONGEST_NAME or not name.isprintable():
                raise WeightsError(f"{self.path}: a tensor has the impossible name {name[:40]!r}.")


def shape_problem(shape: Sequence[int], itemsize: int, size: int) -> str | None:
    """Say why no tensor of this shape can lie in so many bytes, or return None.

    Whoever calls this before allocating never allocates more than the file has.
    """
    if len(shape) > _MOST_DIMS:
        return f"has {len(shape)} dimensions"
    positive = math.prod(side or 1 for side in shape)
    if not all(0 <= side <= _LONGEST_SIDE for side in shape) or positive > _MOST_NUMBERS:
        return f"has the impossible shape {str(tuple(shape))[:100]}"
    if math.prod(shape) * itemsize != size:
        needed = math.prod(shape) * itemsize
        return f"of shape {tuple(shape)} needs {needed:,} bytes, but {size:,} are there"
    return None
