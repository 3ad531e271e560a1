"""File -> {name: tensor}. The format is found by content, not by the file's name.

Read here: safetensors, and MindSpore's `.ckpt` without MindSpore. The latter is one protobuf
message, `Checkpoint { repeated Value { string tag = 1; TensorProto tensor = 2; } }` with
`TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }`;
a large tensor may stand in several consecutive values of the same tag.
Source: mindspore/ccsrc/utils/checkpoint.proto.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitbase.errors import WeightsError

METADATA_KEY = "vitbase"
"""Where this project's safetensors files keep what is not a tensor, as JSON."""

_MINDSPORE_DTYPES = {
    "Float32": torch.float32,
    "Float16": torch.float16,
    "Float64": torch.float64,
    "BFloat16": torch.bfloat16,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "Bool": torch.bool,
}
_VARINT, _LENGTH_DELIMITED = 0, 2


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The tensors of a weights file, its format, and the text that travels with them."""

    path: Path
    format: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path) -> TensorFile:
    """Read a weights file of any supported format.

    Raises: WeightsError naming the file, if it is unreadable or of no known format.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}") from None
    # safetensors: 8 bytes of little-endian header length, then a JSON object.
    if len(head) > 8 and head[8:9] == b"{":
        return _read_safetensors(path)
    # MindSpore: field 1 (a Value), whose own first field is the tag.
    if head[:1] == b"\x0a":
        return TensorFile(path, "mindspore", _read_mindspore(path), {})
    raise WeightsError(
        f"{path} is no weights file that vitbase knows "
        f"(safetensors, or MindSpore's .ckpt); it starts with {head[:8]!r}."
    )


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: str) -> None:
    """Write tensors and one JSON text (safetensors does not keep the order of several)."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file that only its owner can read
    on_host = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(on_host, path, {METADATA_KEY: metadata})
    path.chmod(mode)


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return TensorFile(path, "safetensors", tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file: {error}") from None


def _read_mindspore(path: Path) -> dict[str, torch.Tensor]:
    parts: dict[str, list[memoryview]] = {}
    facts: dict[str, tuple[list[int], str]] = {}
    try:
        for field, value in _fields(memoryview(path.read_bytes())):
            if field == 1 and isinstance(value, memoryview):
                tag, dims, kind, content = _read_value(value)
                parts.setdefault(tag, []).append(content)
                if facts.setdefault(tag, (dims, kind)) != (dims, kind):
                    raise WeightsError(f"{path}: the parts of tensor '{tag}' do not fit together.")
    except (ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not a whole MindSpore checkpoint: {error}") from None
    return {
        tag: _build_tensor(path, tag, *facts[tag], b"".join(content))
        for tag, content in parts.items()
    }


def _build_tensor(path: Path, tag: str, dims: list[int], kind: str, content: bytes) -> torch.Tensor:
    dtype = _MINDSPORE_DTYPES.get(kind)
    if dtype is None:
        raise WeightsError(f"{path}: tensor '{tag}' has the unknown type '{kind}'.")
    if min(dims, default=0) < 0 or math.prod(dims) * dtype.itemsize != len(content):
        raise WeightsError(
            f"{path}: tensor '{tag}' should hold {dims} values of {kind}, "
            f"but {len(content)} bytes are there. Is the file complete?"
        )
    if not content:
        return torch.empty(dims, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(dims)


def _read_value(message: memoryview) -> tuple[str, list[int], str, memoryview]:
    tag, dims, kind, content = "", [], "", memoryview(b"")
    for field, value in _fields(message):
        if field == 1 and isinstance(value, memoryview):
            tag = bytes(value).decode()
        elif field == 2 and isinstance(value, memoryview):
            for inner, item in _fields(value):
                if inner == 1 and isinstance(item, int):
                    dims.append(item)
                elif inner == 1 and isinstance(item, memoryview):
                    dims += _packed_varints(item)
                elif inner == 2 and isinstance(item, memoryview):
                    kind = bytes(item).decode()
                elif inner == 3 and isinstance(item, memoryview):
                    content = item
    if not tag or not kind:
        raise ValueError("an entry lacks its name or its type")
    return tag, dims, kind, content


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message. Raises ValueError if it is malformed."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif wire == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError(f"it ends inside an entry of {size} bytes")
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"unexpected wire type {wire}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than 64 bits")


def _packed_varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values
