"""What training scripts save beside tensors, and torch's restricted reader may pass over.

Each of these types, and no other, becomes an object that takes whatever it is given and keeps
nothing. So neither their code runs, nor numpy's, which trusts what a pickle says of its memory.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, Self


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
