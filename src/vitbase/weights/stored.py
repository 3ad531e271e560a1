"""A tensor in a file: what it is, known before it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class StoredTensor:
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
      notes: what a log should say of how it was opened.
    """

    path: Path
    format: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
