"""Pickles from outside: looked at before they are read, and what may stand in them beside data.

A pickle is a program. What training scripts save beside tensors becomes, on reading, objects that
take whatever they are given and keep nothing: so neither their code runs, nor numpy's, which trusts
what a pickle says of its memory.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

LARGEST_TUPLE = 10_000
"""Values in a tuple of a pickle, those of tuples inside it counted each time they stand there."""

DEEPEST_TUPLE = 100
"""Tuples in tuples; what arrays and tensors need is three. Python's hash calls itself for each, and
ends the process where the stack does."""


_FEW = 1000  # numbers of a memo that no file is too short for


def pickle_operations(pickled: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the operations of a pickle, by name, and their arguments; none is run.

    Tuples that hold others several times over stand for exponentially many values, all of which are
    visited when such a tuple becomes the key of a dict. A memo is a table up to its largest number,
    allocated at once.

    Raises: ValueError at such a tuple, or number; and, where the pickle is damaged, whatever
      pickletools does.
    """
    sizes: list[int] = []  # of what would stand on the stack
    depths: list[int] = []  # of the same, as tuples
    memo: dict[Any, tuple[int, int]] = {}
    marks: list[int] = []
    for operation, value, place in pickletools.genops(pickled):
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            marks.append(len(sizes))
        elif name == "POP" and marks[-1:] == [len(sizes)]:
            marks.pop()
        elif name.endswith("PUT") or name == "MEMOIZE":
            number = len(memo) if name == "MEMOIZE" else int(value or 0)
            if not 0 <= number <= max(_FEW, place or 0):
                raise ValueError(f"it remembers a value under the number {number}")
            memo[number] = sizes[-1], depths[-1]
        elif name.endswith("GET"):
            size, depth = memo[value]
            sizes.append(size)
            depths.append(depth)
        else:
            marked = pickletools.markobject in before
            start = marks.pop() - before.index(pickletools.markobject) if marked else None
            start = len(sizes) - len(before) if start is None else start
            is_tuple = name.startswith("TUPLE")
            size = 1 + sum(sizes[start:]) if is_tuple else 1
            depth = 1 + max(depths[start:], default=0) if is_tuple else 0
            if size > max(LARGEST_TUPLE, place or 0) or depth > DEEPEST_TUPLE:
                raise ValueError("it holds tuples that stand for too many values")
            del sizes[start:], depths[start:]
            sizes += [size] * len(operation.stack_after)
            depths += [depth] * len(operation.stack_after)
        yield name, value


class _Nothing:
    def __new__(cls, *_: Any) -> Self:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _DType(_Nothing):
    """numpy's types of numbers and texts; not those of objects."""

    def __new__(cls, *arguments: Any) -> Self:
        code = arguments[0] if arguments else None
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?[?biufcSUVmM]\d{0,9}", text):
            raise pickle.UnpicklingError("GLOBAL numpy.dtype-of-objects")
        return object.__new__(cls)


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*_: Any) -> list[Any]:
    return []


_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_NAMES = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "datetime": "datetime date time timedelta timezone",
    "uuid": "UUID",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "torch.torch_version": "TorchVersion",
    "builtins": "int float bool str bytes list dict tuple frozenset slice range",
    "numpy": "ndarray float16 float32 float64 int8 int16 int32 int64 uint8 bool bool_",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what `torch.serialization.safe_globals` takes: stand-ins, and for what they stand."""
    return [
        *(
            (_Nothing, f"{module}.{name}")
            for module, names in _NAMES.items()
            for name in names.split()
        ),
        (_DType, "numpy.dtype"),
        (_empty_dict, "collections.defaultdict"),
        (_empty_list, "collections.deque"),
    ]
