"""Weights file -> model: the architecture is read off the file, and what was done is reported."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.layers import DepthRule, resample_pos_embed
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import allocate, build_unfilled
from vitbase.weights.architecture import read_preprocess_of, read_sidecar, read_spec
from vitbase.weights.files.open import open_tensors
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.find import find_weights
from vitbase.weights.networks import choose_network
from vitbase.weights.origins.dialect import (
    HEAD,
    Dialect,
    Mapped,
    find_dialect,
    their_name,
    to_ours,
)
from vitbase.weights.origins.pretraining import told_by_names
from vitbase.weights.origins.registry import DIALECT_NAMES, DIALECTS
from vitbase.weights.origins.sidecar import Sidecar
from vitbase.weights.origins.vitbase import METADATA_KEY
from vitbase.weights.strangers import explain_foreign, explain_unknown, leave_out


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading did, by our names of tensors; those dropped have the file's names.

    Attributes:
      path: the file.
      dialect: whose names it has.
      mapped: taken from the file.
      resized: position embeddings resampled to another image size.
      dropped: in the file, and not used.
      initialised: not taken from the file, but set to zero.
      notes: how the file was opened, such as which entry of it.
    """

    path: Path
    dialect: str
    mapped: tuple[str, ...]
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield what a log should say of it."""
        notes = "".join(f"; {note}" for note in self.notes)
        yield f"Weights from {self.path} ({self.dialect}): {len(self.mapped)} tensors{notes}"
        if self.resized:
            yield f"Resized to this image size: {', '.join(self.resized)}"
        if self.initialised:
            yield f"Set to zero, to be learned anew: {', '.join(self.initialised)}"
        if self.dropped:
            few = ", ".join(self.dropped[:4]) + (", …" if len(self.dropped) > 4 else "")
            yield f"Not of the network, left out: {len(self.dropped)} tensors ({few})"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, and what came with its weights; labels are None where the file does not tell."""

    path: Path
    model: VisionTransformer
    spec: ViTSpec
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    report: LoadReport

    def check_head(self) -> None:
        """Raises: WeightsError if the model tells no classes apart."""
        if not self.spec.num_classes:
            raise WeightsError(
                f"{self.path} has no head: it gives features, and tells no classes apart. "
                f"Fine-tune it on images of your classes (vitbase train finetune --checkpoint_path "
                f"{self.path}), or learn a head alone (vitbase train linear_probe)."
            )


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
    """A weights file understood, but not yet read: whose it is, and what model it makes."""

    file: TensorFile
    dialect: Dialect
    ours: dict[str, Mapped]
    dropped: tuple[str, ...]
    sidecar: Sidecar
    spec: ViTSpec
    preprocess: Preprocess

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.sidecar.labels


def load_model(
    path: str | Path,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    trained_size: tuple[int, int] | None = None,
    labels: tuple[str, ...] | None = None,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    stochastic_depth_rule: DepthRule | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
) -> LoadedModel:
    """Load a model from a run, a checkpoint, or a weights file of any known origin.

    Args:
      path: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      num_heads: needed where the file does not tell and heads are not 64 wide; else it goes before
        what the file tells, and the report says so.
      num_classes: if it differs from the file's, the head is set to zero, to be learned anew.
      image_size: (height, width); position embeddings are resampled to it.
      trained_size: (height, width) that they were trained on, where it is no square and the file
        does not tell; without it, image_size is tried.
      labels: class names of the task; a head for other names is set to zero as well.
      dropout: rate for training on, instead of the file's.
      stochastic_depth: likewise.
      stochastic_depth_rule: likewise.
      ignore: names, or patterns such as "aux_head.*", of tensors in the file to leave out.
      prefix: of a file with several networks, what the names of the wanted one begin with; without
        it the average, or the teacher, is taken, and the report says so.
    Raises: WeightsError or CheckpointError, naming the file and the first offending tensor.
    """
    opened = open_weights(
        path,
        num_heads=num_heads,
        image_size=image_size,
        trained_size=trained_size,
        ignore=ignore,
        prefix=prefix,
        new_head=num_classes is not None,
    )
    changes = {
        "num_classes": num_classes,
        "image_size": image_size,
        "dropout": dropout,
        "stochastic_depth": stochastic_depth,
        "stochastic_depth_rule": stochastic_depth_rule,
    }
    return load_opened(opened, labels, **{k: v for k, v in changes.items() if v is not None})


def load_opened(
    opened: OpenedWeights, labels: tuple[str, ...] | None = None, **changes: Any
) -> LoadedModel:
    """Load the model of an opened file.

    Args:
      labels: see :func:`load_model`.
      changes: fields of the specification that the model is to have instead of the file's.
    Raises: as :func:`load_model`.
    """
    spec = opened.spec.replace(**changes)
    renamed = labels is not None and opened.labels is not None and labels != opened.labels
    asked = "num_classes" in changes
    new_head = asked and (spec.num_classes != opened.spec.num_classes or renamed)
    initialised = HEAD if new_head and spec.num_classes else ()
    model, resized = fill_model(opened, spec, initialised)
    report = LoadReport(
        opened.path,
        opened.dialect.name,
        tuple(name for name in opened.ours if name not in HEAD or not new_head),
        resized,
        opened.dropped,
        initialised,
        opened.file.notes,
    )
    kept_labels = labels if new_head else opened.labels
    height, width = spec.image_size
    preprocess = opened.preprocess.model_copy(update={"height": height, "width": width})
    return LoadedModel(opened.path, model, spec, preprocess, kept_labels, report)


def read_preprocess(
    path: str | Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
) -> Preprocess:
    """Read what images must become for the weights of a file, without building the model.

    Raises: WeightsError or CheckpointError, as :func:`load_model`.
    """
    opened = open_weights(
        path,
        num_heads=num_heads,
        image_size=image_size,
        ignore=ignore,
        prefix=prefix,
        new_head=True,  # no part of it is asked about
    )
    return opened.preprocess


def open_weights(
    path: str | Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    trained_size: tuple[int, int] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
    new_head: bool = False,
    trust_metadata: bool = True,
) -> OpenedWeights:
    """Understand a weights file without reading its tensors.

    Args:
      new_head: whether a head that is not one linear layer may be left out, for a new one.
      trust_metadata: False opens a file as another system would, by its tensors alone.
    Raises: WeightsError or CheckpointError, as :func:`load_model`.
    """
    file = open_tensors(find_weights(path))
    if not trust_metadata:
        metadata = {k: v for k, v in file.metadata.items() if k != METADATA_KEY}
        file = dataclasses.replace(file, metadata=metadata)
    return understand(file, num_heads, image_size, trained_size, ignore, prefix, new_head)


def understand(
    file: TensorFile,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    trained_size: tuple[int, int] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
    new_head: bool = False,
) -> OpenedWeights:
    """Find out whose the tensors of a file are, and what model they make.

    Raises: WeightsError, as :func:`load_model`.
    """
    with _naming(file.path):
        file, ignored = _ignore(file, ignore)
        chosen = choose_network(file, prefix)
        file, inside = _ignore(chosen.file, ignore)
        outside, beside = chosen.outside, [*chosen.others, *ignored, *inside]
        dialect = find_dialect(DIALECTS, file.tensors)
        if dialect is None:
            raise WeightsError(explain_foreign(file.tensors, DIALECT_NAMES))
        ours, skipped, unknown = to_ours(dialect, file.tensors)
        strange = {**{name: name for name in unknown}, **outside}
        left, strange = leave_out(strange, chosen.pretraining, new_head)
        if strange:
            raise WeightsError(explain_unknown(strange, outside, chosen.prefix))
        sidecar = read_sidecar(file, dialect)
        if chosen.pretraining:
            sidecar = told_by_names(sidecar, chosen.prefix, ours)
        spec = read_spec(dialect, ours, sidecar, num_heads, trained_size, image_size)
        if spec.depth > len(ours):  # each block has several: do not build what cannot be filled
            raise WeightsError(
                f"its metadata claim {spec.depth} blocks, but it has {len(ours)} tensors"
            )
        preprocess = read_preprocess_of(dialect, sidecar, spec)
        labels = sidecar.labels or ()
        if len(labels) > spec.num_classes:
            raise WeightsError(f"it has {len(labels)} labels for {spec.num_classes} classes")
        notes = (*file.notes, *_note_changes(ours, sidecar, num_heads))
        file = dataclasses.replace(file, notes=notes)
        return OpenedWeights(
            file, dialect, ours, (*skipped, *left, *beside), sidecar, spec, preprocess
        )


def _ignore(file: TensorFile, patterns: Sequence[str]) -> tuple[TensorFile, list[str]]:
    """Leave out what a user names. Returns: the rest, and the names of what is left out."""
    out = {name: None for name in file.tensors if any(fnmatchcase(name, p) for p in patterns)}
    rest = {name: tensor for name, tensor in file.tensors.items() if name not in out}
    return dataclasses.replace(file, tensors=rest), list(out)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before what is said of a tensor without it."""
    try:
        yield
    except WeightsError as error:
        text = str(error)
        raise WeightsError(text if str(path) in text else f"{path}: {text}.") from None


def _note_changes(
    ours: Mapping[str, Mapped], sidecar: Sidecar, num_heads: int | None
) -> Iterator[str]:
    """Yield what is not taken as the file has it."""
    types = {part.dtype: None for mapped in ours.values() for part in mapped.parts}
    names = [str(dtype).removeprefix("torch.") for dtype in types if dtype != torch.float32]
    if names:
        yield f"{', '.join(names)} became float32"
    theirs = sidecar.spec.num_heads if sidecar.spec else sidecar.num_heads
    if None not in (theirs, num_heads) and theirs != num_heads:
        yield f"num_heads {num_heads} as asked, not {theirs} as the file says"


def fill_model(
    opened: OpenedWeights, spec: ViTSpec, initialised: tuple[str, ...] = ()
) -> tuple[VisionTransformer, tuple[str, ...]]:
    """Build a model of a specification and read a file's tensors into it, one at a time.

    Args:
      spec: as the file's, but for image size, classes and regularisation.
      initialised: parameters that are set to zero instead.
    Returns: the model, and the names of what was resampled.
    Raises: WeightsError if anything is missing, left over, of another shape, or not a number.
    """
    model = build_unfilled(spec)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    resampled = spec.pos_embed != "sincos2d" and opened.spec.grid_hw != spec.grid_hw
    resized = ("pos_embed",) if resampled else ()
    check_shapes(opened, expected, initialised, resized)
    allocate(model)  # not before the shapes are known to be those of the file
    parameters = model.state_dict()
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in initialised:
                parameter.zero_()
                continue
            value = opened.ours[name].read()
            if name in resized:
                value = resample_pos_embed(
                    value.float(),
                    spec.grid_hw,
                    num_prefix=spec.pos_embed_prefix,
                    old_grid_hw=opened.spec.grid_hw,
                )
            parameter.copy_(value)
            if not parameter.isfinite().all():
                raise WeightsError(
                    f"{opened.path}: tensor '{opened.ours[name].find_not_finite()}' holds values "
                    f"that are not finite (NaN or infinite) in float32."
                )
    return model, resized


def check_shapes(
    opened: OpenedWeights,
    expected: dict[str, tuple[int, ...]],
    initialised: tuple[str, ...] = (),
    resized: tuple[str, ...] = (),
) -> None:
    """Compare the shapes of a file with those of a model.

    Raises: WeightsError naming the first tensor that is missing, left over, or of another shape.
    """
    name = opened.spec.name
    if "pos_embed" in resized:  # it is of the file's own grid
        positions = opened.spec.pos_embed_prefix + math.prod(opened.spec.grid_hw)
        expected = {**expected, "pos_embed": (1, positions, opened.spec.width)}
    for ours, mapped in opened.ours.items():
        if ours in initialised:
            continue
        theirs = mapped.theirs[0]
        if ours not in expected:
            if ours in HEAD:
                continue  # a head of which nothing is wanted
            raise WeightsError(f"{opened.path}: tensor '{theirs}' has no place in {name}.")
        if mapped.shape != expected[ours]:
            raise WeightsError(
                f"{opened.path}: tensor '{theirs}' has shape {mapped.shape}, but {name} needs "
                f"{expected[ours]}."
            )
    for ours in expected:
        if ours not in opened.ours and ours not in initialised:
            raise WeightsError(
                f"{opened.path}: tensor '{their_name(opened.dialect, ours)}' is missing."
            )
