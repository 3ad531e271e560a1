"""From one system's weights to another's, proven before it is called done."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vitbase.config.preprocess import describe_differences
from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.weights.load import (
    LoadedModel,
    OpenedWeights,
    fill_model,
    load_model,
    open_weights,
)
from vitbase.weights.origins.dialect import COMPUTED, Code, Dialect
from vitbase.weights.save import choose_dialect, find_tables, save_weights, written_weights

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest output, that rounding may explain."""

_IMAGES, _SEED = 4, 0


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was written, and how its outputs compare with the original's.

    Attributes:
      loaded: the original.
      path: what was written.
      dialect: in which dialect.
      tensors: how many.
      difference: largest absolute difference of logits and features on random images.
      opened_in: what has opened it by the program that it carries, with version; None: nothing.
      changed: (what, before, after) of what the other system computes otherwise.
      notes: what the other system must be told, because files of its kind do not say it.
    """

    loaded: LoadedModel
    path: Path
    dialect: str
    tensors: int
    difference: float
    opened_in: str | None
    changed: tuple[tuple[str, object, object], ...]
    notes: tuple[str, ...]


def convert_weights(
    source: str | Path,
    path: str | Path,
    *,
    dialect: str,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
    allow: Sequence[str] = (),
) -> Conversion:
    """Write weights of any origin in another dialect, open the result again, and compare outputs.

    The result is opened as the other system would, with what that computes. Nothing is left at
    `path` unless the comparison holds.

    Args:
      source: anything `load_model` takes.
      path: where to; must not exist yet. See `save_weights` for suffixes.
      dialect: see `save_weights`.
      num_heads: see `load_model`.
      image_size: (height, width) that it was trained on, where it is no square and not told.
      ignore: see `load_model`.
      prefix: see `load_model`.
      allow: "gelu", "resnet_form" or "norm_eps" accepts the other system's; the difference is
        then reported.
    Raises: WeightsError if the source is unreadable, the dialect cannot express it, or outputs
      differ by more than rounding.
    """
    path = Path(path)
    for name in allow:
        if name not in COMPUTED:
            raise WeightsError(
                f"'{name}' cannot be allowed to change; only {', '.join(COMPUTED)} can."
            )
    if os.path.lexists(path):  # unlike Path.exists, no error where a name is too long
        raise WeightsError(f"{path} exists already. Choose another name, or remove it.")
    find_tables(dialect, path.suffix)  # mistakes that need no reading first
    loaded = load_model(
        source, num_heads=num_heads, trained_size=image_size, ignore=ignore, prefix=prefix
    )
    table = choose_dialect(dialect, loaded.spec, path.suffix, allow)  # before anything is written
    with written_weights(path) as writing:
        save_weights(
            loaded.model,
            writing,
            dialect=dialect,
            preprocess=loaded.preprocess,
            labels=loaded.labels,
            allow=allow,
        )
        return _compare(loaded, writing, path, table, allow)


def _compare(
    loaded: LoadedModel, written: Path, path: Path, table: Dialect, allow: Sequence[str]
) -> Conversion:
    spec = loaded.spec
    opened = open_weights(
        written,
        num_heads=spec.num_heads,
        trained_size=spec.image_size,
        # Where they are how its files tell what the tensors do not; see `_notes`.
        trust_metadata=bool(table.said_in(path.suffix)),
    )
    other, _ = fill_model(opened, opened.spec)
    difference, scale = _largest_difference(loaded.model, other)
    changed = tuple(
        (field, getattr(spec, field), getattr(other.spec, field))
        for field in COMPUTED
        if getattr(spec, field) != getattr(other.spec, field)
        and (field != "resnet_form" or spec.stem == "resnet")
    )
    excused = any(field in allow for field, _, _ in changed)
    # Not "more than": a difference that is not a number must not pass.
    if not (difference <= TOLERANCE * max(1.0, scale)) and not excused:
        reasons = ", ".join(f"{field} {before} became {after}" for field, before, after in changed)
        names = " ".join(field for field, _, _ in changed)
        raise WeightsError(
            f"{path} was not written: read back as {table.name} computes, outputs differ by up to "
            f"{difference:.2g} on random images"
            + (f" ({reasons}). Accept it with --allow {names}." if reasons else ".")
        )
    code = None if path.suffix else table.code(spec)
    by_code = None if code is None else _open_by_code(loaded.model, written, path, code)
    notes = [*_notes(spec, path, table), *_note_losses(loaded, opened, path)]
    if code is not None and by_code is None:
        notes.append(
            f"{code.library} is not installed here: nobody has tried whether it opens the folder."
        )
    opened_in, other_difference = by_code or (None, 0.0)
    return Conversion(
        loaded,
        path,
        table.name,
        len(opened.file.tensors),
        max(difference, other_difference),
        opened_in,
        changed,
        tuple(notes),
    )


def _open_by_code(
    model: VisionTransformer, written: Path, path: Path, code: Code
) -> tuple[str, float] | None:
    """Open a folder as the library does that the program in it is for.

    Returns: its name and version, and the largest difference of logits; None if it is not here.
    Raises: WeightsError if it does not open the folder, or computes otherwise.
    """
    try:
        compute, version = code.open(written)
    except ImportError:
        return None
    except WeightsError as error:
        raise WeightsError(f"{path} was not written: {error}.") from None
    images_BCHW = _draw_images(model.spec)
    with torch.inference_mode():
        ours_BC, theirs_BC = model.eval()(images_BCHW), compute(images_BCHW)
    difference = float((ours_BC - theirs_BC).abs().max())
    if not (difference <= TOLERANCE * max(1.0, float(ours_BC.abs().max()))):
        raise WeightsError(
            f"{path} was not written: {code.library} {version} computes otherwise; outputs differ "
            f"by up to {difference:.2g} on random images."
        )
    return f"{code.library} {version}", difference


def _notes(spec: ViTSpec, path: Path, table: Dialect) -> Iterator[str]:
    """Say what to tell a system whose files hold names and numbers only."""
    arguments = table.arguments(spec) if path.suffix else ()
    if arguments:
        yield f"Tell {table.name} when it builds the model: {', '.join(arguments)}."


def _note_losses(loaded: LoadedModel, opened: OpenedWeights, path: Path) -> Iterator[str]:
    """Say what travels with the original, and not with what was written."""
    lost = [f"{len(loaded.labels)} labels"] if loaded.labels and not opened.labels else []
    lost += [
        f"{name} {theirs} (read back as {ours})"
        for name, theirs, ours in describe_differences(loaded.preprocess, opened.preprocess)
    ]
    if lost:
        yield f"{path.name} has no place for what goes with the weights: {', '.join(lost)}."


def _largest_difference(first: VisionTransformer, second: VisionTransformer) -> tuple[float, float]:
    """Return the largest difference of features and logits, and the largest of them."""
    difference, scale = 0.0, 0.0
    images_BCHW = _draw_images(first.spec)
    with torch.inference_mode():
        for one_BC, other_BC in (
            # A head of zeros would hide every difference of the features.
            (
                first.eval().forward_features(images_BCHW),
                second.eval().forward_features(images_BCHW),
            ),
            (first(images_BCHW), second(images_BCHW)),
        ):
            difference = max(difference, float((one_BC - other_BC).abs().max()))
            scale = max(scale, float(one_BC.abs().max()))
            if not torch.isfinite(one_BC - other_BC).all():
                difference = float("nan")
                break
    return difference, scale


def _draw_images(spec: ViTSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(_IMAGES, spec.in_channels, *spec.image_size, generator=generator)
