"""safetensors: a length, a header of JSON, and the tensors one after the other."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitbase.errors import WeightsError
from vitbase.files import LONGEST_JSON, in_utf8, parse_json
from vitbase.weights.files.tensors import FileTensor, TensorFile, shape_problem

_DTYPES = {
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
