"""What stands beside the tensors of a file, and how its values are checked.

What is built with them later trusts them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def _pair(size: object) -> object:
    """Read a side in pixels, or (height, width); whatever else it is stays."""
    if isinstance(size, list):
        return tuple(size)
    return (size, size) if isinstance(size, int) else size


_Positive = Annotated[int, Field(ge=1)]


class Sidecar(BaseModel):
    """What stands beside the tensors; None where it does not.

    Attributes:
      spec: the whole architecture, as our own metadata have it.
    Raises: ValueError if a value is of another type or impossible.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    spec: ViTSpec | None = None
    num_heads: _Positive | None = None
    gelu: Gelu | None = None
    norm_eps: Annotated[float, Field(ge=0.0)] | None = None
    image_size: Annotated[tuple[_Positive, _Positive], BeforeValidator(_pair)] | None = None
    pool: Pool | None = None
    preprocess: dict[str, Any] = {}
    labels: tuple[str, ...] | None = None


def gelu_of(key: str, activation: object) -> Gelu:
    if not isinstance(activation, str) or activation not in _GELUS:
        raise WeightsError(
            f"its config.json has {key} {activation!r}, which is no GELU that vitbase computes"
        )
    return _GELUS[activation]
