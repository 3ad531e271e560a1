"""One model on several ranks: replicated (DDP), or its training state sharded (FSDP2).

Every rank has its share of the global batch and divides its loss by the whole of it, so gradients
are added up over the ranks, not averaged: both engines divide by the number of ranks, which
`Replicas.loss_factor` undoes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vitbase.model.layers import Conv2d, Linear
from vitbase.model.vit import VisionTransformer
from vitbase.runtime import Runtime, local_ranks
from vitbase.training.sharded import shards_itself, whole

# Weights, gradients and two moments in float32: above this, auto shards them.
_SHARDED_FROM_PARAMETERS = 1_000_000_000


class Replicas:
    """A model and what makes the ranks' gradients one.

    Attributes:
      model: the model itself; its parameters are DTensors where they are sharded.
      sharded: whether they are.
      loss_factor: what a rank multiplies its share of the loss with before the backward pass.
    """

    def __init__(
        self,
        model: VisionTransformer,
        runtime: Runtime,
        parallel: Literal["auto", "ddp", "fsdp"],
        *,
        head_only: bool = False,
    ) -> None:
        self.model = model
        self.runtime = runtime
        self._cast = model.head if head_only and model.head is not None else model
        self.loss_factor = runtime.num_ranks
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.sharded = not head_only and will_shard(parallel, parameters, runtime.num_ranks)
        self._forward: nn.Module = HeadOnly(model) if head_only else model
        if runtime.num_ranks == 1:
            return
        if self.sharded:
            _shard(model, runtime)
        else:
            # The only buffer, fixed positions, never changes: nothing to send before each pass.
            buffers = [name for name, _ in self._forward.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self._forward, buffers
            )
            # A 1x1 kernel has two descriptions of the same memory, of which torch warns in vain.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            # As a view of the message, a gradient is kept once.
            self._forward = DistributedDataParallel(self._forward, gradient_as_bucket_view=True)

    def __call__(self, images_BCHW: torch.Tensor, depth_scales: torch.Tensor | None) -> Any:
        return self._forward(images_BCHW, depth_scales)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Context of a micro-batch: only the last one of an update exchanges gradients."""
        if isinstance(self._forward, DistributedDataParallel):
            return contextlib.nullcontext() if last else self._forward.no_sync()
        if shards_itself(self.model):
            self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def casting(self) -> AbstractContextManager[None]:
        """Context of an update's passes: weights of products are cast to half precision once."""
        if self.runtime.half is None or self.sharded:  # shards are cast before they are gathered
            return contextlib.nullcontext()
        return cast_weights(self._cast, self.runtime.half)

    def clip(self, largest: float | None) -> torch.Tensor:
        """Scale all gradients so that their norm is at most `largest`; None only measures.

        Returns: the norm before, of all gradients of all ranks' shards.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        if largest is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), largest, norm)
        return norm

    def describe(self) -> str:
        """Return how the training state lies on the ranks, for the log."""
        if self.runtime.num_ranks == 1:
            return ""
        return "sharded (FSDP2)" if self.sharded else "replicated (DDP)"


def will_shard(
    parallel: Literal["auto", "ddp", "fsdp"], num_parameters: int, num_ranks: int
) -> bool:
    """Whether the training state of a model is sharded over its ranks."""
    large = parallel == "auto" and num_parameters >= _SHARDED_FROM_PARAMETERS
    return num_ranks > 1 and (parallel == "fsdp" or large)


class HeadOnly(nn.Module):
    """A model that is given what its head reads."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features_BD: torch.Tensor, depth_scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features [B, D] -> logits [B, C]."""
        assert self.model.head is not None
        logits_BC: torch.Tensor = self.model.head(features_BD)
        return logits_BC


@contextlib.contextmanager
def cast_weights(model: nn.Module, half: torch.dtype) -> Iterator[None]:
    """Give layers their weights as a product takes them, and the weights themselves at the end.

    Autocast would cast them in every pass, in the backward pass where activations are computed
    again, and in every run of what was compiled; and what it computes from a weight before a
    product. Norms and scales stay in fp32. A cast keeps nothing, so each pass can go back through
    it, and gradients are added up in fp32.
    """
    layers = [module for module in model.modules() if type(module) in (Linear, Conv2d)]
    own = [(layer, dict(layer._parameters)) for layer in layers]
    try:
        for layer, parameters in own:
            for name, parameter in parameters.items():
                if parameter is not None:
                    layer._parameters[name] = parameter.to(half)  # type: ignore[assignment]
        yield
    finally:
        for layer, parameters in own:
            layer._parameters.update(parameters)


def _shard(model: VisionTransformer, runtime: Runtime) -> None:
    """Shard a model by block: within each server where there are several, else over all ranks.

    Servers then hold copies of each other's shards: weights are gathered over the fast links
    inside a server, and only gradients cross between servers (hybrid sharding). In half precision
    the weights of products are gathered so, and their gradients are added up in fp32.
    """
    from torch.distributed import device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    servers = runtime.num_ranks // local_ranks()
    if servers > 1 and local_ranks() > 1:
        mesh = device_mesh.init_device_mesh(
            runtime.device.type, (servers, local_ranks()), mesh_dim_names=("servers", "devices")
        )
    else:
        mesh = device_mesh.init_device_mesh(runtime.device.type, (runtime.num_ranks,))
    policy = MixedPrecisionPolicy(runtime.half, torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        if runtime.half is None:
            fully_shard(block, mesh=mesh)
        else:  # its norms and scales stay in fp32, with what is outside the blocks
            products = [layer for name, layer in block.named_children() if name in {"attn", "mlp"}]
            fully_shard(products, mesh=mesh, mp_policy=policy)
    # What is outside the blocks is sharded again, too, after each forward pass: between passes the
    # model's parameters are always its shards, also after an evaluation.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def checkpoint_activations(model: VisionTransformer, blocks: int) -> None:
    """Let the first blocks, so many, keep their input only, and be computed again for the backward
    pass. The first ones: when it comes to them, what the others keep is free again.
    """
    again = partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=model.spec.dropout > 0,  # nothing else is drawn inside
    )
    for block in model.blocks[:blocks]:
        block.forward = partial(again, block.forward)


def compile_blocks(model: VisionTransformer) -> None:
    """Compile the repeated block: one compilation serves them all, so that it starts soon."""
    for block in model.blocks:
        block.compile()


def freeze_backbone(model: VisionTransformer) -> None:
    """Let only the head learn (linear probing)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
