"""How a gradient becomes an update: decay groups, optimizers."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import nn

from vitbase.options import OptimizerSection
from vitbase.runtime import Runtime

NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm)


@dataclasses.dataclass(frozen=True)
class DecayGroups:
    """Names of the trainable parameters, by whether weight decay shrinks them."""

    decayed: tuple[str, ...]
    kept: tuple[str, ...]


def decay_groups(model: nn.Module, decay_on: Literal["all_but_norms", "kernels"]) -> DecayGroups:
    """Split parameters into those that decay and those that do not.

    Args:
      decay_on: "all_but_norms" leaves out scales and shifts of the norms (and LayerScale) and
        includes biases, as MindSpore's `vit_base` does, which skips names that hold `gamma` or
        `beta`. "kernels" takes only the weights of linear maps and convolutions.
    """
    norm_owned = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORM_LAYERS)
        for parameter in module.parameters(recurse=False)
    }
    kernel_owned = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    decayed: list[str] = []
    kept: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if decay_on == "kernels":
            decays = id(parameter) in kernel_owned
        else:
            decays = id(parameter) not in norm_owned and not _is_layer_scale(name)
        (decayed if decays else kept).append(name)
    return DecayGroups(tuple(decayed), tuple(kept))


def _is_layer_scale(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in {"scale1", "scale2"}


def build_optimizer(
    model: nn.Module, options: OptimizerSection, runtime: Runtime
) -> torch.optim.Optimizer:
    """Build the optimizer over the model's decay groups, with the learning rate at its peak.

    Momentum is MindSpore's: v = momentum * v + (gradient + weight_decay * p); p = p - lr * v.
    """
    groups = decay_groups(model, options.decay_on)
    parameters = dict(model.named_parameters())
    by_decay = [
        {
            "params": [parameters[name] for name in names],
            "names": list(names),
            "weight_decay": decay,
        }
        for names, decay in ((groups.decayed, options.weight_decay), (groups.kept, 0.0))
        if names
    ]
    if options.optimizer == "momentum":
        return torch.optim.SGD(
            by_decay,
            lr=options.lr_init,
            momentum=options.momentum,
            fused=runtime.fused_optimizer,
        )
    return torch.optim.AdamW(
        by_decay, lr=options.lr_init, betas=options.betas, fused=runtime.fused_optimizer
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
