"""Weights file -> model: the architecture is read off the file, and what was done is reported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from vitbase.errors import WeightsError
from vitbase.model.layers import resample_pos_embed
from vitbase.model.vit import VisionTransformer, ViTSpec
from vitbase.model.zoo import build_model
from vitbase.options import Preprocess, default_preprocess
from vitbase.weights import dialects
from vitbase.weights.checkpoints import find_weights
from vitbase.weights.formats import METADATA_KEY, TensorFile, read_tensors, write_safetensors


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading did: names of tensors mapped, resized, dropped and initialised."""

    path: Path
    dialect: str
    mapped: tuple[str, ...]
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield what a log should say of it."""
        yield f"Weights from {self.path} ({self.dialect}): {len(self.mapped)} tensors"
        if self.resized:
            yield f"Resized to this image size: {', '.join(self.resized)}"
        if self.initialised:
            yield f"Set to zero, to be learned anew: {', '.join(self.initialised)}"
        if self.dropped:
            yield f"Not of the network, left out: {len(self.dropped)} tensors"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, and what came with its weights; labels are None where the file does not tell."""

    path: Path
    model: VisionTransformer
    spec: ViTSpec
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    report: LoadReport


def load_model(
    path: str | Path,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    labels: tuple[str, ...] | None = None,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
) -> LoadedModel:
    """Load a model from a run, a checkpoint, or a weights file.

    Args:
      path: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      num_heads: needed where the file does not tell and heads are not 64 wide.
      num_classes: if it differs from the file's, the head is set to zero, to be learned anew.
      image_size: (height, width); position embeddings are resampled to it.
      labels: class names of the task; a head for other names is set to zero as well.
      dropout: rate for training on, instead of the file's.
      stochastic_depth: likewise.
    Raises: WeightsError or CheckpointError, naming the file and the first offending tensor.
    """
    origin, tensors, dropped = _open(find_weights(path)[-1], num_heads)
    path = origin.path
    spec = origin.spec
    renamed = labels is not None and origin.labels is not None and labels != origin.labels
    new_head = num_classes is not None and (num_classes != spec.num_classes or renamed)
    changes: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": image_size,
        "dropout": dropout,
        "stochastic_depth": stochastic_depth,
    }
    spec = dataclasses.replace(spec, **{k: v for k, v in changes.items() if v is not None})
    model = build_model(spec)
    initialised: tuple[str, ...] = ()
    if new_head:
        initialised = ("head.weight", "head.bias")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in initialised}
    resized = _resample(tensors, origin.spec, model)
    _fill(path, model, tensors, initialised)
    report = LoadReport(path, origin.dialect, tuple(tensors), resized, dropped, initialised)
    kept_labels = labels if new_head else origin.labels
    return LoadedModel(path, model, spec, origin.preprocess, kept_labels, report)


def read_preprocess(path: str | Path) -> Preprocess:
    """Read what images must become for the weights of a file, without building the model.

    Raises: WeightsError or CheckpointError, as :func:`load_model`.
    """
    return _open(find_weights(path)[-1], None)[0].preprocess


def save_model(
    model: VisionTransformer,
    path: Path,
    *,
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] | None = None,
) -> None:
    """Write a model's weights with its spec, preprocessing and labels: the file stands alone.

    The bytes are a function of these alone; no time, host or path is in them.
    """
    metadata = {
        "spec": model.spec.to_dict(),
        "preprocess": preprocess.model_dump(mode="json") if preprocess else None,
        "labels": list(labels) if labels else None,
    }
    write_safetensors(path, model.state_dict(), json.dumps(metadata, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a file says of itself; preprocessing it does not tell is its origin's."""

    path: Path
    dialect: str
    spec: ViTSpec
    preprocess: Preprocess
    labels: tuple[str, ...] | None


def _open(
    path: Path, num_heads: int | None
) -> tuple[_Origin, dict[str, torch.Tensor], tuple[str, ...]]:
    """Read a weights file: what it is, its tensors under our names, and the names left out."""
    file = read_tensors(path)
    if file.format != "mindspore":
        return _read_own(file), file.tensors, ()
    network, dropped = dialects.drop_mindspore_state(file.tensors)
    tensors = dialects.to_ours(path, network, dialects.MINDSPORE)
    spec = _read_mindspore_spec(path, tensors, num_heads)
    origin = _Origin(path, "mindspore", spec, _default_preprocess(spec), None)
    return origin, tensors, dropped


def _default_preprocess(spec: ViTSpec) -> Preprocess:
    return default_preprocess(*spec.image_size, 1 if spec.in_channels == 1 else 3)


def _read_own(file: TensorFile) -> _Origin:
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            f"{file.path} was not written by vitbase: its metadata hold no architecture."
        )
    try:
        metadata = json.loads(text)
        spec = ViTSpec.from_dict(metadata["spec"])
        preprocess = metadata["preprocess"]
        labels = metadata["labels"]
        return _Origin(
            file.path,
            "vitbase",
            spec,
            Preprocess.model_validate(preprocess) if preprocess else _default_preprocess(spec),
            tuple(labels) if labels else None,
        )
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise WeightsError(f"{file.path} has damaged metadata: {error}") from None


def _read_mindspore_spec(
    path: Path, tensors: dict[str, torch.Tensor], num_heads: int | None
) -> ViTSpec:
    """Read the architecture off the shapes. GELU and epsilon are those of the origin."""
    patch = tensors["stem.proj.weight"]
    tokens, width = tensors["pos_embed"].shape[1:]
    side = round((tokens - 1) ** 0.5)
    if side * side != tokens - 1:
        raise WeightsError(f"{path}: 'pos_embed' of {tokens} tokens is no square grid and a class.")
    depth = sum(name.endswith("attn.proj.weight") for name in tensors)
    heads = num_heads or width // 64
    if heads == 0 or width % heads:
        raise WeightsError(
            f"{path}: the number of heads cannot be read off these weights (width {width}); "
            f"give num_heads."
        )
    return ViTSpec(
        name="mindspore",
        image_size=(side * patch.shape[2], side * patch.shape[3]),
        in_channels=patch.shape[1],
        patch_size=patch.shape[2],
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_classes=tensors["head.weight"].shape[0],
        gelu="tanh",
        norm_eps=1e-6,
    )


def _resample(
    tensors: dict[str, torch.Tensor], stored: ViTSpec, model: VisionTransformer
) -> tuple[str, ...]:
    """Resize learned position embeddings, in `tensors`, to the model's grid."""
    position = tensors.get("pos_embed")
    if position is None or stored.grid_hw == model.spec.grid_hw:
        return ()
    tensors["pos_embed"] = resample_pos_embed(
        position, model.spec.grid_hw, num_prefix=stored.pos_embed_prefix, old_grid_hw=stored.grid_hw
    )
    return ("pos_embed",)


def _fill(
    path: Path,
    model: VisionTransformer,
    tensors: dict[str, torch.Tensor],
    initialised: tuple[str, ...],
) -> None:
    """Copy tensors into the model; nothing may be missing, left over, or of another shape."""
    parameters = model.state_dict()
    for name, value in tensors.items():
        if name not in parameters:
            raise WeightsError(f"{path}: tensor '{name}' has no place in {model.spec.name}.")
        if value.shape != parameters[name].shape:
            raise WeightsError(
                f"{path}: tensor '{name}' has shape {tuple(value.shape)}, but {model.spec.name} "
                f"needs {tuple(parameters[name].shape)}."
            )
    missing = [name for name in parameters if name not in tensors and name not in initialised]
    if missing:
        raise WeightsError(f"{path}: tensor '{missing[0]}' of {model.spec.name} is missing.")
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)
