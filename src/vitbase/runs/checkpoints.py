"""Run folders and checkpoints on disk: names, places, and whether one is whole.

A run folder holds `config.toml`, `metrics.jsonl` and `checkpoints/`. A checkpoint is a folder
named `train_vit_<name>-<epoch>_<step>` (the step within that epoch, as MindSpore numbers them)
with `weights.safetensors`, `training_state.safetensors`, `progress.json` and, written last,
`manifest.json` with the size and SHA-256 of the others. Under engine mindspore one file named as
the folder, `train_vit_<name>-<epoch>_<step>.ckpt`, holds weights and state.

What is being written has a name that begins with `.writing-`, and is no checkpoint for anybody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from vitbase.disk import find_strange, read_regular
from vitbase.errors import CheckpointError
from vitbase.files import WRITING, read_json, sha256_of

CONFIG_FILE = "config.toml"
CHECKPOINTS = "checkpoints"
REPORT = "report"
"""The folder of a run that holds what its report is made of."""
PREFIX = "train_vit"
WEIGHTS_FILE = "weights.safetensors"
CKPT_SUFFIX = ".ckpt"
"""Of MindSpore's files: those of its engine, and what is written for it beside the checkpoints."""
STATE_FILE = "training_state.safetensors"
PROGRESS_FILE = "progress.json"
MANIFEST_FILE = "manifest.json"
BEST_FILE = "best.json"
NAME = re.compile(r"^(?P<prefix>.+)-(?P<epoch>\d+)_(?P<step>\d+)$")

_STATE_PART = re.compile(r"training_state-\d{5}-of-(\d{5})\.safetensors")
_LONGEST_CONFIG = 1 << 20
_LONGEST_MANIFEST = 1 << 20
"""Bytes; what we write has some thousands."""


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


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is a checkpoint that was not written to its end, by its name."""
    return folder.name.startswith(WRITING) and NAME.match(folder.name) is not None


def checkpoint_name(run_name: str, epoch: int, step: int) -> str:
    """Return the seed's name of a checkpoint: epoch from 1, step within that epoch."""
    return f"{PREFIX}_{run_name}-{epoch}_{step}"


def list_checkpoints(folder: Path, suffix: str = "") -> list[Checkpoint]:
    """List the checkpoints directly inside a folder, in the order they were taken.

    Args:
      suffix: of the names of files to list instead; ours are folders without any.
    Raises: CheckpointError if the folder cannot be listed.
    """
    return [
        found
        for found in _list_named(folder, suffix)
        if (found.path.is_file() if suffix else found.path.is_dir())
    ]


def list_strays(folder: Path) -> list[str]:
    """Return what is named as a checkpoint and is no folder: `NAME is a link that leads nowhere`.

    Raises: CheckpointError if the folder cannot be listed.
    """
    found = [found.path for found in _list_named(folder, "") if not found.path.is_dir()]
    return [f"{path.name} {find_strange(path) or 'is a file'}" for path in found]


def _list_named(folder: Path, suffix: str) -> list[Checkpoint]:
    found = []
    try:
        if folder.is_dir():
            for entry in folder.iterdir():
                match = NAME.match(entry.name.removesuffix(suffix))
                if match and entry.suffix == suffix and not entry.name.startswith(WRITING):
                    found.append(Checkpoint(int(match["epoch"]), int(match["step"]), entry))
    except OSError as error:
        raise CheckpointError(f"Cannot list {folder}: {error.strerror or error}.") from None
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


def find_damage(folder: Path, only: str | None = None, needed: Collection[str] = ()) -> str | None:
    """Say what is wrong with a checkpoint folder, or return None if it is whole.

    Args:
      only: check this file alone, where the others are not needed.
      needed: what the manifest must name, if that is not what a checkpoint must have.
    """
    looked_at = MANIFEST_FILE
    try:
        if strange := find_strange(folder / MANIFEST_FILE):
            return f"{MANIFEST_FILE} cannot be read: it {strange}"
        files = _read_manifest(folder)
        absent = [name for name in needed or _needed(folder, files, only) if name not in files]
        if absent:
            return f"{MANIFEST_FILE} is not a manifest: it does not name {absent[0]}"
        for name, (size, sha256) in files.items() if only is None else [(only, files[only])]:
            looked_at = name
            if strange := find_strange(folder / name):
                return f"{name} {strange}"
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if sha256_of(folder / name) != sha256:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{looked_at} cannot be read ({error.strerror})"
    except ValueError as error:
        return f"{MANIFEST_FILE} is not a manifest: {error}"
    return None


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Read size and checksum of each file of a checkpoint. Raises: OSError; ValueError."""
    content = read_json(folder / MANIFEST_FILE, longest=_LONGEST_MANIFEST)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    found = {}
    for name, facts in files.items():
        # A file of this folder: never a path, which may lead anywhere.
        plain = name not in {"", ".", ".."} and "/" not in name and name.isprintable()
        if not plain or len(name) > 255 or not isinstance(facts, dict):
            raise ValueError("it names what is no file of the checkpoint")
        size, sha256 = facts.get("bytes"), facts.get("sha256")
        if type(size) is not int or not isinstance(sha256, str):
            raise ValueError(f"it does not say what {name} is")
        found[name] = (size, sha256)
    return found


def _needed(folder: Path, files: Collection[str], only: str | None) -> list[str]:
    """Return the files that a manifest must name: without them a run cannot go on."""
    if only is not None:
        return [only]
    ckpt = f"{folder.name}{CKPT_SUFFIX}"
    if ckpt in files or (folder / ckpt).is_file():  # which is what is opened, then
        return [ckpt, PROGRESS_FILE]
    needed = [WEIGHTS_FILE, *_state_names(files)]
    # Version 0.1.0 kept the progress inside the training state.
    return [*needed, PROGRESS_FILE] if (folder / PROGRESS_FILE).is_file() else needed


def _state_names(files: Collection[str]) -> list[str]:
    """Return the files of the training state: the one, or all that there must be where one is."""
    for name in files:
        if (match := _STATE_PART.fullmatch(name)) is not None:
            return [state_part(rank, int(match[1])) for rank in range(int(match[1]))]
    return [STATE_FILE]


def find_run_folder(checkpoint_path: str | Path) -> Path | None:
    """Return the run folder (with `config.toml`) that a `checkpoint_path` lies in, if any."""
    path = Path(checkpoint_path)
    with contextlib.suppress(OSError, ValueError):  # who opens it says that there is no such path
        for place in (path, *list(path.absolute().parents)[:3]):
            if (place / CONFIG_FILE).is_file() and (place / CHECKPOINTS).is_dir():
                return place
    return None


def check_config_file(path: Path) -> None:
    """Check that the configuration of a run is there to its end.

    TOML that is cut at the end of a line is TOML, in which the options of the rest have become
    defaults.

    Raises: CheckpointError if it is not, or cannot be read.
    """
    try:
        text = read_regular(path, _LONGEST_CONFIG)
        problem = "is empty" if not text.strip() else "is cut short"
        whole = re.search(rb"^\[checkpoint\]\s*$", text, re.MULTILINE)  # the last section
        if whole and text.endswith(b"\n"):
            return
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise CheckpointError(
        f"{path} {problem}: it does not tell the options of the run. Put it back, or name "
        f"another place."
    )
