"""Run folders and checkpoints on disk: names, places, and whether one is whole.

A run folder holds `config.toml`, `metrics.jsonl` and `checkpoints/`. A checkpoint is a folder
named `train_vit_<name>-<epoch>_<step>` (the step within that epoch, as MindSpore numbers them)
with `weights.safetensors`, `training_state.safetensors` and, written last, `manifest.json` with
the size and SHA-256 of the others.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from vitbase.errors import CheckpointError
from vitbase.files import read_json, sha256_of
from vitbase.weights import hub

PREFIX = "train_vit"
WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "training_state.safetensors"
MANIFEST_FILE = "manifest.json"
BEST_FILE = "best.json"
WEIGHTS_SUFFIXES = {".ckpt", ".safetensors", ".npz", ".pth", ".pt", ".bin"}
_NAME = re.compile(r"^(?P<prefix>.+)-(?P<epoch>\d+)_(?P<step>\d+)$")


@dataclasses.dataclass(frozen=True, order=True)
class Checkpoint:
    """A place in a run, and the folder that holds it. Sorts by place."""

    epoch: int
    step: int
    path: Path = dataclasses.field(compare=False)

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS_FILE


def checkpoint_name(run_name: str, epoch: int, step: int) -> str:
    """Return the seed's name of a checkpoint: epoch from 1, step within that epoch."""
    return f"{PREFIX}_{run_name}-{epoch}_{step}"


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """List the checkpoints directly inside a folder, in the order they were taken."""
    found = []
    if folder.is_dir():
        for entry in folder.iterdir():
            match = _NAME.match(entry.name)
            if match and entry.is_dir():
                found.append(Checkpoint(int(match["epoch"]), int(match["step"]), entry))
    return sorted(found)


def write_manifest(folder: Path) -> None:
    """Describe every file of a checkpoint folder by size and SHA-256."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    text = json.dumps({"files": files}, indent=1) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def find_damage(folder: Path, only: str | None = None) -> str | None:
    """Say what is wrong with a checkpoint folder, or return None if it is whole.

    Args:
      only: check this file alone, where the others are not needed.
    """
    try:
        files = read_json(folder / MANIFEST_FILE)["files"]
        for name, facts in files.items() if only is None else [(only, files[only])]:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
            if sha256_of(path) != facts["sha256"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{MANIFEST_FILE} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is not a manifest"
    return None


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
        if _NAME.match(place.name) and place.is_dir():
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


def find_run_folder(checkpoint_path: str | Path) -> Path | None:
    """Return the run folder (with `config.toml`) that a `checkpoint_path` lies in, if any."""
    path = Path(checkpoint_path)
    for place in (path, *list(path.absolute().parents)[:3]):
        if (place / "config.toml").is_file() and (place / "checkpoints").is_dir():
            return place
    return None


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
