"""What a `checkpoint_path` stands for: a run's checkpoints, or weights of any origin."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitbase.errors import CheckpointError
from vitbase.runs.checkpoints import (
    MANIFEST_FILE,
    NAME,
    find_damage,
    is_own_weights,
    list_checkpoints,
    weights_in,
)
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
    path = Path(checkpoint_path)
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
    files = [entry for entry in path.iterdir() if entry.suffix.lower() in WEIGHTS_SUFFIXES]
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
    if weights.is_file() and not (folder / MANIFEST_FILE).exists():
        return weights  # a file of that name, which somebody has put there
    damage = find_damage(folder, only=weights.name)
    if damage is None:
        return weights
    for checkpoint in reversed(list_checkpoints(folder.parent)):
        if checkpoint.path == folder:
            continue
        if find_damage(checkpoint.path, only=checkpoint.weights.name) is None:
            remedy = f"The newest whole one of the run is {checkpoint.path}."
            break
    else:
        remedy = "No other one of the run is whole."
    raise CheckpointError(f"Checkpoint {folder} is damaged: {damage}. {remedy}")


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
