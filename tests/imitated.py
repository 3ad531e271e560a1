"""What only some devices have, imitated on a CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ranks
import torch

from vitbase.model.zoo import VARIANTS
from vitbase.runtime import Runtime
from vitbase.training import fp8


def imitate_fp8(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let products in FP8 be computed in fp32, of numbers rounded to FP8; `put` may undo it."""
    asked = fp8._config
    put(fp8, "_config", lambda: dataclasses.replace(asked(), emulate=True))
    put(Runtime, "has_fp8", True)


def train_imitating(recipe: str, options: dict[str, Any]) -> None:
    """Train as a rank, with FP8, without a C++ compiler, and a model whose sizes suit FP8."""
    imitate_fp8()
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    sizes = {"width": 32, "num_heads": 2, "mlp_dim": 64, "depth": 2}
    VARIANTS["testing"] = VARIANTS["testing"].replace(**sizes)
    ranks.train(recipe, options)
