"""Model -> weights file, in any dialect that can express it; whole, or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError, nearest
from vitbase.files import final_name, json_line, written_whole
from vitbase.model.spec import PosEmbed, ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.weights.files.mindspore import stream_mindspore
from vitbase.weights.files.npz import write_npz
from vitbase.weights.files.safetensors import stream_safetensors, write_safetensors
from vitbase.weights.files.torch_files import write_torch
from vitbase.weights.origins.dialect import COMPUTED, HEAD, Dialect, order_of, to_theirs
from vitbase.weights.origins.registry import DIALECT_NAMES, DIALECTS
from vitbase.weights.origins.vitbase import write_metadata


def save_weights(
    model: VisionTransformer,
    path: str | Path,
    *,
    dialect: str = "vitbase",
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] | None = None,
    allow: Sequence[str] = (),
) -> None:
    """Write a model's weights under the names of another system, or of this one.

    A safetensors file also holds spec, preprocessing and labels, so it stands alone; so does a
    folder. The bytes are a function of these alone; no time, host or path
    is in them.

    Args:
      path: a file whose suffix is one of the dialect's: `.ckpt` for MindSpore, `.npz` for Google's,
        `.safetensors` or `.pth` for the others; a folder for "hf", and also for "timm" and
        "vitbase".
      dialect: vitbase, mindspore, google, timm, hf, torchvision or dinov2.
      preprocess: what images must become for this model.
      labels: class names.
      allow: "gelu", or "resnet_form", writes although the dialect computes another form of it.
    Raises: WeightsError if the dialect cannot express the model, or the place cannot be written.
    """
    path = Path(path)
    table = choose_dialect(dialect, model.spec, path.suffix, allow)
    state, spec = expressible_state(model, table)
    tensors = rename(table, state, spec)
    with written_weights(path) as place:
        if path.suffix == "":
            if len(labels or ()) > spec.num_classes:
                raise WeightsError(
                    f"There are {len(labels or ())} labels for {spec.num_classes} classes."
                )
            told = write_metadata(spec, preprocess, labels) if table.metadata_in_folders else {}
            beside = table.write_sidecar(spec, preprocess, labels)
            _write_folder(place, tensors, {"format": "pt", **told}, beside)
        elif path.suffix == ".npz":
            write_npz(place, tensors)
        elif path.suffix in {".ckpt", ".safetensors"}:
            with place.open("wb") as file:
                _stream(file, path.suffix, tensors, spec, preprocess, labels)
        else:
            write_torch(place, tensors)


def stream_weights(
    file: BinaryIO,
    model: VisionTransformer,
    suffix: str,
    dialect: str = "vitbase",
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] | None = None,
) -> None:
    """Write what :func:`save_weights` does into an open file, of suffix `.safetensors` or `.ckpt`.

    Raises: WeightsError if the dialect cannot express the model; OSError of the file.
    """
    state, spec = expressible_state(model, table := choose_dialect(dialect, model.spec, suffix))
    _stream(file, suffix, rename(table, state, spec), spec, preprocess, labels)


def _stream(
    file: BinaryIO,
    suffix: str,
    tensors: dict[str, Tensor],
    spec: ViTSpec,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
) -> None:
    if suffix == ".ckpt":
        stream_mindspore(file, tensors)
    else:
        stream_safetensors(file, tensors, write_metadata(spec, preprocess, labels))


def _write_folder(
    folder: Path,
    tensors: dict[str, Tensor],
    metadata: Mapping[str, str],
    files: Mapping[str, dict[str, Any] | str],
) -> None:
    """Write weights and configuration, so that `from_pretrained` or `local-dir:` opens them."""
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors, metadata)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
            continue
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        if not text.replace("\n", "").isprintable():  # names that a terminal obeys, or no UTF-8
            text = json_line(content, indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def find_tables(name: str, suffix: str) -> list[Dialect]:
    """Find the tables of a dialect that has files of a suffix.

    Raises: WeightsError naming the dialects, or the suffixes, that there are.
    """
    tables = [table for table in DIALECTS if table.name == name]
    if not tables:
        raise WeightsError(
            f"Unknown dialect '{name}'.{nearest(name, DIALECT_NAMES)} "
            f"There are {', '.join(DIALECT_NAMES)}."
        )
    if suffix not in tables[0].suffixes:
        kinds = ", ".join(known or "a folder, without a suffix" for known in tables[0].suffixes)
        raise WeightsError(
            f"Weights of {name} are written as {kinds}; "
            + (f"not as '{suffix}'." if suffix else "not as a folder.")
        )
    return tables


def choose_dialect(name: str, spec: ViTSpec, suffix: str, allow: Sequence[str] = ()) -> Dialect:
    """Find the table of a dialect that can express an architecture.

    Raises: WeightsError as `find_tables`, or naming what it cannot express.
    """
    tables = find_tables(name, suffix)
    problems = [table.problems(spec, (*allow, *table.said_in(suffix))) for table in tables]
    for table, found in zip(tables, problems, strict=True):
        if not found:
            return table
    fewest = min(problems, key=len)
    fields = [problem.split()[0] for problem in fewest]
    hint = ""
    if set(fields) <= set(COMPUTED):
        hint = f" Outputs would change slightly; allow {', '.join(fields)} to write it all the same"
        says = any(field in tables[0].says for field in fields)
        hint += ", or write a folder or .safetensors, which can say which." if says else "."
    raise WeightsError(f"{name} cannot express {spec.name} with {', '.join(fewest)}.{hint}")


def expressible_state(
    model: VisionTransformer, dialect: Dialect
) -> tuple[dict[str, Tensor], ViTSpec]:
    """Return the model's state and specification, its positions as the dialect knows them.

    Fixed positions, and those of a grid alone, are learned ones with zeros for the class token,
    where it knows no others. Outputs are the same, bit for bit.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    state, spec = dialect.express(state, model.spec)
    known = dialect.limits.get("pos_embed", (spec.pos_embed,))
    if spec.pos_embed in known:
        return state, spec
    position = model.pos_embed.detach().cpu()
    if spec.class_token and "learned_grid" not in known:
        position = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    state["pos_embed"] = position
    kind: PosEmbed = "learned_grid" if "learned_grid" in known else "learned"
    return state, spec.replace(pos_embed=kind)


def rename(dialect: Dialect, state: dict[str, Tensor], spec: ViTSpec) -> dict[str, Tensor]:
    """Return a state under the dialect's names, in the order of its own files."""
    prefix = dialect.prefix(spec) if spec.num_classes else ""
    found = []
    for name, value in state.items():
        for theirs, tensor in to_theirs(dialect, name, value, spec.num_heads).items():
            full = theirs if name in HEAD else prefix + theirs
            found.append((order_of(dialect, name, theirs), full, tensor.contiguous()))
    tensors = {theirs: tensor for _, theirs, tensor in sorted(found, key=lambda f: f[:2])}
    return tensors | {prefix + name: torch.zeros(1, spec.width) for name in dialect.unused}


@contextlib.contextmanager
def written_weights(path: Path) -> Iterator[Path]:
    """Give a place beside a path to write a file or folder at, as `written_whole` does.

    Raises: WeightsError if the place cannot be written; nothing is left there then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise WeightsError(f"{path} exists already. Choose another name, or remove it.")
        with written_whole(path) as beside:
            yield beside
    except OSError as error:
        # A conversion writes, and compares, beside its own place.
        raise WeightsError(f"Cannot write {final_name(path)}: {error.strerror or error}.") from None
