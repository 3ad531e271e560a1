"""Tensors that FSDP2 may have sharded: this rank's part, the whole, and norms of the whole.

What shards them takes more than a second to load: a run that shards nothing does not load it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ranks share a tensor."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def shards_itself(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether FSDP2 gathers a module's parameters for its passes, and shards them again."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what this rank holds of each tensor, sharing its memory: all of it, unless sharded.

    For elementwise work, under ``torch.no_grad()``.
    """
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]


def zero_where(found_inf: Tensor, tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with zeros where a flag on the device is 1, whatever stands in them."""
    passed_over = found_inf != 0
    for tensor in tensors:
        tensor.masked_fill_(passed_over, 0.0)


def whole_norms(parameters: Sequence[Tensor], *values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the Euclidean norms of tensors of which this rank may hold a part only.

    Every rank must call it alike, as the parts of the squares are added up over the ranks.

    Args:
      parameters: P tensors; a DTensor among them says how its values are sharded.
      values: lists of P tensors, this rank's parts.
    Returns: for each list [P], the same on every rank.
    """
    squares_VP = torch.stack([torch.stack(torch._foreach_norm(list(part))) for part in values])
    squares_VP.square_()
    sharded: dict[dist.ProcessGroup, list[int]] = {}
    for place, parameter in enumerate(parameters):
        if is_sharded(parameter):
            for dim, placement in enumerate(parameter.placements):
                if placement.is_shard():
                    group = parameter.device_mesh.get_group(dim)
                    sharded.setdefault(group, []).append(place)
    for group, places in sharded.items():  # one message for all parameters
        sums = squares_VP[:, places]
        dist.all_reduce(sums, group=group)
        squares_VP[:, places] = sums
    return squares_VP.sqrt_().unbind()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, which may be sharded (then collective)."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Return the rows that this rank has to store of a tensor, and which is the first of them.

    Of a tensor that is not sharded that is all of it, on the first rank; of one of which several
    servers have copies, the first copy. None: nothing.
    """
    if not is_sharded(tensor):
        return (tensor, 0) if not dist.is_initialized() or dist.get_rank() == 0 else None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, places = tensor.device_mesh, tensor.placements
    for dim, place in enumerate(places):
        if not place.is_shard() and mesh.get_local_rank(dim) != 0:
            return None
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, places)
    return (tensor.to_local(), offset[0]) if shape[0] else None


def like(full: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the device, in memory and over the ranks as a parameter of its shape is.

    Every rank has all of it already, and keeps its shard.
    """
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        mesh, places = parameter.device_mesh, parameter.placements
        return distribute_tensor(full.to(parameter.device), mesh, places, src_data_rank=None)
    return torch.empty_like(parameter).copy_(full)
