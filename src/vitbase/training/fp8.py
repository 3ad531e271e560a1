"""Products of the blocks in FP8, by torchao: twice bf16's rate where a device has units for it.

Source: FP8 Formats for Deep Learning (arXiv 2209.05433); torchao's float8 training, recipe
  rowwise_with_gw_hp: each token and each row of a weight has a scale of its own, found anew for
  each product, and gradients of weights are computed in bf16. A scale of more than a token would
  go by which images a device has beside each other, and so would what is learned.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitbase.config.config import Config
from vitbase.errors import ConfigError, DeviceError
from vitbase.model.vit import VisionTransformer
from vitbase.runtime import Runtime

_MULTIPLE = 16
"""What the sizes of a product's matrices have to be a multiple of."""


def check_fp8(config: Config, runtime: Runtime) -> None:
    """Check that a run can have products in FP8, if it asks for them.

    Raises: DeviceError or ConfigError saying what is in the way.
    """
    if not config.run.fp8:
        return
    if not runtime.has_fp8:
        raise DeviceError(
            f"fp8 needs a GPU that multiplies in FP8: NVIDIA's of compute capability 8.9 or later "
            f"(L4, RTX 40, H100 and after). This run computes on {runtime.machine}. Leave out "
            f"--fp8."
        )
    if runtime.precision != "bf16":
        raise ConfigError(
            f"fp8 stands beside bf16, in which all else is computed, and precision is "
            f"{runtime.precision}: give --precision bf16, or leave out --fp8."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("Option 'fp8' needs torchao: pip install 'vitbase[fp8]'.")


def multiply_in_fp8(model: VisionTransformer) -> int:
    """Let the linear layers of the blocks learn in FP8, where their sizes allow it.

    Their parameters stay what they are, by name, type and value, and a model that is evaluated
    computes as one from a checkpoint does.

    Returns: how many layers these are.
    Raises: ConfigError if there is none.
    """
    # It says at its import which of its kernels, none of which are used here, do not fit torch.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from torchao.float8 import convert_to_float8_training

    layers = [
        name
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear) and _fits(module)
    ]
    if not layers:
        raise ConfigError(
            f"fp8 needs layers whose sizes are multiples of {_MULTIPLE}; {model.spec.name} has "
            f"none. Leave out --fp8."
        )
    convert_to_float8_training(
        model, module_filter_fn=lambda _, name: name in layers, config=_config()
    )
    for name in layers:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.__dict__["forward"] = functools.partial(_forward, layer, layer.forward)
    return len(layers)


def _forward(layer: nn.Linear, in_fp8: Callable[[Tensor], Tensor], x_BND: Tensor) -> Tensor:
    if not layer.training:
        return nn.Linear.forward(layer, x_BND)
    if torch.is_autocast_enabled(kind := x_BND.device.type):  # torchao looks at a GPU's alone
        x_BND = x_BND.to(torch.get_autocast_dtype(kind))
    return in_fp8(x_BND)


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0


def _config() -> Any:
    from torchao.float8 import Float8LinearConfig

    return Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp")
