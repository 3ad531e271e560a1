"""A weights file in words: whose it is, what model it makes, and its tensors one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import VARIANTS
from vitbase.weights.checkpoints import find_weights
from vitbase.weights.formats import open_tensors
from vitbase.weights.load import OpenedWeights, open_weights


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One tensor of a file: its name there, the name here (empty if left out), shape and type."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a weights file is; `opened` is None where it makes no ViT, and `error` says why."""

    path: Path
    format: str
    bytes: int
    tensors: tuple[TensorRow, ...]
    notes: tuple[str, ...]
    opened: OpenedWeights | None
    error: str | None

    def lines(self) -> Iterator[str]:
        """Yield a line for each fact."""
        yield f"file          {self.path}"
        kind = f"{self.format}, {_size(self.bytes)}, {len(self.tensors)} tensors"
        yield f"format        {'; '.join((kind, *self.notes))}"
        if self.opened is None:
            return
        spec, needs = self.opened.spec, self.opened.preprocess
        yield f"dialect       {self.opened.dialect.name}"
        listed = "" if spec.name in VARIANTS else " (no variant of the zoo)"
        yield f"architecture  {spec.name}{listed}, {self.parameters:,} parameters"
        for name, value in _facts(spec):
            yield f"{name:<14}{value}"
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (needs.mean, needs.std))
        resize = "squash to" if needs.crop_mode == "squash" else "short side to"
        yield (
            f"preprocess    {resize} size / {needs.crop_ratio:g}, {needs.interpolation}; "
            f"mean {mean}; std {std}"
        )
        labels = self.opened.labels
        if labels:
            few = ", ".join(labels[:4]) + (", …" if len(labels) > 4 else "")
            yield f"labels        {len(labels)}: {few}"
        else:
            yield "labels        none in the file"
        dropped = self.opened.dropped
        if dropped:
            few = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
            yield f"left out      {len(dropped)} tensors: {few}"

    def tensor_lines(self) -> Iterator[str]:
        """Yield a line for each tensor: name there, shape, type, name here."""
        wide = max((len(row.theirs) for row in self.tensors), default=0)
        shapes = [" x ".join(map(str, row.shape)) or "scalar" for row in self.tensors]
        middle = max(map(len, shapes), default=0)
        for row, shape in zip(self.tensors, shapes, strict=True):
            ours = row.ours or "-"
            yield f"{row.theirs:<{wide}}  {shape:>{middle}}  {row.dtype:<8}  {ours}"

    @property
    def parameters(self) -> int:
        """Numbers that the model takes from the file."""
        opened = self.opened
        return sum(math.prod(mapped.shape) for mapped in opened.ours.values()) if opened else 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        opened = self.opened
        return {
            "file": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "notes": list(self.notes),
            "error": self.error,
            "dialect": opened.dialect.name if opened else None,
            "parameters": self.parameters,
            "spec": opened.spec.to_dict() if opened else None,
            "preprocess": opened.preprocess.model_dump(mode="json") if opened else None,
            "labels": list(opened.labels) if opened and opened.labels else None,
            "tensors": [dataclasses.asdict(row) for row in self.tensors],
        }


def show_weights(
    path: str | Path, *, num_heads: int | None = None, ignore: Sequence[str] = ()
) -> Shown:
    """Look into a weights file without reading its tensors.

    A file of tensors that make no Vision Transformer is shown as well, with the reason.

    Args:
      path: anything `load_model` takes.
      num_heads: see `load_model`.
      ignore: see `load_model`.
    Raises: WeightsError or CheckpointError if there is no file, or it is of no known format.
    """
    file = open_tensors(find_weights(path)[-1])
    opened, error = None, None
    try:
        opened = open_weights(path, num_heads=num_heads, ignore=ignore)
    except WeightsError as problem:
        error = str(problem)
    ours = (
        {name: ours for ours, mapped in opened.ours.items() for name in mapped.theirs}
        if opened
        else {}
    )
    rows = tuple(
        TensorRow(name, ours.get(name, ""), stored.shape, _short(stored.dtype))
        for name, stored in file.tensors.items()
    )
    size = file.path.stat().st_size
    return Shown(file.path, file.format, size, rows, file.notes, opened, error)


def _facts(spec: ViTSpec) -> Iterator[tuple[str, str]]:
    height, width = spec.image_size
    rows, columns = spec.grid_hw
    stem = f"{spec.stem} stem, " if spec.stem != "patch" else ""
    channels = f", {spec.in_channels} channels" if spec.in_channels != 3 else ""
    yield (
        "input",
        f"{height}x{width} px{channels}, {stem}{rows}x{columns} patches of {spec.patch_size}",
    )
    yield (
        "blocks",
        f"{spec.depth} of width {spec.width}, {spec.num_heads} heads, MLP {spec.mlp_dim}, "
        f"{spec.gelu} GELU, epsilon {spec.norm_eps:g}"
        + (", LayerScale" if spec.layer_scale_init is not None else "")
        + ("" if spec.qkv_bias else ", no query, key and value bias"),
    )
    tokens = ["class token"] if spec.class_token else []
    tokens += [f"{spec.num_registers} registers"] if spec.num_registers else []
    positions = {"learned": "learned", "learned_grid": "learned, patches only"}
    kind = positions.get(spec.pos_embed, "fixed sines and cosines")
    yield "tokens", f"{', '.join([*tokens, 'patches'])}; positions {kind}"
    representation = spec.representation_size
    layer = f", tanh layer of {representation}" if representation else ""
    classes = f"{spec.num_classes} classes" if spec.num_classes else "no head: gives features"
    yield "head", f"{spec.pool}{layer}, {classes}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
