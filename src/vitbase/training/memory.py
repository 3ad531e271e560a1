"""The memory that training takes on a device, and what is computed again so that it fits."""

from __future__ import annotations

import dataclasses

from vitbase.config.config import Config
from vitbase.errors import ConfigError
from vitbase.model.cost import count_kept
from vitbase.model.spec import ViTSpec

_GIBI = 2**30

OPTIMIZER_COPIES = {"momentum": 1, "adamw": 2, "lamb": 2, "muon": 1}
"""Tensors that are kept for each parameter; of Muon, for nearly all."""

_WORKSPACE = 0.1
"""Share of a device's free memory that is left to what is not counted: workspace, and its gaps."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on a device, without workspace.

    Attributes:
      state: weights, gradients, what the optimizer and an average keep, casts to half precision.
      activations: at the fullest moment of an update.
      recomputed: blocks that are computed again.
    """

    state: int
    activations: int
    recomputed: int = 0

    @property
    def total(self) -> int:
        return self.state + self.activations


def copies_kept(config: Config) -> int:
    """Return how many more tensors are kept for each parameter that learns."""
    optimizer = config.optimizer
    return OPTIMIZER_COPIES[optimizer.optimizer] + (optimizer.ema_decay is not None)


def training_memory(
    config: Config,
    spec: ViTSpec,
    *,
    parameters: int,
    trainable: int,
    batch_size: int,
    half: bool,
    shards: int = 1,
    free: int | None = None,
) -> Memory:
    """Count the memory of a run, and choose how many blocks are computed again.

    Args:
      parameters, trainable: of the whole model.
      batch_size: images of a forward pass.
      half: whether products are computed in half precision.
      shards: ranks that share the state.
      free: bytes of the device, before there is a model; None where it is not here.
    Raises: ConfigError if the memory that is allowed is too little.
    """
    state = 4 * (parameters + trainable * (1 + copies_kept(config))) // shards
    state += 2 * parameters * half * (shards == 1)

    def at(recomputed: int) -> Memory:
        head_only = config.model.freeze_backbone
        kept = count_kept(spec, head_only=head_only, recomputed=recomputed)
        return Memory(state, kept.bytes_of(batch_size, half=half), recomputed)

    most = spec.depth - 1
    if config.model.activation_checkpointing:
        return at(most)
    allowed = config.model.memory_budget
    if allowed is None or (allowed == 0 and free is None):
        return at(0)
    limit = allowed * _GIBI if allowed or free is None else (1 - _WORKSPACE) * free
    found = next((memory for memory in map(at, range(spec.depth)) if memory.total <= limit), None)
    if found is None and allowed:
        raise ConfigError(
            f"memory_budget {allowed:g} GiB is less than this run needs: {batch_size} images at "
            f"once take {at(most).total / _GIBI:.3g} GiB with all blocks but the last computed "
            f"again. Give a smaller --batch_size, or a larger --memory_budget."
        )
    return found or at(most)
