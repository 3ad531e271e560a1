"""File -> {name: tensor}. The format is found by content, not by the file's name.

Nothing is executed: pickles are read by torch's restricted reader, npz never with pickles. Shapes
and types are known, and checked against the bytes that are there, before a tensor is read; what
is read is one tensor at a time, so that a file needs no second copy of itself in memory.
"""

from __future__ import annotations

import codecs
import functools
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitbase.errors import WeightsError
from vitbase.files import LONGEST_JSON, parse_json
from vitbase.weights.files.mindspore import read_mindspore
from vitbase.weights.files.tensors import StoredTensor, TensorFile, shape_problem
from vitbase.weights.files.torch_files import read_torch_pickle, read_torch_zip

METADATA_KEY = "vitbase"
"""Where this project's safetensors files keep what is not a tensor, as JSON."""

INDEX_SUFFIX = ".index.json"
MAX_INFLATION = 20
"""A compressed archive may grow by this factor; weights hardly compress, bombs do."""
_FREE_INFLATION = 256 << 20  # bytes that may come out of a small archive all the same
_DEFLATED_MOST = 1032  # times its own size: more cannot come out of a deflated entry
_CONFIG_NAMES = ("model.safetensors", "pytorch_model.bin")  # these have a config.json beside them


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file of any supported format.

    Raises: WeightsError naming the file, if it is unreadable, damaged, or of no known format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from None
    # safetensors: 8 bytes of little-endian header length, then a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size - 8, LONGEST_JSON):
        return _with_config(_read_safetensors(path))
    if head[:1] == b"{" and path.name.endswith(INDEX_SUFFIX):
        return _with_config(_read_sharded(path))
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _read_zip(path)
    if head[:1] == b"\x80":  # a bare pickle: torch before 1.6
        return _with_config(read_torch_pickle(path))
    if head[:1] == b"\x0a" and _as_text(head) is None:  # protobuf's field 1: a Value
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


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors, and texts: at most one, for safetensors does not keep the order of several.

    Raises: OSError if the place cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file that only its owner can read
    on_host = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(on_host, path, dict(metadata))
    except SafetensorError as error:  # of the disk; the library has no other kind for it
        number = re.search(r"\(os error (\d+)\)", str(error))
        cause = (int(number[1]), os.strerror(int(number[1]))) if number else (str(error),)
        raise OSError(*cause) from None
    path.chmod(mode)


def write_npz(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an uncompressed npz; its bytes are a function of the tensors alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, tensor in tensors.items():
            array = tensor.detach().contiguous().cpu()
            # numpy has no bfloat16; JAX, too, writes it as two raw bytes.
            raw = array.dtype == torch.bfloat16
            values = array.view(torch.int16).numpy().view("V2") if raw else array.numpy()
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


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
        with path.open("rb") as file:
            text = file.read(LONGEST_JSON + 1)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from None
    return _parse_json(str(path), text)


def _parse_json(what: str, text: bytes) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise WeightsError(f"{what} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{what} should hold a JSON object.")
    return content


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_safetensors(path: Path) -> TensorFile:
    # The library checks all this, too; but what it says of it does not name the tensor.
    facts = _check_safetensors(path)
    try:
        file: Any = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file: {error}.") from None
    tensors = {
        name: StoredTensor(shape, dtype, functools.partial(file.get_tensor, name))
        for name, (shape, dtype) in facts.items()
    }
    return TensorFile(path, "safetensors", tensors, metadata)


def _check_safetensors(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Check a header against the file. Returns: shapes and types, in the order of the contents."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LONGEST_JSON + 1))
    size = path.stat().st_size - 8 - length
    if size < 0:
        raise WeightsError(
            f"{path} is cut short: its header alone has {length:,} bytes, more than there are."
        )
    described = _parse_json(f"{path}: its header", header)
    places = []
    for name, fact in described.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape, (begin, end) = fact["dtype"], tuple(fact["shape"]), fact["data_offsets"]
            if any(type(number) is not int for number in (*shape, begin, end)):
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise WeightsError(f"{path}: tensor '{name}' lacks type, shape or place.") from None
        if not isinstance(kind, str) or kind not in _SAFETENSORS_DTYPES:
            raise WeightsError(f"{path}: tensor '{name}' has the unknown type {kind!r}.")
        places.append((begin, end, name, shape, _SAFETENSORS_DTYPES[kind]))
    last = 0
    for begin, end, name, shape, dtype in sorted(places, key=lambda place: place[:3]):
        problem = shape_problem(shape, dtype.itemsize, end - begin)
        if begin != last:
            problem = f"starts at byte {begin:,}, but the one before it ends at {last:,}"
        elif end > size:
            problem = f"is cut short: it ends at byte {end:,} of the contents, which have {size:,}"
        if problem:
            raise WeightsError(f"{path}: tensor '{name}' {problem}.")
        last = end
    if last != size:
        raise WeightsError(f"{path} is damaged: {size - last:,} bytes follow its last tensor.")
    return {name: (shape, dtype) for _, _, name, shape, dtype in places}


def _read_sharded(path: Path) -> TensorFile:
    """Open the shards that an index lists. A shard is a file of any format, in the same folder."""
    shard_of = _read_json(path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise WeightsError(f"{path} is no index of a sharded checkpoint: it has no weight_map.")
    for name, shard in shard_of.items():
        if not _is_shard(shard):
            raise WeightsError(f"{path}: tensor '{name}' stands in {shard!r}, which is no shard.")
    names = sorted(set(shard_of.values()))
    absent = [shard for shard in names if not os.path.isfile(path.with_name(shard))]
    for name, shard in shard_of.items():
        if shard in absent:
            raise WeightsError(
                f"{path}: tensor '{name}' is missing, because its shard {shard} is not there "
                f"({len(absent)} of {len(names)} shards are missing). Fetch the whole checkpoint."
            )
    shards = {shard: open_tensors(path.with_name(shard)) for shard in names}
    tensors = {}
    for name, shard in shard_of.items():
        stored = shards[shard].tensors.get(name)
        if stored is None:
            raise WeightsError(f"{path}: tensor '{name}' is not in its shard {shard}.")
        tensors[name] = stored
    kind = shards[names[0]].format
    return TensorFile(path, kind, tensors, notes=(f"{len(shards)} shards",))


def _is_shard(name: object) -> bool:
    """Whether it is the name of a file in the same folder, and not of an index again."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        return False
    return bool(name) and Path(name).name == name != ".." and not name.endswith(INDEX_SUFFIX)


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
    with archive:
        return _with_config(read_torch_zip(path, archive, entries))


def _read_npz(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    inflated, packed = 0, 0
    tensors = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        _check_packed(path, name, entry)
        inflated += entry.file_size
        packed += entry.compress_size
        if packed > size or inflated > MAX_INFLATION * size + _FREE_INFLATION:
            total = sum(entry.file_size for entry in entries)
            raise WeightsError(
                f"{path}: with tensor '{name}' it claims more than weights can: a file of "
                f"{size:,} bytes would become {total:,}. It was not unpacked."
            )
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


def _check_packed(path: Path, name: str, entry: zipfile.ZipInfo) -> None:
    """Refuse an entry whose claimed size cannot be, or that numpy would not write."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks the first bytes of others without a bound.
        raise WeightsError(f"{path}: tensor '{name}' is packed in a way that numpy never does.")
    factor = 1 if entry.compress_type == zipfile.ZIP_STORED else _DEFLATED_MOST
    if entry.file_size > factor * entry.compress_size:
        raise WeightsError(
            f"{path}: tensor '{name}' claims {entry.file_size:,} bytes, which the "
            f"{entry.compress_size:,} that are there cannot hold."
        )


# By numpy's own code for them, without the order of bytes.
_NUMPY_DTYPES = {
    np.dtype(name).str[1:]: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bool", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"V2": torch.bfloat16}  # numpy has none: JAX writes it as two raw bytes


def _npy_stored(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> StoredTensor:
    with archive.open(entry) as file:
        shape, dtype = _read_npy_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise WeightsError(f"{path}: tensor '{name}' holds Python objects; they were not read.")
    kind = _NUMPY_DTYPES.get(dtype.str[1:])
    if kind is None or dtype.names is not None or dtype.subdtype is not None:
        raise WeightsError(f"{path}: tensor '{name}' has the unknown type {str(dtype)[:80]}.")
    problem = shape_problem(shape, dtype.itemsize, entry.file_size - header)
    if problem:
        raise WeightsError(f"{path}: tensor '{name}' {problem}.")

    def read() -> torch.Tensor:
        try:
            with archive.open(entry) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = np.lib.format.read_array(file, allow_pickle=False)
                file.read(1)  # past the end, where zipfile compares the checksum
        except Exception as error:  # zipfile, zlib and numpy raise many kinds
            raise WeightsError(f"{path}: tensor '{name}' is damaged: {error}.") from None
        if kind == torch.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(kind)
        return torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C", copy=False))

    return StoredTensor(shape, kind, read)


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type. Raises: whatever numpy raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of files from Python 2
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version in ((2, 0), (3, 0)):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of npy is unknown")
    return tuple(map(int, shape)), dtype
