"""Files of torch's: zip archives, and the bare pickles from before torch 1.6.

A pickle is a program. First its operations are looked at, and none is run: torch believes the
sizes that they claim, and allocates them; a bare pickle's tensors need not be there at all. Then
torch's restricted reader runs it, which calls nothing but what makes tensors; what else scripts
save beside them becomes stand-ins that hold nothing.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, cast

import torch

from vitbase.errors import WeightsError
from vitbase.files import in_utf8
from vitbase.pickles import pickle_operations, stand_ins
from vitbase.weights.files.tensors import FileTensor, TensorFile, shape_problem

_DEEPEST, _LONGEST_KEY = 5, 200  # of entries in entries
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

# What stands in a bare file before the contents of its storages: five pickles.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION_TO_CONTENT = 3
_ITEM_SIZES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}

# Operations that torch writes, as pickletools calls them.
_INTS = {"LONG1", "BININT", "BININT1", "BININT2"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "GLOBAL"}
_PUTS = {"BINPUT", "LONG_BINPUT"}
_GETS = {"BINGET", "LONG_BINGET"}
_TUPLES = {"MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"}


def read_torch_zip(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> TensorFile:
    """Open a file of torch's; its tensors stay in the mapped file until they are read.

    Raises: WeightsError naming the file, and the tensor where it is one that is wrong.
    """
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if any(re.match(r"[^/]+/(constants\.pkl|code/|models/)", entry.filename) for entry in entries):
        raise WeightsError(
            f"{path} is a program with its weights (of torch.jit or torch.export), which is not "
            f"run. Where it was made, save its state_dict() with torch.save."
        )
    if not pickles:
        first = f"'{entries[0].filename[:80]}'" if entries else "nothing"
        raise WeightsError(f"{path} is an archive of something else: it holds {first}.")
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise WeightsError(
                f"{path}: its entry '{entry.filename[:80]}' is not as torch writes it."
            )
    scan = _Scan(path)
    try:
        scan.look_at(io.BytesIO(archive.read(pickles[0])))
    except WeightsError:
        raise
    except Exception as error:  # zipfile and pickletools raise many kinds on damaged files
        raise WeightsError(f"{path} is a damaged file of torch's: {error}.") from None
    folder = pickles[0].filename.removesuffix("data.pkl")
    sizes = {entry.filename: entry.file_size for entry in entries}
    for key, (name, claimed) in scan.storages.items():
        there = sizes.get(f"{folder}data/{key}", 0)
        if there != claimed:
            raise WeightsError(
                f"{path}: tensor '{name}' should lie in {claimed:,} bytes, but {there:,} are there."
            )
    return _read(path, mapped=True)


def read_torch_pickle(path: Path) -> TensorFile:
    """Open a file from before torch 1.6; it is read as a whole.

    Raises: as :func:`read_torch_zip`.
    """
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        scan, file = _Scan(path), cast(IO[bytes], data)
        try:
            if _MAGIC not in scan.look_at(file):
                raise WeightsError(_describe_foreign(path, scan))
            for _ in range(_VERSION_TO_CONTENT):
                scan.look_at(file)
            _check_storages(path, data, scan.storages, scan.look_at(file))
        except WeightsError:
            raise
        except Exception as error:  # pickletools raises many kinds on damaged files
            raise WeightsError(f"{path} is a damaged file of torch's: {error}.") from None
    return _read(path, mapped=False)


def write_torch(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a state_dict. Raises: OSError if the place cannot be written."""
    with path.open("wb") as file:  # given a path, torch writes its name into the archive
        try:
            torch.save(dict(tensors), file)
        except RuntimeError as error:  # of closing the archive, which hides why it cannot
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class _Scan:
    """What a pickle's operations say, found without running them.

    Attributes:
      storages: by key: the first tensor in it, and its bytes.
      texts: the last constants, the newest last; globals are "module name".
    """

    def __init__(self, path: Path) -> None:
        self.storages: dict[str, tuple[str, int]] = {}
        self.texts: deque[str] = deque(maxlen=16)
        self._path = path

    def look_at(self, pickled: IO[bytes]) -> list[object]:
        """Look at one pickle, and check what it claims of tensors.

        Returns: its numbers and texts.
        Raises: WeightsError; and, where it is damaged, whatever pickletools raises.
        """
        constants: list[object] = []
        memo: dict[object, str] = {}
        text: str | None = None
        before: deque[tuple[str, object]] = deque(maxlen=3)
        claim: tuple[str, int] | None = None
        numbers: list[int] = []
        for kind, value in pickle_operations(pickled):
            if kind in _PUTS:
                if text is not None:
                    memo[value] = text
                continue
            text = str(value) if kind in _TEXTS else memo.get(value) if kind in _GETS else None
            if kind == "STACK_GLOBAL":
                text = " ".join(list(self.texts)[-2:])
            if text is not None:
                self.texts.append(text)
            if text is not None or kind in _INTS:
                constants.append(value if text is None else text)
            if claim is not None and isinstance(value, int) and kind in _INTS:
                numbers.append(value)
            elif claim is not None and kind not in _TUPLES:
                self._check_extent(*claim, numbers, kind)
                claim, numbers = None, []
            if kind == "BINPERSID":
                claim = self._claim(list(before))
            before.append((kind, value))
        return constants

    def _claim(self, before: list[tuple[str, object]]) -> tuple[str, int] | None:
        """Return the tensor that a storage is for, and how many numbers it claims to hold.

        A storage is ("storage", its type, key, place, count), in bare files with a None behind.
        """
        texts = list(self.texts)
        if len(texts) < 4 or texts[-4] != "storage":
            return None  # torch itself refuses it
        name = next((text for text in reversed(texts[:-4]) if " " not in text), "")
        kind, key = texts[-3].rpartition(" ")[2], texts[-2]
        if kind not in _ITEM_SIZES:
            raise WeightsError(f"{self._path}: tensor '{name}' has the unknown type {kind}.")
        if len(before) > 2 and before[-2][0] == "NONE":
            del before[-2]
        count = before[-2][1] if len(before) > 1 and before[-2][0] in _INTS else None
        if not isinstance(count, int) or count < 0:
            raise self._unlike_torch(name)
        size = count * _ITEM_SIZES[kind]
        if self.storages.setdefault(key, (name, size))[1] != size:
            raise self._unlike_torch(name)
        return name, count

    def _check_extent(self, name: str, count: int, numbers: list[int], ended_by: str) -> None:
        """Check that a tensor (offset, sizes, strides) lies in its storage, which torch would grow.

        Once made, its storage would have the claimed size, as if it were there.
        """
        if not numbers:
            return  # a storage without a tensor
        offset, rest = numbers[0], numbers[1:]
        sizes, strides = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        if len(sizes) != len(strides) or len(sizes) > 8 or ended_by in _GETS or min(numbers) < 0:
            raise self._unlike_torch(name)
        last = offset + sum(
            (size - 1) * stride for size, stride in zip(sizes, strides, strict=True)
        )
        if 0 not in sizes and last >= count:
            raise WeightsError(
                f"{self._path}: tensor '{name}' claims the shape {tuple(sizes)}, but only "
                f"{count:,} numbers are there."
            )

    def _unlike_torch(self, name: str) -> WeightsError:
        return WeightsError(f"{self._path}: tensor '{name}' is not stored as torch does.")


def _describe_foreign(path: Path, scan: _Scan) -> str:
    called = next((text for text in scan.texts if " " in text), None)
    calls = f" (it calls '{called.replace(' ', '.')}')" if called else ""
    return (
        f"{path} is a pickle, but not one of torch's{calls}. It was not run. If you trust its "
        f"origin, open it where it was made and save only the state_dict, with torch.save."
    )


def _check_storages(
    path: Path, data: mmap.mmap, storages: dict[str, tuple[str, int]], order: Iterable[object]
) -> None:
    """Check that the storages stand behind the pickles of a bare file, each after its length."""
    at = data.tell()
    absent = dict(storages)
    for key in order:
        if not isinstance(key, str) or key not in storages:
            raise WeightsError(f"{path} is a damaged file of torch's: it lists a storage {key!r}.")
        name, size = storages[key]
        at += 8 + size
        if at > len(data):
            raise WeightsError(
                f"{path}: tensor '{name}' is cut short: it ends at byte {at:,}, the file at "
                f"{len(data):,}."
            )
        absent.pop(key, None)
    if absent:
        name, _ = next(iter(absent.values()))
        raise WeightsError(f"{path}: the contents of tensor '{name}' are not there.")


def _read(path: Path, *, mapped: bool) -> TensorFile:
    # torch takes a path of this suffix for a safetensors file without looking at it.
    mapped = mapped and path.suffix != ".safetensors"
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(stand_ins()),
            path.open("rb") as file,
            in_utf8(path) as place,
        ):
            warnings.simplefilter("ignore")
            source = place if mapped else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
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
    tensors, entries = _flatten(path, content)
    checked = {name: _tensor_of(path, name, tensor) for name, tensor in tensors.items()}
    _check_total(path, tensors)
    return TensorFile(path, "torch", checked, entries=entries)


def _tensor_of(path: Path, name: str, tensor: torch.Tensor) -> FileTensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise WeightsError(f"{path}: tensor '{name}' is not an ordinary, dense tensor.")
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        raise WeightsError(f"{path}: tensor '{name}' has the unknown type {tensor.dtype}.")
    size = tensor.numel() * tensor.element_size()
    problem = shape_problem(tensor.shape, tensor.element_size(), size)
    if problem:
        raise WeightsError(f"{path}: tensor '{name}' {problem}.")
    # A view may claim more numbers than are stored: the same ones over and over.
    if size > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: tensor '{name}' claims the shape {tuple(tensor.shape)}, but only "
            f"{tensor.untyped_storage().nbytes():,} bytes are there."
        )
    return FileTensor(tuple(tensor.shape), tensor.dtype, tensor.detach)


def _check_total(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that the tensors together have no more bytes than the file, however it came to that."""
    left = path.stat().st_size
    seen = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            left -= storage.nbytes()
        if left < 0:
            raise WeightsError(f"{path}: tensor '{name}' claims more bytes than the file has.")


def _flatten(path: Path, content: object) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Find the tensors in what a training script saved.

    Returns: them, by the names of the entries that they are in and their own, and how long of each
      name those of the entries are.
    """
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise WeightsError(f"{path} holds a {kind}, not a state_dict: names and tensors.")
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, int] = {}
    seen = {id(content)}  # what stands at several places is one network
    places: deque[tuple[str, int, Mapping[object, object]]] = deque([("", 0, content)])
    while places:
        entry, depth, mapping = places.popleft()
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            if isinstance(value, torch.Tensor):
                if tensors.setdefault(entry + key, value) is not value:
                    raise WeightsError(f"{path}: tensor '{entry + key}' stands there twice.")
                entries[entry + key] = len(entry)
            elif isinstance(value, Mapping) and id(value) not in seen and depth < _DEEPEST:
                seen.add(id(value))
                if len(key) <= _LONGEST_KEY and key.isprintable():
                    places.append((f"{entry}{key}.", depth + 1, value))
    if not tensors:
        keys = ", ".join(repr(key)[:40] for key in list(content)[:8])
        raise WeightsError(f"{path} holds no tensors under a name; it holds {keys or 'nothing'}.")
    return tensors, entries
