"""What MindSpore's own training checkpoints hold beside the weights: momentum and position."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from vitbase.errors import CheckpointError
from vitbase.weights.load import OpenedWeights
from vitbase.weights.origins.dialect import to_ours


@dataclasses.dataclass(frozen=True)
class MindSporeState:
    """What MindSpore's Momentum keeps in a training checkpoint, by our names of parameters."""

    path: Path
    updates: int
    momentum: dict[str, torch.Tensor]


def read_mindspore_state(opened: OpenedWeights) -> MindSporeState:
    """Read momentum and position out of a training checkpoint of MindSpore's `vit_base`.

    Raises: CheckpointError if it holds none, or not for every weight.
    """
    path = opened.path
    stored = opened.file.tensors
    prefix = opened.dialect.momentum_prefix
    if prefix is None or "global_step" not in stored:
        raise CheckpointError(
            f"{path} is no training checkpoint of MindSpore: it has no tensor 'global_step'. To "
            f"start a new run from its weights, leave out --continue_training."
        )
    moments = {name.removeprefix(prefix): t for name, t in stored.items() if prefix in name}
    momentum = {}
    for name, weight in opened.ours.items():
        theirs = {part: moments[part] for part in weight.theirs if part in moments}
        shapes = [moment.shape for moment in theirs.values()]
        if shapes != [stored[part].shape for part in weight.theirs]:
            raise CheckpointError(
                f"{path}: tensor '{prefix}{weight.theirs[0]}', the momentum of a weight, is "
                f"missing or has another shape than it."
            )
        momentum[name] = to_ours(opened.dialect, theirs)[0][name].read()
        if not torch.isfinite(momentum[name]).all():
            raise CheckpointError(f"{path}: tensor '{prefix}{weight.theirs[0]}' is not finite.")
    step = stored["global_step"].read().flatten()
    if step.numel() != 1 or int(step[0]) < 0:
        raise CheckpointError(f"{path}: tensor 'global_step' should be one number of updates.")
    return MindSporeState(path, int(step[0]), momentum)
