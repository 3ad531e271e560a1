"""Run folders and checkpoints on disk: names, places, and whether one is whole.

A run folder holds `config.toml`, `metrics.jsonl` and `checkpoints/`. A checkpoint is a folder
named `train_vit_<name>-<epoch>_<step>` (the step within that epoch, as MindSpore numbers them)
with `weights.safetensors`, `training_state.safetensors`, `progress.json` and, written last,
`manifest.json` with the size and SHA-256 of the others. Under engine mindspore one file named as
the folder, `train_vit_<name>-<epoch>_<step>.ckpt`, holds weights and state.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vitbase.files import read_json, sha256_of

PREFIX = "train_vit"
WEIGHTS_FILE = "weights.safetensors"
CKPT_SUFFIX = ".ckpt"
"""Of MindSpore's files: those of its engine, and what is written for it beside the checkpoints."""
STATE_FILE = "training_state.safetensors"
PROGRESS_FILE = "progress.json"
MANIFEST_FILE = "manifest.json"
BEST_FILE = "best.json"
NAME = re.compile(r"^(?P<prefix>[^.].*)-(?P<epoch>\d+)_(?P<step>\d+)$")


@dataclasses.dataclass(frozen=True, order=True)
class Checkpoint:
    """A place in a run, and the folder that holds it. Sorts by place."""

    epoch: int
    step: int
    path: Path = dataclasses.field(compare=False)

    @property
    def weights(self) -> Path:
        return weights_in(self.path)


def weights_in(folder: Path) -> Path:
    """Return the weights file of a checkpoint folder, which may not be there."""
    of_mindspore = folder / f"{folder.name}{CKPT_SUFFIX}"
    return of_mindspore if of_mindspore.is_file() else folder / WEIGHTS_FILE


def state_part(rank: int, ranks: int) -> str:
    """Return the name of the file for a rank's rows of the training state, where ranks shard it."""
    stem, suffix = STATE_FILE.split(".")
    return f"{stem}-{rank + 1:05}-of-{ranks:05}.{suffix}"


def state_files(checkpoint: Path) -> list[Path]:
    """Return the files that hold the training state: one, or one of each rank that sharded it."""
    stem, suffix = STATE_FILE.split(".")
    return sorted(checkpoint.glob(f"{stem}-*-of-*.{suffix}")) or [checkpoint / STATE_FILE]


def is_own_weights(path: Path) -> bool:
    """Whether a file is the weights of a checkpoint folder, by its place and name."""
    names = {WEIGHTS_FILE, f"{path.parent.name}{CKPT_SUFFIX}"}
    return path.name in names and NAME.match(path.parent.name) is not None


def checkpoint_name(run_name: str, epoch: int, step: int) -> str:
    """Return the seed's name of a checkpoint: epoch from 1, step within that epoch."""
    return f"{PREFIX}_{run_name}-{epoch}_{step}"


def list_checkpoints(folder: Path, suffix: str = "") -> list[Checkpoint]:
    """List the checkpoints directly inside a folder, in the order they were taken.

    Args:
      suffix: of the names of files to list instead; ours are folders without any.
    """
    found = []
    if folder.is_dir():
        for entry in folder.iterdir():
            match = NAME.match(entry.name.removesuffix(suffix))
            if match and (entry.is_file() and entry.suffix == suffix if suffix else entry.is_dir()):
                found.append(Checkpoint(int(match["epoch"]), int(match["step"]), entry))
    return sorted(found)


def write_manifest(folder: Path, digests: Mapping[str, str] = MappingProxyType({})) -> None:
    """Describe every file of a checkpoint folder by size and SHA-256.

    Args:
      digests: those that are known, by name; the other files are read.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE:
            digest = digests.get(path.name) or sha256_of(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
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


def find_run_folder(checkpoint_path: str | Path) -> Path | None:
    """Return the run folder (with `config.toml`) that a `checkpoint_path` lies in, if any."""
    path = Path(checkpoint_path)
    for place in (path, *list(path.absolute().parents)[:3]):
        if (place / "config.toml").is_file() and (place / "checkpoints").is_dir():
            return place
    return None
