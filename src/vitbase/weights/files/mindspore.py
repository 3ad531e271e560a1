"""MindSpore's `.ckpt` format, read and written without MindSpore.

A file is one protobuf message, `Checkpoint { repeated Value { string tag = 1; TensorProto
tensor = 2; } }` with `TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes
tensor_content = 3; }`. A large tensor stands in several consecutive values of the same tag, each
with the dims of the whole. Behind it there may be a checksum: the text `crc_num` and ten bytes.
Source: mindspore/ccsrc/utils/checkpoint.proto, mindspore/train/serialization.py.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from vitbase.errors import WeightsError
from vitbase.files import LONGEST_JSON
from vitbase.weights.files.tensors import FileTensor, TensorFile, shape_problem

# Torch has the same names, in small letters.
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name.lower())
    for name in (
        *("Float64", "Float32", "Float16", "BFloat16", "Bool"),
        *("Int64", "Int32", "Int16", "Int8", "UInt64", "UInt32", "UInt16", "UInt8"),
    )
}
_TYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_TEXT = "str"  # not a tensor: a note that a run wrote beside the weights; of ours, the metadata
_VARINT, _LENGTH_DELIMITED = 0, 2
_SLICE_BYTES = 512 << 20  # where MindSpore itself cuts a tensor
_CRC_MARK = b"crc_num"
_CRC_BYTES = len(_CRC_MARK) + 10
# Far above what any network needs. Tiny entries by the million would take a hundred times the
# size of the file in memory, and hours.
_MOST_ENTRIES = 50_000
_MOST_FIELDS = 64
_LONGEST_TEXT = 2000  # bytes, of a name or a type


def read_mindspore(path: Path) -> TensorFile:
    """Open a `.ckpt`; its tensors stay in the mapped file until they are read.

    Raises: WeightsError naming the file, and the tensor where it is one that is wrong.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    contents: dict[str, list[memoryview]] = {}
    facts: dict[str, tuple[list[int], str]] = {}
    last = ""
    try:
        for field, value in _fields(_without_checksum(data), _MOST_ENTRIES):
            if field != 1 or not isinstance(value, memoryview):
                continue
            try:
                tag, dims, kind, content = _read_value(value)
            except ValueError as error:
                raise ValueError(f"{error}{_named(value)}") from None
            if tag in contents and tag != last:
                raise ValueError(f"tensor '{tag}' stands there twice")
            last = tag
            contents.setdefault(tag, []).append(content)
            if facts.setdefault(tag, (dims, kind)) != (dims, kind):
                raise ValueError(f"the parts of tensor '{tag}' do not fit together")
        tensors = {
            tag: _tensor_of(tag, *facts[tag], parts)
            for tag, parts in contents.items()
            if facts[tag][1] != _TEXT
        }
        texts = {tag: _note_of(parts) for tag, parts in contents.items() if tag not in tensors}
    except ValueError as error:
        raise WeightsError(
            f"{path} is damaged, cut short, or no MindSpore checkpoint: {error}."
        ) from None
    return TensorFile(path, "mindspore", tensors, texts)


def stream_mindspore(file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a `.ckpt` as MindSpore would: the same bytes for the same tensors in this order."""
    for tag, tensor in tensors.items():
        _write_tensor(file, tag, tensor.detach().contiguous().cpu())


def _write_tensor(file: BinaryIO, tag: str, tensor: torch.Tensor) -> None:
    facts = b"".join(b"\x08" + _to_varint(size) for size in tensor.shape)
    facts += b"\x12" + _delimited(_TYPE_NAMES[tensor.dtype].encode())
    flat = tensor.reshape(-1)
    content = flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")
    name = b"\x0a" + _delimited(tag.encode())
    for start in range(0, max(len(content), 1), _SLICE_BYTES):
        part = content[start : start + _SLICE_BYTES]
        part_head = facts + b"\x1a" + _to_varint(len(part))
        value_head = name + b"\x12" + _to_varint(len(part_head) + len(part)) + part_head
        file.write(b"\x0a" + _to_varint(len(value_head) + len(part)) + value_head)
        file.write(part)


def _delimited(text: bytes) -> bytes:
    return _to_varint(len(text)) + text


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _without_checksum(data: memoryview) -> memoryview:
    """Cut off the checksum, if there is one. Raises: ValueError if it does not match."""
    tail = bytes(data[-_CRC_BYTES:])
    if not tail.startswith(_CRC_MARK):
        return data
    content = data[:-_CRC_BYTES]
    if zlib.crc32(content) != int.from_bytes(tail[len(_CRC_MARK) :], "big"):
        raise ValueError("it does not match the checksum at its end")
    return content


def _tensor_of(tag: str, dims: list[int], kind: str, parts: list[memoryview]) -> FileTensor:
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise ValueError(f"tensor '{tag}' has the unknown type '{kind[:40]}'")
    size = sum(len(part) for part in parts)
    if dims == [0] and size == dtype.itemsize:
        dims = []  # so MindSpore 1 wrote a scalar
    problem = shape_problem(dims, dtype.itemsize, size)
    if problem and len(parts) > 1 and not shape_problem(dims, dtype.itemsize, len(parts[0])):
        problem = "stands there twice"
    if problem:
        raise ValueError(f"tensor '{tag}' {problem}")

    def read() -> torch.Tensor:
        if not size:
            return torch.empty(dims, dtype=dtype)
        return torch.frombuffer(bytearray().join(parts), dtype=dtype).reshape(dims)

    return FileTensor(tuple(dims), dtype, read)


def _note_of(parts: list[memoryview]) -> str:
    """Read a text, which MindSpore writes as numpy has it: four bytes a letter."""
    if sum(map(len, parts)) > LONGEST_JSON:
        raise ValueError(f"a text of more than {LONGEST_JSON:,} bytes")
    return bytearray().join(parts).decode("utf-32-le", "replace")


def _read_value(message: memoryview) -> tuple[str, list[int], str, memoryview]:
    tag, dims, kind, content = "", list[int](), "", memoryview(b"")
    for field, value in _fields(message, _MOST_FIELDS):
        if field == 1 and isinstance(value, memoryview):
            tag = _text(value)
        elif field == 2 and isinstance(value, memoryview):
            for inner, item in _fields(value, _MOST_FIELDS):
                if inner == 1 and isinstance(item, int):
                    dims.append(_signed(item))
                elif inner == 1 and isinstance(item, memoryview):
                    dims += _packed_varints(item)
                elif inner == 2 and isinstance(item, memoryview):
                    kind = _text(item)
                elif inner == 3 and isinstance(item, memoryview):
                    content = item
        elif field == 3:
            raise ValueError("a map parameter, which no Vision Transformer has")
    if not tag or not kind:
        raise ValueError("an entry lacks its name or its type")
    return tag, dims, kind, content


def _named(message: memoryview) -> str:
    """Name the tensor of an entry that is not whole, for an error message, if its name is there."""
    try:
        key, at = _varint(message, 0)
        size, at = _varint(message, at)
        tag = _text(message[at : at + size]) if key >> 3 == 1 else ""
    except ValueError:
        tag = ""
    return f" (tensor '{tag}')" if tag.isprintable() and tag else ""


def _text(message: memoryview) -> str:
    if len(message) > _LONGEST_TEXT:
        raise ValueError(f"a name of {len(message):,} bytes")
    return bytes(message).decode()


def _fields(message: memoryview, most: int) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message. Raises ValueError if it is malformed."""
    at = 0
    for _ in range(most):
        if at >= len(message):
            return
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif wire == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
            if at + size > len(message):
                rest = message[at:]
                raise ValueError(f"it ends inside an entry of {size:,} bytes{_named(rest)}")
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"unexpected wire type {wire}")
    if at < len(message):
        raise ValueError(f"more than {most:,} entries in one")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if byte >= 0x80 or value >> 64:
        raise ValueError("a number is longer than 64 bits")
    return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _packed_varints(message: memoryview) -> list[int]:
    values, at = list[int](), 0
    while at < len(message) and len(values) < _MOST_FIELDS:
        value, at = _varint(message, at)
        values.append(_signed(value))
    return values
