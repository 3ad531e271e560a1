"""A model that learns on MindSpore, as loop, log and evaluation see one that learns on torch.

They ask for little: to take an update, to classify images, to count parameters. So both engines
have one loop, one log and one evaluation, in `training/` and `evaluation/`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import mindspore as ms
import numpy as np
import torch
from mindspore import Parameter, Tensor, ops
from numpy.typing import NDArray

from vitbase.config.batch import BatchLayout
from vitbase.config.config import Config
from vitbase.config.preprocess import Preprocess
from vitbase.data.loader import Batch
from vitbase.data.mix import Mix
from vitbase.data.normalize import normalize
from vitbase.mindspore.devices import MindSporeRuntime
from vitbase.mindspore.fits import check_spec
from vitbase.mindspore.model import Array, Network, fill
from vitbase.mindspore.update import COMPILED, Classify, Steps, build_optimizer, compiled
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.training.objective import Objective
from vitbase.training.optim import parameter_groups
from vitbase.training.parallel import Replicas
from vitbase.training.schedule import Schedule
from vitbase.training.step import Learner, Taken
from vitbase.weights.origins.dialect import their_names, to_theirs
from vitbase.weights.origins.mindspore import MINDSPORE


class Twin(VisionTransformer):
    """What torch's code takes for a model: its parameters have shapes alone, MindSpore computes.

    Args:
      spec: the architecture.
      network: with the weights.
      preprocess: what its images become.
    """

    def __init__(self, spec: ViTSpec, network: Network, preprocess: Preprocess) -> None:
        with torch.device("meta"):
            super().__init__(spec)
        self.__dict__["network"] = network  # no module of torch's
        self._classify = compiled(Classify(network, preprocess), COMPILED)
        self._rows = 0

    @classmethod
    def of(
        cls, model: VisionTransformer, runtime: MindSporeRuntime, preprocess: Preprocess
    ) -> Twin:
        """Hand a model of torch's over to MindSpore.

        Raises: ConfigError if it is no plain Vision Transformer.
        """
        check_spec(model.spec)
        network = Network(model.spec, fused=runtime.target == "Ascend")
        fill(network, arrays_of(model.state_dict(), model.spec))
        if runtime.precision != "fp32":
            network.compute_in(ms.float16 if runtime.precision == "fp16" else ms.bfloat16)
        return cls(model.spec, network, preprocess)

    def forward(self, images_BCHW: torch.Tensor, depth_scales: torch.Tensor | None = None) -> Any:
        """Classify normalised images. Returns: logits [B, C]."""
        images_BHWC = channels_last(images_BCHW)
        count = len(images_BHWC)
        # A graph is compiled for each number of images: the last few are made as many as before.
        self._rows = max(self._rows, count)
        missing = self._rows - count
        if missing:
            images_BHWC = np.pad(images_BHWC, [(0, missing), (0, 0), (0, 0), (0, 0)])
        return torch.from_numpy(self._classify(Tensor(images_BHWC)).asnumpy()[:count])


def channels_last(images_BCHW: torch.Tensor) -> NDArray[Any]:
    """Return images with their channels last, as they lie in memory already."""
    return np.ascontiguousarray(images_BCHW.permute(0, 2, 3, 1).numpy())


def arrays_of(state: Mapping[str, torch.Tensor], spec: ViTSpec) -> dict[str, Array]:
    """Return tensors by our names as arrays by MindSpore's."""
    found: dict[str, Array] = {}
    for name, value in state.items():
        for theirs, part in to_theirs(MINDSPORE, name, value, spec.num_heads).items():
            found[theirs] = part.detach().numpy()
    return found


class MindSporeLearner(Learner):
    """Takes updates on MindSpore, and is a `Learner` to whoever drives one.

    Args: as of `Learner`; its model is one of MindSpore's.
    """

    network: Network
    runtime: MindSporeRuntime

    def __init__(
        self,
        model: Twin,
        config: Config,
        runtime: MindSporeRuntime,
        layout: BatchLayout,
        schedule: Schedule,
        objective: Objective,
    ) -> None:
        # Nothing of what the base sets up is there: optimizer, average and scaler are torch's.
        self.model, self.runtime, self.layout = model, runtime, layout
        self.schedule, self.objective, self.average = schedule, objective, None
        self.on_features = False
        self.preprocess, self.clip_norm = config.data.preprocess, config.optimizer.clip_norm
        how = "replicated (msrun)" if runtime.num_ranks > 1 else ""
        self.replicas = cast(Replicas, _Words(how))
        self.network = model.__dict__["network"]
        self.optimizer: Any = build_optimizer(
            self.network.trainable_params(),
            parameter_groups(
                model,
                weight_decay=config.optimizer.weight_decay,
                decay_on=config.optimizer.decay_on,
            ),
            functools.partial(their_names, MINDSPORE),
            config.optimizer,
        )
        self.scaling = LossScale(runtime.precision == "fp16")
        classify = Classify(self.network, self.preprocess)
        self.parts = Steps.of(
            classify, self.optimizer, num_ranks=runtime.num_ranks, as_graph=COMPILED
        )

    def parameters(self) -> list[Parameter]:
        """Return the weights, and what the optimizer keeps, in the order of MindSpore's files."""
        own = list(self.network.get_parameters())
        names = {parameter.name for parameter in own}
        return [*own, *(p for p in self.optimizer.get_parameters() if p.name not in names)]

    def step(
        self,
        update: int,
        batches: Iterator[Batch],
        mix: Mix,
        *,
        measure: bool = False,
        settle: Callable[[], None] = lambda: None,
    ) -> Taken:
        lr = self.schedule.at(update)
        ops.assign(self.optimizer.learning_rate, Tensor(lr, ms.float32))
        taken = Taken(lr, torch.zeros((), dtype=torch.float64))
        factor = Tensor(self.scaling.value / self.layout.global_batch, ms.float32)
        gradients = None
        for _ in range(self.layout.accumulation_steps):
            batch = next(batches)
            loss, logits_BC, found = self.parts.gradients(*self._inputs(batch, mix), factor)
            if gradients is not None:
                found = self.parts.add(ms.mutable(gradients), ms.mutable(found))
            gradients = found
            taken.loss_sum += float(loss.asnumpy())
            finite_B = np.isfinite(logits_BC.asnumpy()).all(1)
            taken.passes.append((batch.positions, torch.from_numpy(finite_B)))
            taken.bad += batch.bad
        if self.parts.share is not None:
            with self.runtime.naming_lost_ranks():
                gradients = self.parts.share(ms.mutable(gradients))
        self._apply(gradients, taken, measure)
        return taken

    def _inputs(self, batch: Batch, mix: Mix) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, targets, and which of the images count."""
        images: NDArray[Any] = batch.images.numpy()
        if mix.kind != "none":  # by torch, on the host, as its code has it
            normalised_BCHW = normalize(batch.images, self.preprocess)
            images = channels_last(mix.images(normalised_BCHW, batch.labels))
        objective = self.objective
        targets_BC = mix.targets(batch.labels, objective.num_classes, objective.smoothing)
        counted_B = (batch.labels >= 0).float()
        return Tensor(images), Tensor(targets_BC.numpy()), Tensor(counted_B.numpy())

    def _apply(self, gradients: Any, taken: Taken, measure: bool) -> None:
        """Let the optimizer take the gradients: as they are, or unscaled, or clipped."""
        factor = 1.0 / self.scaling.value
        if measure or self.clip_norm is not None or self.scaling.on:
            norm = float(self.parts.norm(ms.mutable(gradients)).asnumpy()) * factor
            taken.gradient_norm = torch.tensor(norm)
            if not self.scaling.update(finite=bool(np.isfinite(norm))):
                return
            if self.clip_norm is not None:
                factor *= min(1.0, self.clip_norm / (norm + 1e-6))
        if factor != 1.0:
            gradients = self.parts.scale(ms.mutable(gradients), Tensor(factor, ms.float32))
        self.optimizer(ms.mutable(gradients))


class LossScale:
    """Dynamic loss scaling: halved where gradients overflow, doubled after 2,000 updates.

    The numbers are those of torch's GradScaler, and MindSpore's DynamicLossScaleManager.
    """

    def __init__(self, on: bool) -> None:
        self.on, self.value, self.since = on, 2.0**16 if on else 1.0, 0

    def update(self, *, finite: bool) -> bool:
        """Take in whether gradients are finite. Returns: whether the update is to be taken."""
        if not self.on:
            return True
        self.since = self.since + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.since == 2000:
            self.value, self.since = self.value * 2, 0
        return finite

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.value, "_growth_tracker": self.since} if self.on else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.on and state:
            self.value, self.since = float(state["scale"]), int(state["_growth_tracker"])


class _Words:
    """How the training state lies on the ranks, for the log."""

    def __init__(self, text: str) -> None:
        self.text = text

    def describe(self) -> str:
        return self.text
