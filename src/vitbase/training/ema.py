"""The moving average of the weights along a run, which is often better than the last of them.

Averages are tensors beside the model's parameters, sharded as they are: everything here is
elementwise, so the number of ranks changes nothing. Of parameters alone, because the models have
no buffers that learn; of trainable ones alone, because frozen ones are their own average.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from vitbase.errors import CheckpointError
from vitbase.training.sharded import is_sharded, like, local_parts, shards_itself


class ExponentialMovingAverage:
    """Keeps average = decay * average + (1 - decay) * parameter, in float32.

    Published recipes mean different things by their decay: DeiT and MAE average after every update
    (0.99996, 0.9999); torchvision after every 32nd, with 1 - (1 - 0.99998) * global batch * 32 /
    epochs, which is 0.99126 for ViT-B/16, and only copies the weights while the learning rate
    warms up. ``decay`` is what one averaging uses.

    Args:
      model: bare, on its device and sharded already, if it is going to be. Not copied.
      decay: share of the old average, in [0, 1).
      every_steps: average after updates whose number is a multiple of this.
      start_step: up to this update, the average is a copy of the weights.
    Source: Polyak and Juditsky 1992; torchvision, references/classification/train.py;
      DeiT (arXiv 2012.12877) table 9; MAE (arXiv 2111.06377) table 11.
    """

    def __init__(
        self, model: nn.Module, *, decay: float, every_steps: int = 1, start_step: int = 0
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the average's decay should be in [0, 1), and is {decay}")
        if every_steps < 1:
            raise ValueError(f"every_steps should be 1 or more, and is {every_steps}")
        self.decay, self.every_steps, self.start_step = decay, every_steps, start_step
        self._model = model
        self._applied = False
        self._reshard()
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, updates: int, found_inf: Tensor | None = None) -> None:
        """Take the weights after an update into the average, if it is that update's turn.

        Args:
          updates: taken since the run began, this one included.
          found_inf: one number on the device; where it is 1, the average stays as it is.
        """
        if self._applied:
            raise RuntimeError("the model holds its average: an update would average the average")
        if updates % self.every_steps:
            return
        averages = local_parts(self._averages.values())
        parameters = [parameter.float() for parameter in local_parts(self._parameters.values())]
        if updates <= self.start_step:
            if found_inf is not None:
                kept = zip(parameters, averages, strict=True)
                parameters = [torch.where(found_inf == 0, new, old) for new, old in kept]
            torch._foreach_copy_(averages, parameters)
        elif found_inf is None:
            torch._foreach_lerp_(averages, parameters, 1 - self.decay)
        else:
            share = torch.where(found_inf == 0, 1 - self.decay, 0.0).to(torch.float32)
            torch._foreach_lerp_(averages, parameters, [share] * len(averages))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model, and its own weights back at the end, bit for bit.

        Takes the memory of the trainable parameters once more while it lasts.
        """
        if self._applied:
            raise RuntimeError("the model holds its average already")
        parameters = local_parts(self._parameters.values())
        with torch.no_grad():
            own = [parameter.clone() for parameter in parameters]
            self._fill(parameters, local_parts(self._averages.values()))
        self._applied = True
        try:
            yield
        finally:
            with torch.no_grad():
                self._fill(parameters, own)
            self._applied = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name: the tensors themselves, sharded as the model."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averages back, in place.

        Args:
          state: as from :meth:`state_dict`; where the model is sharded, whole tensors will do.
        Raises: CheckpointError if they belong to other parameters; nothing is changed then.
        """
        strange = sorted(set(state) ^ set(self._averages))
        if strange:
            held = "has no average for" if strange[0] in self._averages else "has an average for"
            raise CheckpointError(
                f"The checkpoint {held} '{strange[0]}'; this run averages {len(self._averages)} "
                f"parameters, the checkpoint {len(state)}. Continue with the options it was "
                f"written with, or start anew in another --output_dir."
            )
        for name, average in self._averages.items():
            if state[name].shape != average.shape:
                raise CheckpointError(
                    f"The checkpoint's average of '{name}' is of shape {tuple(state[name].shape)}, "
                    f"the parameter of {tuple(average.shape)}: it is another model's."
                )
        for name, average in self._averages.items():
            value = state[name]
            average.copy_(value if is_sharded(value) else like(value, average))

    def _fill(self, parameters: list[Tensor], values: list[Tensor]) -> None:
        self._reshard()
        torch._foreach_copy_(parameters, values)

    def _reshard(self) -> None:
        """Drop what FSDP2 still holds gathered: it would outlive a change of the shards."""
        for module in self._model.modules():
            if shards_itself(module):
                module.reshard()
