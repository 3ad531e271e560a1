"""The state of a run as whole tensors by name, however it lies on the ranks.

What is stored does not depend on the number of ranks, nor on whether they shard it; and only the
first rank needs to see the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from vitbase.errors import CheckpointError
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_unfilled
from vitbase.runtime import Runtime
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.mindspore_state import MindSporeState
from vitbase.training.sharded import like, whole

TRAINED = "weights"
"""Kind of the weights that learn, where the checkpoint's own weights are their average."""

Readers = Mapping[str, Callable[[], torch.Tensor]]


class RunState:
    """The tensors of a run: the weights, what the optimizer keeps of each, and their average.

    A checkpoint's weights are the average where there is one: they are what was evaluated. The
    weights that learn are then part of the training state.
    """

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: torch.optim.Optimizer,
        average: ExponentialMovingAverage | None,
        runtime: Runtime,
    ) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average
        self.runtime = runtime

    def collect(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Gather the weights and the training state on the first rank (collective).

        Returns: on the first rank whole tensors by name; on the others nothing.
        """
        own = dict(self.model.named_parameters())
        if self.average is None:
            return self._gathered(own.items()), self._gathered(self._optimizer_tensors())
        weights = self._gathered({**own, **self.average.state_dict()}.items())
        trained = ((f"{TRAINED}/{name}", weight) for name, weight in own.items())
        return weights, self._gathered([*trained, *self._optimizer_tensors()])

    def collect_weights(self) -> dict[str, torch.Tensor]:
        """Gather the weights that learn on the first rank (collective). Returns: as `collect`."""
        return self._gathered(self.model.named_parameters())

    def refill(self, read: Callable[[], Readers]) -> None:
        """Overwrite the weights of the model (collective). Args: as of :meth:`restore`."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self._delivered(read):
                own[name].copy_(like(value, own[name]))

    def filled(self, weights: Mapping[str, torch.Tensor]) -> VisionTransformer:
        """Return a model like this one that holds whole weights, without copying them."""
        twin = build_unfilled(self.model.spec)
        twin.load_state_dict(weights, assign=True)
        return twin

    def restore(self, read: Callable[[], Readers], origin: Path) -> None:
        """Put stored tensors back, on a model that has the checkpoint's weights (collective).

        Args:
          read: called on the first rank; returns for each name a function that reads the tensor.
        Raises: CheckpointError if they belong to other parameters.
        """
        if self.average is not None:
            own = dict(self.model.named_parameters())
            self.average.load_state_dict({name: own[name] for name in self.average.state_dict()})
        with torch.no_grad():
            for key, value in self._delivered(read):
                self._put(key, value, origin)

    def _put(self, key: str, value: torch.Tensor, origin: Path) -> None:
        kind, name = key.split("/", 1)
        learning = named_parameters(self.optimizer)
        parameters = dict(self.model.named_parameters()) if kind == TRAINED else learning
        parameter = parameters.get(name)
        if parameter is None or value.shape not in ((), parameter.shape):
            raise CheckpointError(
                f"{origin} stores {kind} for '{name}', which is not this model's."
            )
        if kind == TRAINED:
            parameter.copy_(like(value, parameter))
        elif value.ndim:
            self.optimizer.state[parameter][kind] = like(value, parameter)
        else:  # torch's one-kernel AdamW counts its steps on the device, LAMB on the host
            fused = any(group.get("fused") for group in self.optimizer.param_groups)
            self.optimizer.state[parameter][kind] = value.to(parameter.device if fused else "cpu")

    def _optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in named_parameters(self.optimizer).items():
            for kind, value in self.optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    yield f"{kind}/{name}", value

    def _gathered(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        found = {}
        for name, tensor in tensors:
            all_of_it = whole(tensor.detach())  # one after the other: the device need not hold all
            if self.runtime.is_first:
                found[name] = all_of_it.cpu() if isinstance(tensor, DTensor) else all_of_it
        return found

    def _delivered(self, read: Callable[[], Readers]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what the first rank reads, whole and on every rank."""
        if self.runtime.num_ranks == 1:
            for name, get in read().items():
                yield name, get()
            return
        readers: dict[str, Callable[[], torch.Tensor]] = {}

        def describe() -> list[tuple[str, torch.Size, torch.dtype]]:
            readers.update(read())
            made = ((name, get()) for name, get in readers.items())
            return [(name, tensor.shape, tensor.dtype) for name, tensor in made]

        for name, shape, dtype in self.runtime.from_first(describe):
            if self.runtime.is_first:
                tensor = readers[name]().to(self.runtime.device).contiguous()
            else:
                tensor = torch.empty(shape, dtype=dtype, device=self.runtime.device)
            self.runtime.broadcast(tensor)
            yield name, tensor


def stored_tensors(path: Path) -> Callable[[], Readers]:
    """Return what `RunState.restore` needs to read a safetensors file."""

    def read() -> Readers:
        file: Any = safe_open(path, framework="pt")

        def reader(name: str) -> Callable[[], torch.Tensor]:
            return lambda: file.get_tensor(name)

        names: list[str] = file.keys()
        return {name: reader(name) for name in names}

    return read


def momentum_tensors(state: MindSporeState) -> Callable[[], Readers]:
    """Return what `RunState.restore` needs to take over MindSpore's momentum."""

    def reader(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    return lambda: {
        f"momentum_buffer/{name}": reader(tensor) for name, tensor in state.momentum.items()
    }


def share_model(runtime: Runtime, model: VisionTransformer) -> None:
    """Give every rank the first one's weights (collective). The model is on the device."""
    for parameter in model.parameters():
        runtime.broadcast(parameter.data)


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer changes, by name."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
