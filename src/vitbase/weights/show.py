"""A weights file in words: whose it is, what model it makes, and its tensors one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vitbase.config.preprocess import Preprocess
from vitbase.console import printable
from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import VARIANTS, build_unfilled
from vitbase.weights.files.open import open_tensors
from vitbase.weights.find import list_weights, verified
from vitbase.weights.load import OpenedWeights, check_shapes, understand


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One tensor of a file: its name there, the name here (empty if left out), shape and type."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a weights file is.

    Attributes:
      path: the file; of a run, its newest checkpoint's.
      format: of the file.
      bytes: its size; of a sharded checkpoint, all of it.
      tensors: those of the network, or every one of the file where it holds none.
      notes: how the file was opened.
      opened: None where its tensors make no Vision Transformer.
      assumed: what the file does not tell, and is taken as usual for its origin and sizes.
      error: why loading it would fail, or None.
    """

    path: Path
    format: str
    bytes: int
    tensors: tuple[TensorRow, ...]
    notes: tuple[str, ...]
    opened: OpenedWeights | None
    assumed: tuple[str, ...]
    error: str | None

    def lines(self) -> Iterator[str]:
        """Yield a line for each fact."""
        yield f"file          {self.path}"
        types = ", ".join(dict.fromkeys(row.dtype for row in self.tensors))
        kind = f"{self.format}, {_size(self.bytes)}, {_count(len(self.tensors), 'tensor')}"
        yield f"format        {'; '.join((f'{kind} of {types}' if types else kind, *self.notes))}"
        if self.opened is None:
            return
        spec = self.opened.spec
        yield f"dialect       {self.opened.dialect.name}"
        listed = "" if spec.name in VARIANTS else " (no variant of the zoo)"
        yield f"architecture  {spec.name}{listed}, {self.parameters:,} parameters"
        for name, value in _facts(spec):
            yield f"{name:<14}{value}"
        yield f"preprocess    {_describe(self.opened.preprocess)}"
        labels = self.opened.labels
        if labels:
            yield f"labels        {len(labels)}: {_few(labels, 4)}"
        else:
            yield "labels        none in the file"
        if self.assumed:
            origin = self.opened.dialect.name
            yield f"assumed       {', '.join(self.assumed)}: not in the file, as usual for {origin}"
        dropped = self.opened.dropped
        if dropped:
            yield f"left out      {_count(len(dropped), 'tensor')}: {_few(dropped, 3)}"

    def tensor_lines(self) -> Iterator[str]:
        """Yield a line for each tensor: name there, shape, type, name here."""
        wide = max((len(row.theirs) for row in self.tensors), default=0)
        shapes = [" x ".join(map(str, row.shape)) or "scalar" for row in self.tensors]
        middle = max(map(len, shapes), default=0)
        for row, shape in zip(self.tensors, shapes, strict=True):
            yield f"{row.theirs:<{wide}}  {shape:>{middle}}  {row.dtype:<8}  {row.ours or '-'}"

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
            "assumed": list(self.assumed),
            "tensors": [dataclasses.asdict(row) for row in self.tensors],
        }


def show_weights(
    path: str | Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
) -> Shown:
    """Look into a weights file without reading its tensors.

    A file of tensors that make no Vision Transformer is shown as well, with the reason.

    Args:
      path: anything `load_model` takes.
      num_heads: see `load_model`.
      image_size: (height, width) that it was trained on, where it is no square and not told.
      ignore: see `load_model`.
      prefix: see `load_model`.
    Raises: WeightsError or CheckpointError if there is no file, or it is of no known format.
    """
    places = list_weights(path)
    file = open_tensors(verified(places[-1]))
    opened, assumed, error = None, tuple[str, ...](), None
    try:
        opened = understand(file, num_heads, trained_size=image_size, ignore=ignore, prefix=prefix)
        file = opened.file
        assumed = tuple(_find_assumed(opened, num_heads, image_size))
        state = build_unfilled(opened.spec).state_dict()
        check_shapes(opened, {name: tuple(value.shape) for name, value in state.items()})
    except WeightsError as problem:
        error = str(problem)
    ours = (
        {name: ours for ours, mapped in opened.ours.items() for name in mapped.theirs}
        if opened
        else {}
    )
    notes = file.notes
    if len(places) > 1:
        notes = (*notes, f"the last of {len(places)} in {path}")
    rows = tuple(
        TensorRow(name, ours.get(name, ""), tensor.shape, _short(tensor.dtype))
        for name, tensor in file.tensors.items()
    )
    size = sum(part.stat().st_size for part in file.parts or [file.path])
    return Shown(file.path, file.format, size, rows, notes, opened, assumed, error)


def _find_assumed(
    opened: OpenedWeights, num_heads: int | None, image_size: tuple[int, int] | None
) -> Iterator[str]:
    sidecar = opened.sidecar
    if sidecar.spec is None:
        query = opened.ours.get("blocks.0.attn.qkv.weight")
        kept = query.num_heads if query else None
        if not (kept or num_heads or sidecar.num_heads):
            yield "num_heads"
        for field, value in (
            ("gelu", sidecar.gelu),
            ("norm_eps", sidecar.norm_eps),
            ("image_size", sidecar.image_size or (image_size == opened.spec.image_size) or None),
        ):
            if value is None and field not in opened.dialect.fixed:
                yield field
    if not sidecar.preprocess:
        yield "preprocess"


def _facts(spec: ViTSpec) -> Iterator[tuple[str, str]]:
    height, width = spec.image_size
    rows, columns = spec.grid_hw
    stem = f"{spec.stem} stem, " if spec.stem != "patch" else ""
    if spec.stem == "resnet":
        units = "+".join(map(str, spec.resnet_layers)) or "no"
        stem = f"resnet stem of {units} units ({spec.resnet_form} form), "
    channels = f", {_count(spec.in_channels, 'channel')}" if spec.in_channels != 3 else ""
    yield (
        "input",
        f"{height}x{width} px{channels}, {stem}{rows}x{columns} patches of {spec.patch_size}",
    )
    yield (
        "blocks",
        f"{spec.depth} of width {spec.width}, {_count(spec.num_heads, 'head')}, "
        f"MLP {spec.mlp_dim}, {spec.gelu} GELU, epsilon {spec.norm_eps:g}"
        + (", LayerScale" if spec.layer_scale_init is not None else "")
        + ("" if spec.qkv_bias else ", no query, key and value bias"),
    )
    tokens = ["class token"] if spec.class_token else []
    tokens += [_count(spec.num_registers, "register")] if spec.num_registers else []
    positions = {"learned": "learned", "learned_grid": "learned, patches only"}
    kind = positions.get(spec.pos_embed, "fixed sines and cosines")
    yield "tokens", f"{', '.join([*tokens, 'patches'])}; positions {kind}"
    representation = spec.representation_size
    layer = f", tanh layer of {representation}" if representation else ""
    classes = _count(spec.num_classes, "class", "classes") if spec.num_classes else ""
    classes = classes or "no head: gives features"
    yield "head", f"{spec.pool}{layer}, {classes}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _describe(needs: Preprocess) -> str:
    """Say what evaluation does to an image, in pixels; see `Preprocess`."""
    height, width = needs.height, needs.width
    tall, wide = (math.floor(side / needs.crop_ratio + 1e-6) for side in (height, width))
    if needs.crop_mode == "squash":
        steps = f"squash to {tall}x{wide} px"
    elif height == width:
        steps = f"short side to {tall} px"
    else:
        steps = f"cover {tall}x{wide} px"
    if (tall, wide) != (height, width) or needs.crop_mode == "center":
        steps += f", crop {height}x{width}"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (needs.mean, needs.std))
    return f"{steps}, {needs.interpolation}; mean {mean}; std {std}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _few(names: Sequence[str], number: int) -> str:
    return ", ".join(map(printable, names[:number])) + (", …" if len(names) > number else "")
