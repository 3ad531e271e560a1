"""What a `checkpoint_path` stands for: a run's checkpoints, or weights of any origin."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitbase.errors import CheckpointError
from vitbase.files import WRITING
from vitbase.runs.checkpoints import (
    CHECKPOINTS,
    MANIFEST_FILE,
    NAME,
    PROGRESS_FILE,
    STATE_FILE,
    find_damage,
    is_own_weights,
    is_unfinished,
    list_checkpoints,
    weights_in,
)
from vitbase.runs.identity import find_stranger, read_run_id
from vitbase.weights import hub

WEIGHTS_SUFFIXES = {".ckpt", ".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar"}  # .pth.tar


def find_weights(checkpoint_path: str | Path) -> Path:
    """Return the weights file a `checkpoint_path` stands for: of several, the newest.

    Only that one is verified. A run whose newest checkpoint is damaged is not opened at an older
    one unasked.

    Args:
      checkpoint_path: see :func:`list_weights`.
    Raises: CheckpointError if nothing is there, or the checkpoint is damaged; then it names the
      newest whole one.
    """
    return verified(list_weights(checkpoint_path)[-1])


def list_weights(checkpoint_path: str | Path) -> list[Path]:
    """Return every weights file a `checkpoint_path` stands for, oldest first; none is read.

    Args:
      checkpoint_path: a run folder, its `checkpoints/`, one checkpoint folder, a weights file, a
        folder of Hugging Face's or timm's, a model of the hub as `hf-hub:owner/name`, or
        the seed's form `./ckpt_0/train_vit_imagenet-156_10009.ckpt` (with or without the suffix)
        for a checkpoint of the run folder `./ckpt_0`.
    Returns: at least one.
    Raises: CheckpointError if nothing is there.
    """
    if str(checkpoint_path).startswith(hub.PREFIX):
        return [hub.fetch(str(checkpoint_path))]
    try:
        return _list_weights(Path(checkpoint_path))
    except (OSError, ValueError) as error:  # a name may be too long, or have a NUL in it
        cause = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"checkpoint_path {checkpoint_path} cannot be opened: {cause}."
        ) from None


def _list_weights(path: Path) -> list[Path]:
    for place in (path, path.parent):
        if is_unfinished(place):
            raise CheckpointError(
                f"checkpoint_path {path} was not written to its end: no checkpoint has a name "
                f"that begins with {WRITING}. Give another one.{_siblings(place)}"
            )
    if path.is_file():
        return [path]
    for place in (path, _seed_form(path)):
        if NAME.match(place.name) and place.is_dir():
            return [weights_in(place)]
    if not path.is_dir():
        problem = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise CheckpointError(
            f"checkpoint_path {path} {problem}. Give a run folder, one of its checkpoints, "
            f"or a weights file.{_siblings(path)}"
        )
    found = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
    if found:
        return [checkpoint.weights for checkpoint in found]
    if (path / "config.json").is_file():
        for name in hub.MODEL_FILES:
            if (path / name).is_file():
                return [path / name]
    files = [entry for entry in path.iterdir() if _is_weights(entry)]
    if files:
        return sorted(files, key=lambda entry: _by_numbers(entry.name))
    raise CheckpointError(f"checkpoint_path {path} holds no checkpoint and no weights file.")


def verified(weights: Path) -> Path:
    """Hold a weights file against the manifest of its checkpoint, if it is a checkpoint's.

    Raises: CheckpointError naming the newest whole checkpoint of the run, if it is damaged.
    """
    folder = weights.parent
    if not is_own_weights(weights):
        return weights
    beside = (MANIFEST_FILE, STATE_FILE, PROGRESS_FILE)
    if weights.is_file() and not any(os.path.lexists(folder / name) for name in beside):
        return weights  # a file of that name, which somebody has put there
    run_id = read_run_id(folder.parent.parent) if folder.parent.name == CHECKPOINTS else None
    fault = _find_fault(weights, run_id)
    if fault is None:
        return weights
    for checkpoint in reversed(list_checkpoints(folder.parent)):
        if checkpoint.path != folder and _find_fault(checkpoint.weights, run_id) is None:
            remedy = f"The newest whole one of the run is {checkpoint.path}."
            break
    else:
        remedy = "No other one of the run is whole."
    raise CheckpointError(f"Checkpoint {folder} is damaged: {fault}. {remedy}")


def _find_fault(weights: Path, run_id: str | None) -> str | None:
    """Say what is wrong with the weights of a checkpoint, and whose it is; None if nothing is."""
    damage = find_damage(weights.parent, only=weights.name)
    return damage or find_stranger(weights.parent, run_id)


def _is_weights(entry: Path) -> bool:
    suits = entry.suffix.lower() in WEIGHTS_SUFFIXES and not entry.name.startswith(WRITING)
    return suits and not entry.is_dir()


def _by_numbers(name: str) -> tuple[list[tuple[str, int]], str]:
    """Return a key that sorts numbers inside names as numbers: 9 before 10."""
    parts = re.findall(r"(\D*)(\d{0,18})", name)  # more digits are no count, and may be too many
    return [(text, int(number or -1)) for text, number in parts], name


def _seed_form(path: Path) -> Path:
    name = path.name.removesuffix(".ckpt")
    beside = path.with_name(name)
    return beside if beside.is_dir() else path.parent / "checkpoints" / name


def _siblings(path: Path) -> str:
    for place in (path.parent, path.parent / "checkpoints"):
        names = [checkpoint.path.name for checkpoint in list_checkpoints(place)]
        if names:
            return f" There are: {', '.join(names[-5:])}."
    return ""
