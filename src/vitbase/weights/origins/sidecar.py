"""What stands beside the tensors of a file, and how its values are checked.

What is built with them later trusts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitbase.errors import WeightsError
from vitbase.model.layers import Gelu
from vitbase.model.spec import Pool, ViTSpec

# transformers' ACT2FN, which timm's names are among: names of the two forms.
_GELUS: dict[str, Gelu] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What stands beside the tensors; None where it does not.

    Attributes:
      spec: the whole architecture, as our own metadata have it.
    """

    spec: ViTSpec | None = None
    num_heads: int | None = None
    gelu: Gelu | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    pool: Pool | None = None
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def gelu_of(key: str, activation: object) -> Gelu:
    if not isinstance(activation, str) or activation not in _GELUS:
        raise WeightsError(
            f"its config.json has {key} {activation!r}, which is no GELU that vitbase computes"
        )
    return _GELUS[activation]


def count_of(key: str, value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{key} {value!r} should be a number from 1")
    return value


def size_of(key: str, value: object) -> tuple[int, int] | None:
    """Read a side in pixels, or (height, width)."""
    if value is None:
        return None
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"{key} {value!r} should be a side in pixels, or two")
    return sides[0], sides[1]
