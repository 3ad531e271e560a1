"""safetensors: a length, a header of JSON, and the tensors one after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from vitbase.errors import WeightsError
from vitbase.files import LONGEST_JSON, in_utf8, parse_json
from vitbase.weights.files.tensors import FileTensor, TensorFile, shape_problem

_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""In the order that the library writes them in: those of the widest elements first."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file; its tensors stay in the mapped file until they are read.

    Raises: WeightsError naming the file, and the tensor where it is one that is wrong.
    """
    # The library checks all this, too; but what it says of it does not name the tensor.
    facts = _check_header(path)
    try:
        with in_utf8(path) as place:
            file: Any = safe_open(place, framework="pt")
        metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file: {error}.") from None
    tensors = {
        name: FileTensor(shape, dtype, functools.partial(file.get_tensor, name))
        for name, (shape, dtype) in facts.items()
    }
    return TensorFile(path, "safetensors", tensors, metadata)


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file of tensors, and texts. Args and errors: as :func:`stream_safetensors`."""
    with path.open("wb") as file:
        stream_safetensors(file, tensors, metadata)


def stream_safetensors(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors, and texts, as the library does: the same bytes for the same tensors.

    Not by the library, which writes to a path, or into memory as a whole.

    Args:
      metadata: in this order; of several the library keeps none.
    Raises: OSError if the file cannot be written.
    """
    kinds = [*_DTYPES.values()]
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in order:
        tensor = tensors[name]
        end = place + tensor.numel() * tensor.element_size()
        kind, shape = _NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if len(flat):
            file.write(flat.view(torch.uint8).numpy().data)


def _check_header(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Check a header against the file. Returns: shapes and types, in the order of the contents."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LONGEST_JSON + 1))
    size = path.stat().st_size - 8 - length
    if size < 0:
        raise WeightsError(
            f"{path} is cut short: its header alone has {length:,} bytes, more than there are."
        )
    try:
        described = parse_json(header)
    except ValueError as error:
        raise WeightsError(f"{path}: its header is not valid JSON: {error}.") from None
    if not isinstance(described, dict):
        raise WeightsError(f"{path}: its header is no JSON object.")
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
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise WeightsError(f"{path}: tensor '{name}' has the unknown type {kind!r}.")
        places.append((begin, end, name, shape, _DTYPES[kind]))
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
