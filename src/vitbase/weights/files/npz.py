"""numpy's `.npz`, an archive of arrays: Google's weights. Pickles in it are never read."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vitbase.errors import WeightsError
from vitbase.weights.files.tensors import FileTensor, TensorFile, shape_problem

MAX_INFLATION = 20
"""A compressed archive may grow by this factor; weights hardly compress, bombs do."""
_FREE_INFLATION = 256 << 20  # bytes that may come out of a small archive all the same
_DEFLATED_MOST = 1032  # times its own size: more cannot come out of a deflated entry

# By numpy's own code for them, without the order of bytes.
_NUMPY_DTYPES = {
    np.dtype(name).str[1:]: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bool", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"V2": torch.bfloat16}  # numpy has none: JAX writes it as two raw bytes


def read_npz(path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> TensorFile:
    """Open an npz; an array stays in it until it is read.

    Raises: WeightsError naming the file, and the tensor where it is one that is wrong.
    """
    size = path.stat().st_size
    inflated, packed = 0, 0
    tensors: dict[str, FileTensor] = {}
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
            tensors[name] = _tensor_of(path, name, archive, entry)
        except WeightsError:
            raise
        except Exception as error:  # zipfile and numpy raise many kinds on damaged archives
            raise WeightsError(f"{path}: tensor '{name}' is damaged: {error}.") from None
    return TensorFile(path, "npz", tensors)


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


def _tensor_of(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> FileTensor:
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

    return FileTensor(shape, kind, read)


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
