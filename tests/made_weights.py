"""A small network in files: as they are written, and as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitbase
from vitbase.weights.files.mindspore import stream_mindspore
from vitbase.weights.files.open import open_tensors
from vitbase.weights.networks import choose_network
from vitbase.weights.save import save_weights

State = dict[str, Tensor]


def write_bare(path: Path, content: Any) -> None:
    """Write as torch did before its files were zip archives."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_mindspore(path: Path, tensors: State) -> None:
    """Write a `.ckpt` as MindSpore does."""
    with path.open("wb") as file:
        stream_mindspore(file, tensors)


def read_state(path: Path) -> State:
    """Read the tensors of the network in a file."""
    file = choose_network(open_tensors(path)).file
    return {name: stored.read() for name, stored in file.tensors.items()}


def write_whole_network(path: Path) -> Path:
    """Write a whole network, by timm's names."""
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=7, image_size=32, gelu="erf")
    save_weights(model, path, dialect="timm")
    return path
