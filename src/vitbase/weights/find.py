"""What a `checkpoint_path` stands for: a run's checkpoints, or weights of any origin."""

from __future__ import annotations

from pathlib import Path

from vitbase.errors import CheckpointError
from vitbase.runs.checkpoints import NAME, WEIGHTS_FILE, find_damage, list_checkpoints
from vitbase.weights import hub

WEIGHTS_SUFFIXES = {".ckpt", ".safetensors", ".npz", ".pth", ".pt", ".bin"}


def find_weights(checkpoint_path: str | Path) -> list[Path]:
    """Return every weights file a `checkpoint_path` stands for, oldest first.

    Args:
      checkpoint_path: a run folder, its `checkpoints/`, one checkpoint folder, a weights file, a
        folder of Hugging Face's or timm's, a model of the hub as `hf-hub:owner/name`, or
        the seed's form `./ckpt_0/train_vit_imagenet-156_10009.ckpt` (with or without the suffix)
        for a checkpoint of the run folder `./ckpt_0`.
    Raises: CheckpointError if nothing is there, or a checkpoint is damaged.
    """
    if str(checkpoint_path).startswith(hub.PREFIX):
        return [hub.fetch(str(checkpoint_path))]
    path = Path(checkpoint_path)
    if path.is_file():
        return [path]
    for place in (path, _seed_form(path)):
        if NAME.match(place.name) and place.is_dir():
            return [_whole(place)]
    if not path.is_dir():
        raise CheckpointError(
            f"checkpoint_path {path} does not exist. Give a run folder, one of its checkpoints, "
            f"or a weights file.{_siblings(path)}"
        )
    found = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
    if found:
        return [_whole(checkpoint.path) for checkpoint in found]
    if (path / "config.json").is_file():
        for name in hub.MODEL_FILES:
            if (path / name).is_file():
                return [path / name]
    files = sorted(entry for entry in path.iterdir() if entry.suffix in WEIGHTS_SUFFIXES)
    if files:
        return files
    raise CheckpointError(f"checkpoint_path {path} holds no checkpoint and no weights file.")


def _seed_form(path: Path) -> Path:
    name = path.name.removesuffix(".ckpt")
    beside = path.with_name(name)
    return beside if beside.is_dir() else path.parent / "checkpoints" / name


def _whole(folder: Path) -> Path:
    damage = find_damage(folder, only=WEIGHTS_FILE)
    if damage is not None:
        raise CheckpointError(
            f"Checkpoint {folder} is damaged: {damage}. Use another one of the run."
        )
    return folder / WEIGHTS_FILE


def _siblings(path: Path) -> str:
    for place in (path.parent, path.parent / "checkpoints"):
        names = [checkpoint.path.name for checkpoint in list_checkpoints(place)]
        if names:
            return f" There are: {', '.join(names[-5:])}."
    return ""
