"""File -> {name: tensor}. The format is found by content, not by the file's name.

Nothing is executed: pickles are read by torch's restricted reader, npz never with pickles. Shapes
and types are known, and checked against the bytes that are there, before a tensor is read; what
is read is one tensor at a time, so that a file needs no second copy of itself in memory.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

from vitbase.disk import open_regular
from vitbase.errors import WeightsError
from vitbase.files import LONGEST_JSON, read_json
from vitbase.weights.files.mindspore import read_mindspore
from vitbase.weights.files.npz import read_npz
from vitbase.weights.files.safetensors import read_safetensors
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.files.torch_files import read_torch_pickle, read_torch_zip

INDEX_SUFFIX = ".index.json"
_CONFIG_NAMES = ("model.safetensors", "pytorch_model.bin")  # these have a config.json beside them


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file of any supported format, and what stands beside it.

    Raises: WeightsError naming the file, if it is unreadable, damaged, or of no known format.
    """
    file = _open_alone(path)
    if path.name.removesuffix(INDEX_SUFFIX) not in _CONFIG_NAMES:
        return file
    return dataclasses.replace(
        file,
        config=_read_object(path.with_name("config.json")),
        processor=_read_object(path.with_name("preprocessor_config.json")),
    )


def _open_alone(path: Path) -> TensorFile:
    try:
        size = path.stat().st_size
        with open(path, "rb", opener=open_regular) as file:
            head = file.read(256)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from None
    # safetensors: 8 bytes of little-endian header length, then a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size - 8, LONGEST_JSON):
        return read_safetensors(path)
    if head[:1] == b"{" and path.name.endswith(INDEX_SUFFIX):
        return _read_sharded(path)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _read_zip(path)
    if head[:1] == b"\x80":  # a bare pickle: torch before 1.6
        return read_torch_pickle(path)
    if head[:1] == b"\x0a" and _as_text(head) is None:  # protobuf's field 1: a Value
        return read_mindspore(path)
    raise WeightsError(
        f"{path} is no weights file that vitbase knows (safetensors, npz, torch, or MindSpore's "
        f".ckpt): {_describe_head(head)}"
    )


def _describe_head(head: bytes) -> str:
    if not head:
        return "it is empty."
    if head.startswith((b"version https://git-lfs", b"# xet version")):
        return "it is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`."
    text = _as_text(head)
    if text is not None:
        return f"it is text, starting with {text.strip()[:24]!r}."
    return f"it starts with the bytes {head[:8]!r}. Is it whole?"


def _as_text(head: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its last letter may be cut
    except UnicodeDecodeError:
        return None
    readable = all(letter.isprintable() or letter in "\t\r\n" for letter in text)
    return text if readable else None


def _read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file beside the weights, or None where there is none."""
    try:
        content = read_json(path) if path.is_file() else None
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}.") from None
    if content is not None and not isinstance(content, dict):
        raise WeightsError(f"{path} should hold a JSON object.")
    return content


def read_index(path: Path) -> dict[str, str]:
    """Read the index of a sharded checkpoint: the shard of each tensor, a file in its folder.

    Raises: WeightsError if it is none.
    """
    index = _read_object(path)
    shard_of = index.get("weight_map") if index else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise WeightsError(f"{path} is no index of a sharded checkpoint: it has no weight_map.")
    for name, shard in shard_of.items():
        if not _is_shard(shard):
            raise WeightsError(f"{path}: tensor '{name}' stands in {shard!r}, which is no shard.")
    return shard_of


def _is_shard(name: object) -> bool:
    """Whether it is the name of a file in the same folder, and not of an index again."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        return False
    return bool(name) and Path(name).name == name != ".." and not name.endswith(INDEX_SUFFIX)


def _read_sharded(path: Path) -> TensorFile:
    """Open the shards that an index lists; they may be of any format."""
    shard_of = read_index(path)
    places = {shard: path.with_name(shard) for shard in sorted(set(shard_of.values()))}
    absent = {shard for shard, place in places.items() if not os.path.isfile(place)}
    for name, shard in shard_of.items():
        if shard in absent:
            raise WeightsError(
                f"{path}: tensor '{name}' is missing, because its shard {shard} is not there "
                f"({len(absent)} of {len(places)} shards are missing). Fetch the whole checkpoint."
            )
    shards = {shard: open_tensors(place) for shard, place in places.items()}
    for name, shard in shard_of.items():
        if name not in shards[shard].tensors:
            raise WeightsError(f"{path}: tensor '{name}' is not in its shard {shard}.")
    tensors = {name: shards[shard].tensors[name] for name, shard in shard_of.items()}
    kind = next(iter(shards.values())).format
    notes = (f"{len(shards)} shards",)
    return TensorFile(path, kind, tensors, parts=tuple(places.values()), notes=notes)


def _read_zip(path: Path) -> TensorFile:
    """Open an npz, or a file of torch's: both are zip archives."""
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise WeightsError(f"{path} is a damaged archive, or was cut short: {error}.") from None
    if any(entry.filename.endswith(".npy") for entry in entries):
        return read_npz(path, archive, entries)
    with archive:
        return read_torch_zip(path, archive, entries)
