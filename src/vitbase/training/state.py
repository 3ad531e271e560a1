"""The state of a run as whole tensors by name, however it lies on the ranks.

What is stored does not depend on the number of ranks, nor on whether they shard it; and only the
first rank needs to see the run folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vitbase.errors import CheckpointError
from vitbase.files import parse_json
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_unfilled
from vitbase.runs.checkpoints import state_files
from vitbase.runtime import Runtime
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.mindspore_state import MindSporeState
from vitbase.training.sharded import is_sharded, like, own_rows, whole
from vitbase.weights.files.safetensors import read_safetensors

TRAINED = "weights"
"""Kind of the weights that learn, where the checkpoint's own weights are their average."""

STEP = "step"
"""Kind of what optimizers keep as one number of each parameter: the updates that it took."""

Readers = Mapping[str, Callable[[], torch.Tensor]]


SLICES = "slices"
"""Where a part of a training state says which rows of a tensor it has, and of how many."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """The training state as one file of it holds it.

    Attributes:
      slices: of a tensor that is only rows of one: the number of the first, and how many it has.
    """

    tensors: dict[str, torch.Tensor]
    slices: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        return {SLICES: json.dumps(self.slices, sort_keys=True)} if self.slices else {}


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

    def collect(self, *, in_parts: bool = False) -> tuple[dict[str, torch.Tensor], Stored]:
        """Gather the weights and the training state on the first rank (collective).

        Args:
          in_parts: leave the training state where it lies.
        Returns: the weights, whole, by name, on the first rank alone; the training state, likewise,
          or the rows of it that this rank has to store.
        """
        own = dict(self.model.named_parameters())
        averaged = self.average.state_dict() if self.average else {}
        trained = [(f"{TRAINED}/{name}", own[name]) for name in own if self.average]
        kept = [*trained, *self._optimizer_tensors()]
        weights = self._gathered({**own, **averaged}.items())
        if not in_parts:
            return weights, Stored(self._gathered(kept))
        state = Stored({})
        for name, tensor in kept:
            if (found := own_rows(tensor.detach())) is not None:
                state.tensors[name], start = found
                if is_sharded(tensor):
                    state.slices[name] = (start, len(tensor))
        return weights, state

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
        stored: dict[str, set[str]] = {name: set() for name in named_parameters(self.optimizer)}
        trained: set[str] = set()
        with torch.no_grad():
            for key, value in self._delivered(read):
                kind, _, name = key.partition("/")
                self._put(kind, name, value, origin)
                if kind == TRAINED:
                    trained.add(name)
                else:
                    stored[name].add(kind)
        if self.average is not None and trained != dict(self.model.named_parameters()).keys():
            raise CheckpointError(f"{origin} does not store every weight that learns.")
        rules = {  # Muon keeps other tensors of its matrices
            name: bool(group.get("orthogonal"))
            for group in self.optimizer.param_groups
            for name in group["names"]
        }
        kept = {(rules[name], frozenset(kinds)) for name, kinds in stored.items()}
        if len(kept) > len(set(rules.values())):
            # The optimizer would begin anew with those that are missing, and nobody would know.
            raise CheckpointError(f"{origin} does not store the same of every parameter.")

    def _put(self, kind: str, name: str, value: torch.Tensor, origin: Path) -> None:
        learning = named_parameters(self.optimizer)
        parameters = dict(self.model.named_parameters()) if kind == TRAINED else learning
        parameter = parameters.get(name)
        fits = parameter is not None and value.shape == (() if kind == STEP else parameter.shape)
        if parameter is None or not fits:
            raise CheckpointError(
                f"{origin} stores {kind} for '{name}', which is not this model's."
            )
        if kind == TRAINED:
            parameter.copy_(like(value, parameter))
        elif kind != STEP:
            self.optimizer.state[parameter][kind] = like(value, parameter)
        elif 0 <= float(value) < 2**53:
            # Torch's one-kernel AdamW counts its steps on the device, LAMB on the host.
            fused = any(group.get("fused") for group in self.optimizer.param_groups)
            place = parameter.device if fused else torch.device("cpu")
            self.optimizer.state[parameter][kind] = value.float().to(place)
        else:
            raise CheckpointError(f"{origin} stores {float(value)} updates of '{name}'.")

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
                found[name] = all_of_it.cpu() if is_sharded(tensor) else all_of_it
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


def stored_tensors(checkpoint: Path) -> Callable[[], Readers]:
    """Return what `RunState.restore` needs to read the training state of a checkpoint.

    Its tensors raise CheckpointError where rows are missing, or there twice.
    """

    def read() -> Readers:
        parts: dict[str, list[tuple[tuple[int, int] | None, Callable[[], torch.Tensor]]]] = {}
        for path in state_files(checkpoint):
            file = read_safetensors(path)
            slices = _slices_of(file.metadata, path)
            for name, tensor in file.tensors.items():
                parts.setdefault(name, []).append((slices.get(name), tensor.read))
        return {name: partial(_joined, name, found, checkpoint) for name, found in parts.items()}

    return read


def _joined(
    name: str,
    parts: list[tuple[tuple[int, int] | None, Callable[[], torch.Tensor]]],
    checkpoint: Path,
) -> torch.Tensor:
    """Read a tensor, of which each part may have some rows."""
    if parts[0][0] is None:
        return parts[0][1]()
    ordered = sorted(((where or (0, 0), get()) for where, get in parts), key=lambda p: p[0])
    tensors = [tensor for _, tensor in ordered]
    starts = [0, *itertools.accumulate(len(tensor) if tensor.ndim else 0 for tensor in tensors)]
    said = [*(start for (start, _), _ in ordered), ordered[0][0][1]]
    if starts != said or len({tensor.shape[1:] for tensor in tensors}) > 1:
        raise CheckpointError(f"{checkpoint} does not store all rows of '{name}' once.")
    return torch.cat(tensors)


def _slices_of(metadata: Mapping[str, str], path: Path) -> dict[str, tuple[int, int]]:
    try:
        found = parse_json(metadata.get(SLICES, "{}"))
        return {str(name): (int(start), int(rows)) for name, (start, rows) in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{path} does not say which rows of its tensors it stores.") from None


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
