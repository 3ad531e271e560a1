"""Pickles of plain values and of numpy's arrays, read without running anything of theirs.

A pickle is a program: it may name any function and call it. Here every name resolves to a stand-in
that only takes notes, those that an array needs; any other name ends the reading.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import LONGEST_FILE, read_regular
from vitbase.errors import DataError
from vitbase.pickles import pickle_operations

_DTYPES = {"u1": np.dtype("u1"), "b1": np.dtype("b1")} | {
    f"{kind}{size}": np.dtype(f"<{kind}{size}") for kind in "iuf" for size in (2, 4, 8)
}
_DTYPES["i1"] = np.dtype("i1")


def read_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, tuples, strings, bytes, numbers, and arrays of numbers.

    Args:
      path: the file, by Python 2 or 3. Python 2's strings come as bytes.
    Raises: DataError naming the file and what else it asks for, or how it is damaged.
    """
    try:
        content = read_regular(path, LONGEST_FILE)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}") from None
    try:
        for _ in pickle_operations(io.BytesIO(content)):
            pass
        loaded = _Reader(io.BytesIO(content), encoding="bytes").load()
        return _Resolver(most=len(content)).resolve(loaded)
    except _RefusedError as error:
        raise DataError(
            f"{path} is refused: its pickle asks for {error}, which a data file does not need. "
            "Nothing of it was run. Fetch the file from its publisher again."
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise DataError(
            f"{path} is no pickle, or cut short or damaged ({error}). Fetch it again."
        ) from None


class _RefusedError(Exception):
    """The pickle names something else than what arrays need."""


class _Reader(pickle.Unpickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stand_ins = _build_stand_ins()

    def find_class(self, module: str, name: str, /) -> Any:
        known = self.stand_ins.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is None:
            raise _RefusedError(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any, /) -> Any:
        raise _RefusedError("an object outside of the file")


class _Found:
    """What the stand-ins note: an array's or a type's arguments and state."""

    def read(self) -> Any:
        raise NotImplementedError


def _build_stand_ins() -> dict[tuple[str, str], Any]:
    """Make the stand-ins anew for every file: what a pickle does to them dies with it."""

    class DType(_Found):
        def __init__(self, code: Any, *_: Any) -> None:
            self.code = code.decode() if isinstance(code, bytes) else code
            self.swapped = False

        def __setstate__(self, state: Any) -> None:
            self.swapped = state[1] in (">", b">")

        def read(self) -> np.dtype[Any]:
            if self.code not in _DTYPES:
                raise _RefusedError(f"an array of type {self.code!r}")
            found: np.dtype[Any] = _DTYPES[self.code]
            if self.swapped:
                found = found.newbyteorder(">")
            return found

    class Array(_Found):
        state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

        def read(self) -> NDArray[Any]:
            _, shape, dtype, fortran, content = self.state
            if not isinstance(dtype, DType) or not isinstance(content, bytes):
                raise _RefusedError("an array of objects")
            values = np.frombuffer(content, dtype.read())
            return values.reshape(shape, order="F" if fortran else "C")

    def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
        if kind is not Array:
            raise _RefusedError("an array of another kind")
        return Array()

    def encode(text: str, encoding: str) -> bytes:  # how Python 3 writes bytes for Python 2
        if encoding != "latin1":
            raise _RefusedError(f"the encoding {encoding!r}")
        return text.encode("latin-1")

    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("_codecs", "encode"): encode,
    }


class _Resolver:
    """Replaces the stand-ins in a value by what they noted.

    What stands at several places is done once, and counted at each of them: a file of some bytes
    may stand for more values than anyone can visit. Without that, each takes at least a byte.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.done: dict[int, tuple[Any, Any, int]] = {}  # the value, kept so that its id is; result

    def resolve(self, value: Any) -> Any:
        return self._resolve(value)[0]

    def _resolve(self, value: Any) -> tuple[Any, int]:
        """Return what a value becomes, and of how many values it is made."""
        if value is None or isinstance(value, str | bytes | int | float):
            return value, 1
        if id(value) in self.done:
            return self.done[id(value)][1:]
        found: Any
        count = 1
        if isinstance(value, _Found):
            found = value.read()
        elif isinstance(value, dict):
            parts = [self._resolve(item) for item in value.values()]
            found = dict(zip(value, (part for part, _ in parts), strict=True))
            count += len(parts) + sum(number for _, number in parts)
        elif isinstance(value, list | tuple):
            parts = [self._resolve(item) for item in value]
            items = [part for part, _ in parts]
            found = items if isinstance(value, list) else tuple(items)
            count += sum(number for _, number in parts)
        else:
            raise _RefusedError(f"a {type(value).__name__}")
        if count > self.most:
            raise _RefusedError(f"more values than its {self.most:,} bytes can hold")
        self.done[id(value)] = (value, found, count)
        return found, count
