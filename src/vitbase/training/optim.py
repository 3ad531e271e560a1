"""How a gradient becomes an update: decay groups, optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from vitbase.config.learning import OptimizerSection
from vitbase.errors import ConfigError
from vitbase.runtime import Runtime
from vitbase.training.foreach import SGD, AdamW
from vitbase.training.lamb import Lamb
from vitbase.training.momentum import Momentum, with_velocity
from vitbase.training.muon import Muon
from vitbase.training.sharded import is_sharded

NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm)
DecayRule = Literal["all", "all_but_norms", "kernels"]
UpdateRule = Literal["momentum", "adamw", "lamb", "muon"]
_BEFORE_THE_BLOCKS = {"stem", "cls_token", "registers", "pos_embed"}


@dataclasses.dataclass(frozen=True)
class DecayGroups:
    """Names of the trainable parameters, by whether weight decay shrinks them."""

    decayed: tuple[str, ...]
    kept: tuple[str, ...]


def decay_groups(model: nn.Module, decay_on: DecayRule) -> DecayGroups:
    """Split parameters into those that decay and those that do not. Frozen ones are left out.

    Args:
      decay_on: "all" is every parameter, as in torchvision's references. "all_but_norms" leaves
        out scales and shifts of the norms (and LayerScale) and includes biases, as MindSpore's
        `vit_base` does, which skips names that hold `gamma` or `beta`. "kernels" takes only the
        weights of linear maps and convolutions, as big_vision, timm, BEiT and MAE do.
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
        if decay_on == "all":
            decays = True
        elif decay_on == "kernels":
            decays = id(parameter) in kernel_owned
        else:
            decays = id(parameter) not in norm_owned and not _is_layer_scale(name)
        (decayed if decays else kept).append(name)
    return DecayGroups(tuple(decayed), tuple(kept))


def _is_layer_scale(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in {"scale1", "scale2"}


def depth_of(name: str, num_blocks: int) -> int:
    """Return how deep in the model a parameter acts, for layer-wise learning rates.

    0 for what makes the tokens (stem, class token, registers, positions), i + 1 for block i, and
    num_blocks + 1 for what follows: final norm, representation layer, head.

    Source: BEiT (arXiv 2106.08254), MAE (arXiv 2111.06377). timm counts a final norm before the
      pooling to the last block.
    """
    room, *rest = name.split(".")
    if room in _BEFORE_THE_BLOCKS:
        return 0
    return int(rest[0]) + 1 if room == "blocks" else num_blocks + 1


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that are updated alike."""

    names: tuple[str, ...]
    weight_decay: float
    lr_scale: float
    """Factor of the learning rate; the same at every step."""


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_on: DecayRule, layer_decay: float = 1.0
) -> list[ParameterGroup]:
    """Group the trainable parameters by weight decay and, where the rate depends on it, depth.

    Args:
      weight_decay: of the parameters that `decay_on` names.
      decay_on: see :func:`decay_groups`.
      layer_decay: the learning rate of each depth is this share of the next one's; 1 for the
        same rate everywhere. What follows the last block has the whole rate.
    Returns: from the input to the output, and decayed before kept; none is empty.
    Source: ELECTRA (arXiv 2003.10555); BEiT (arXiv 2106.08254) for Vision Transformers.
    """
    groups = decay_groups(model, decay_on)
    names = [name for name, _ in model.named_parameters()]  # frozen blocks count, too
    num_blocks = 1 + max(
        (int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1
    )
    found: dict[tuple[int, bool], list[str]] = {}
    for group, decays in ((groups.decayed, True), (groups.kept, False)):
        for name in group:
            depth = depth_of(name, num_blocks) if layer_decay != 1.0 else num_blocks + 1
            found.setdefault((depth, not decays), []).append(name)
    return [
        ParameterGroup(
            tuple(members),
            0.0 if keeps else weight_decay,
            layer_decay ** (num_blocks + 1 - depth),
        )
        for (depth, keeps), members in sorted(found.items())
    ]


def build_optimizer(
    model: nn.Module, options: OptimizerSection, runtime: Runtime
) -> torch.optim.Optimizer:
    """Build the optimizer over the model's groups, with the learning rate at its peak.

    Raises: ConfigError if no parameter is trainable.
    """
    groups = parameter_groups(
        model,
        weight_decay=options.weight_decay,
        decay_on=options.decay_on,
        layer_decay=options.layer_decay,
    )
    if not groups:
        raise ConfigError("Nothing to train: every parameter of the model is frozen.")
    return build_update_rule(
        options.optimizer,
        model,
        groups,
        lr=options.lr_init,
        momentum=options.momentum,
        betas=options.betas,
        fused=runtime.fused_optimizer,
    )


def build_update_rule(
    rule: UpdateRule,
    model: nn.Module,
    groups: Iterable[ParameterGroup],
    *,
    lr: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimizer whose groups carry `names` and `lr_scale` beside what torch needs.

    Args:
      rule: "momentum" is MindSpore's: v = momentum * v + (gradient + weight_decay * p);
        p = p - lr * v. "adamw" and "lamb" decay inside the learning rate: what big_vision writes
        as a decay outside of it, 1e-4 at a rate of 1e-3, is 0.1 here. "muon" is Muon for hidden
        matrices and AdamW for all else, both at AdamW's rates.
      groups: of the model's parameters, see :func:`parameter_groups`.
      fused: one kernel for the whole update; LAMB has none.
    """
    parameters = dict(model.named_parameters())
    as_torch = [
        {
            "params": [parameters[name] for name in group.names],
            "names": list(group.names),
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
            "lr": lr * group.lr_scale,
        }
        for group in groups
    ]
    if rule == "momentum":
        # torch's one-kernel SGD does not take sharded parameters; its AdamW does.
        if not fused or any(is_sharded(p) for p in parameters.values()):
            return Momentum(as_torch, lr=lr, momentum=momentum)
        sgd = SGD(as_torch, lr=lr, momentum=momentum, fused=True)
        if momentum:  # left to its first step, they would be undefined where that is passed over
            for group in sgd.param_groups:
                for parameter in group["params"]:
                    with_velocity(sgd, parameter)
        return sgd
    if rule == "lamb":
        return Lamb(as_torch, lr=lr, betas=betas, eps=eps)
    if rule == "muon":
        if any(is_sharded(p) for p in parameters.values()):
            raise ConfigError(
                "optimizer muon needs whole matrices, and parallel fsdp shards them: give "
                "--parallel ddp, or --optimizer adamw."
            )
        divided = [part for group in as_torch for part in _by_hidden(group, model)]
        return Muon(divided, lr=lr, momentum=momentum, betas=betas, eps=eps, fused=fused)
    return AdamW(as_torch, lr=lr, betas=betas, eps=eps, fused=fused)


def hidden_kernels(model: nn.Module) -> list[str]:
    """Return the names of the matrices between the first layer and the head."""
    kernels = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    first = next((name for name in kernels if name.startswith("stem.")), None)
    return [name for name in kernels if name != first and not name.startswith("head.")]


def _by_hidden(group: dict[str, Any], model: nn.Module) -> list[dict[str, Any]]:
    """Divide a group into hidden matrices, for Muon, and all else; neither is empty."""
    hidden = set(hidden_kernels(model))
    parameters = dict(zip(group["names"], group["params"], strict=True))
    found = []
    for orthogonal in (True, False):
        names = [name for name in group["names"] if (name in hidden) == orthogonal]
        if names:
            part = {"names": names, "params": [parameters[name] for name in names]}
            # Query, key and value are three matrices.
            parts = [3 if name.endswith(".qkv.weight") else 1 for name in names]
            found.append({**group, **part, "orthogonal": orthogonal, "parts": parts})
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group of an optimizer from :func:`build_update_rule`, by its depth."""
    for group in optimizer.param_groups:
        rate = lr * group["lr_scale"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def keep_numbers_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let a one-kernel optimizer read its rates from the device, as a recorded step has to."""
    optimizer._warned_capturable_if_run_uncaptured = True  # as its first steps are
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True


def step_unless(optimizer: torch.optim.Optimizer, found_inf: torch.Tensor | None) -> None:
    """Take the step of an optimizer, unless a flag on the device is 1: then nothing changes.

    The host waits for the flag only where torch has no one-kernel AdamW for the device.

    Args:
      found_inf: float32, one number, 0 or 1, the same on every rank; None is 0, and quicker.
    """
    if found_inf is None:
        optimizer.step()
        return
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not found_inf:
            optimizer.step()
        return
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # torch's own name for it
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
