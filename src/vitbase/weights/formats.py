"""File -> {name: tensor}. The format is found by content, not by the file's name.

Nothing is executed: pickles are read by torch's restricted reader, npz never with pickles. Shapes
and types are known, and checked against the bytes that are there, before a tensor is read; what
is read is one tensor at a time, so that a file needs no second copy of itself in memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitbase.errors import WeightsError
from vitbase.weights.mindspore import read_mindspore
from vitbase.weights.stored import StoredTensor, TensorFile

METADATA_KEY = "vitbase"
"""Where this project's safetensors files keep what is not a tensor, as JSON."""

INDEX_SUFFIX = ".index.json"
MAX_INFLATION = 20
"""A compressed archive may grow by this factor; weights hardly compress, bombs do."""
_FREE_INFLATION = 256 << 20  # bytes that may come out of a small archive all the same
_CONFIG_NAMES = ("model.safetensors", "pytorch_model.bin")  # these have a config.json beside them

# Where a training script puts the weights; averaged ones first, as they are the better model.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
)
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NOT_WEIGHTS = {"n_averaged"}  # a counter of torch's weight averaging
_LIGHTNING = b"pytorch-lightning_version"


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file of any supported format.

    Raises: WeightsError naming the file, if it is unreadable, damaged, or of no known format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from None
    # safetensors: 8 bytes of little-endian header length, then a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _with_config(_read_safetensors(path))
    if head[:1] == b"{" and path.name.endswith(INDEX_SUFFIX):
        return _with_config(_read_sharded(path))
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if head[:1] == b"\x80":  # a bare pickle: torch before 1.6
        return _with_config(_read_torch(path, mapped=False))
    if head[:1] == b"\x0a":  # protobuf's field 1: a Value
        return TensorFile(path, "mindspore", read_mindspore(path))
    raise WeightsError(
        f"{path} is no weights file that vitbase knows (safetensors, npz, torch, or MindSpore's "
        f".ckpt): {_describe_head(head)}"
    )


def _describe_head(head: bytes) -> str:
    if not head:
        return "it is empty."
    if head.startswith((b"version https://git-lfs", b"# xet version")):
        return "it is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`."
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"it is text, starting with {head.decode('ascii')!r}."
    return f"it starts with the bytes {head[:8]!r}. Is it whole?"


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors, and texts: at most one, for safetensors does not keep the order of several."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file that only its owner can read
    on_host = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(on_host, path, dict(metadata))
    path.chmod(mode)


def write_npz(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an uncompressed npz; its bytes are a function of the tensors alone."""
    with path.open("wb") as file:
        # Its keywords are the names: one called "file" would clash, and no ViT has that.
        arrays: dict[str, Any] = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
        np.savez(file, **arrays)


def _with_config(file: TensorFile) -> TensorFile:
    """Add the `config.json` that Hugging Face and timm keep beside their weights."""
    name = file.path.name.removesuffix(INDEX_SUFFIX)
    if name not in _CONFIG_NAMES:
        return file
    parts = []
    for beside in ("config.json", "preprocessor_config.json"):
        path = file.path.with_name(beside)
        parts.append(_read_json(path) if path.is_file() else None)
    return TensorFile(
        file.path, file.format, file.tensors, file.metadata, parts[0], parts[1], file.notes
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} should hold a JSON object.")
    return content


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_safetensors(path: Path) -> TensorFile:
    try:
        file: Any = safe_open(path, framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in _SAFETENSORS_DTYPES:
                raise WeightsError(f"{path}: tensor '{name}' has the unknown type '{kind}'.")
            tensors[name] = StoredTensor(
                tuple(part.get_shape()),
                _SAFETENSORS_DTYPES[kind],
                functools.partial(file.get_tensor, name),
            )
        return TensorFile(path, "safetensors", tensors, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file: {error}.") from None


def _read_sharded(path: Path) -> TensorFile:
    """Open the shards that an index lists. A shard is a file of any format, in the same folder."""
    shard_of = _read_json(path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise WeightsError(f"{path} is no index of a sharded checkpoint: it has no weight_map.")
    shards: dict[str, TensorFile] = {}
    tensors = {}
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{path}: tensor '{name}' stands in {shard!r}, which is no file.")
        if shard not in shards:
            if not path.with_name(shard).is_file():
                absent = sorted(
                    {s for s in map(str, shard_of.values()) if not path.with_name(s).is_file()}
                )
                raise WeightsError(
                    f"{path}: tensor '{name}' is missing, because its shard {shard} is not there "
                    f"({len(absent)} of {len(set(map(str, shard_of.values())))} shards are "
                    f"missing). Fetch the whole checkpoint."
                )
            shards[shard] = open_tensors(path.with_name(shard))
        stored = shards[shard].tensors.get(name)
        if stored is None:
            raise WeightsError(f"{path}: tensor '{name}' is not in its shard {shard}.")
        tensors[name] = stored
    kind = next(iter(shards.values())).format
    return TensorFile(path, kind, tensors, notes=(f"{len(shards)} shards",))


def _read_zip(path: Path) -> TensorFile:
    """Open an npz, or a file of torch's: both are zip archives."""
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise WeightsError(f"{path} is a damaged archive, or was cut short: {error}.") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith(".npy") for name in names):
        return TensorFile(path, "npz", _read_npz(path, archive, entries))
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    try:
        if not pickles:
            first = names[0] if names else "nothing"
            raise WeightsError(f"{path} is an archive of something else: it holds {first!r}.")
        _check_torch_zip(path, archive, entries, pickles[0])
    finally:
        archive.close()
    return _with_config(_read_torch(path, mapped=True))


def _read_npz(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> dict[str, StoredTensor]:
    inflated = sum(entry.file_size for entry in entries)
    if inflated > MAX_INFLATION * path.stat().st_size + _FREE_INFLATION:
        raise WeightsError(
            f"{path} would grow from {path.stat().st_size:,} to {inflated:,} bytes, which no "
            f"weights do (the first tensor is '{entries[0].filename}'). It was not unpacked."
        )
    tensors = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in tensors:
            raise WeightsError(f"{path}: tensor '{name}' stands there twice.")
        try:
            tensors[name] = _npy_stored(path, name, archive, entry)
        except WeightsError:
            raise
        except Exception as error:  # zipfile and numpy raise many kinds on damaged archives
            raise WeightsError(f"{path}: tensor '{name}' is damaged: {error}.") from None
    return tensors


def _npy_stored(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> StoredTensor:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        header = file.tell()
    if dtype.hasobject:
        raise WeightsError(f"{path}: tensor '{name}' holds Python objects; they were not read.")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != entry.file_size - header:
        raise WeightsError(
            f"{path}: tensor '{name}' should hold {shape} values of {dtype}, but "
            f"{entry.file_size - header} bytes are there."
        )
    # numpy has no bfloat16: JAX writes it as two raw bytes.
    raw = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
    try:
        kind = (
            torch.bfloat16 if raw else torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
        )
    except TypeError:
        raise WeightsError(f"{path}: tensor '{name}' has the unknown type {dtype}.") from None

    def read() -> torch.Tensor:
        try:
            with archive.open(entry) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                file.read(1)  # past the end, where zipfile compares the checksum
        except Exception as error:  # zipfile, zlib and numpy raise many kinds
            raise WeightsError(f"{path}: tensor '{name}' is damaged: {error}.") from None
        if raw:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array, dtype.newbyteorder("=")))

    return StoredTensor(tuple(shape), kind, read)


def _check_torch_zip(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], pickled: zipfile.ZipInfo
) -> None:
    """Refuse what torch itself would not write: compressed entries, or ones beyond the file."""
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise WeightsError(f"{path}: entry '{entry.filename}' is not as torch writes it.")
    try:
        text = archive.read(pickled)
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise WeightsError(f"{path} is damaged: {error}.") from None
    if _LIGHTNING in text:
        raise WeightsError(
            f"{path} is a checkpoint of PyTorch Lightning, whose tensors are named after a module "
            f"of its user{_first_tensor(text)}. Extract the network first: "
            f"torch.save(your_module.load_from_checkpoint({path.name!r}).model.state_dict(), "
            f"'weights.pth')."
        )


def _first_tensor(text: bytes) -> str:
    """Find the first tensor's name in a pickle, without running it, for an error message."""
    names = re.findall(rb"[\w.]+\.(?:weight|bias)\b", text)
    return f" (the first is '{names[0].decode()}')" if names else ""


def _read_torch(path: Path, *, mapped: bool) -> TensorFile:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise WeightsError(f"{path} is a damaged file of torch's, or none at all.") from None
        raise WeightsError(
            f"{path} holds more than tensors: '{found[1]}'. It was not run. If you trust its "
            f"origin, open it where it was made and save only the state_dict."
        ) from None
    except Exception as error:  # torch raises many kinds on damaged files
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is a damaged file of torch's: {cause}.") from None
    state, wrappers = _unwrap(path, content)
    tensors, prefix = _without_prefix({n: t for n, t in state.items() if n not in _NOT_WEIGHTS})
    notes = [f"taken from its entry '{'.'.join(wrappers)}'"] if wrappers else []
    if prefix:
        notes.append(f"prefix '{prefix}' removed")
    stored = {name: _torch_stored(path, name, tensor) for name, tensor in tensors.items()}
    return TensorFile(path, "torch", stored, notes=tuple(notes))


def _torch_stored(path: Path, name: str, tensor: torch.Tensor) -> StoredTensor:
    # A view may claim more elements than are stored, or none of a real device's.
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise WeightsError(f"{path}: tensor '{name}' is not an ordinary, dense tensor.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: tensor '{name}' claims the shape {tuple(tensor.shape)}, but only "
            f"{tensor.untyped_storage().nbytes()} bytes are there."
        )
    return StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.detach)


def _unwrap(path: Path, content: object) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Find the state_dict in what a training script saved."""
    wrappers: list[str] = []
    while isinstance(content, Mapping):
        tensors = {
            name: value
            for name, value in content.items()
            if isinstance(value, torch.Tensor) and isinstance(name, str)
        }
        inner = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if tensors and inner is None:
            return tensors, wrappers
        if inner is None or len(wrappers) > 4:
            keys = ", ".join(repr(key) for key in list(content)[:8])
            raise WeightsError(f"{path} holds no weights under a known name; it holds {keys}.")
        wrappers.append(inner)
        content = content[inner]
    kind = type(content).__name__
    raise WeightsError(f"{path} holds a {kind}, not a state_dict: names and tensors.")


def _without_prefix(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Remove the prefix that data parallelism, compilation or a wrapper put before every name."""
    removed = ""
    while tensors:
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        removed += prefix
    return tensors, removed
