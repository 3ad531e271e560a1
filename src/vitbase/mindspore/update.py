"""One update as MindSpore computes it: loss, gradients, what the ranks share, the optimizer.

Each part is a cell that runs operator by operator (PyNative) or compiled into a graph, with the
same results; `compiled` says which.

Shape legend: B images, C classes, H rows and W columns of pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from vitbase.config.learning import OptimizerSection
from vitbase.config.preprocess import Preprocess
from vitbase.training.optim import ParameterGroup

COMPILED = True
"""Whether updates are compiled: measured by benchmarks/mindspore.py."""


def compiled(cell: nn.Cell, as_graph: bool) -> Callable[..., Any]:
    """Return a cell to call: as one graph, or operator by operator."""
    call: Callable[..., Any] = ms.jit(cell.construct) if as_graph else cell
    return call


class Normalize(nn.Cell):
    """Pixels -> the network's input, on the device. Normalised ones pass through."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        mean, std = np.array(preprocess.mean), np.array(preprocess.std)
        width = preprocess.width
        self.shape = (-1, preprocess.height, width, preprocess.channels)
        self.row = width * preprocess.channels
        self.scale = Tensor(np.tile(1 / (255 * std), width).astype(np.float32))
        self.shift = Tensor(np.tile(-mean / std, width).astype(np.float32))
        self.add = ops.BiasAdd()

    def construct(self, images_BHWC: Tensor) -> Tensor:
        if images_BHWC.dtype != ms.uint8:
            return images_BHWC
        rows = images_BHWC.reshape((-1, self.row)).astype(ms.float32)
        return self.add(rows * self.scale, self.shift).reshape(self.shape)


class Classify(nn.Cell):
    """Pixels -> logits, as in evaluation."""

    def __init__(self, network: nn.Cell, preprocess: Preprocess) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.normalize = network, Normalize(preprocess)

    def construct(self, images_BHWC: Tensor) -> Tensor:
        return self.network(self.normalize(images_BHWC))


class Gradients(nn.Cell):
    """Forward and backward pass over some images."""

    def __init__(self, classify: nn.Cell, weights: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.classify = classify
        self.cross_entropy = ops.SoftmaxCrossEntropyWithLogits()
        self.gradients_of = ms.value_and_grad(self.loss, None, weights, has_aux=True)

    def loss(
        self, images_BHWC: Tensor, targets_BC: Tensor, counted_B: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_BC = self.classify(images_BHWC)
        loss = (self.cross_entropy(logits_BC, targets_BC)[0] * counted_B).sum()
        return loss * factor, loss, logits_BC

    def construct(
        self, images_BHWC: Tensor, targets_BC: Tensor, counted_B: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Compute the gradients.

        Args:
          images_BHWC: uint8, or float32 and normalised.
          targets_BC: float32, a row for each image.
          counted_B: float32, 0 for images that could not be read.
          factor: scalar; what the loss is multiplied with before the backward pass.
        Returns: the loss, summed over the images; logits [B, C]; the gradients.
        """
        (_, loss, logits_BC), gradients = self.gradients_of(
            images_BHWC, targets_BC, counted_B, factor
        )
        return loss, logits_BC, gradients


class Add(nn.Cell):
    """Gradients of several passes, added up."""

    def construct(self, sums: tuple[Tensor, ...], more: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(a + b for a, b in zip(sums, more))  # noqa: B905 (a graph knows no `strict`)


class Share(nn.Cell):
    """Gradients of all ranks, added up in one message (collective)."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.join = ops.AllReduce(), ops.Concat(0)

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sums = self.sum(self.join(tuple(gradient.reshape((-1,)) for gradient in gradients)))
        shared: tuple[Tensor, ...] = ()
        first = 0
        for gradient in gradients:
            after = first + gradient.size
            shared += (sums[first:after].reshape(gradient.shape),)
            first = after
        return shared


class Norm(nn.Cell):
    """The Euclidean norm of all gradients together."""

    def __init__(self) -> None:
        super().__init__()
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        total = 0.0
        for gradient in gradients:
            row = gradient.reshape((1, -1))
            total = total + self.product(row, row)
        return ops.sqrt(total).reshape(())


class Scale(nn.Cell):
    """Gradients, multiplied with one number."""

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient * factor for gradient in gradients)


class AdamW(nn.Optimizer):
    """AdamW (arXiv 1711.05101) as torch has it, by the kernel of MindSpore's Adam.

    MindSpore's own `AdamWeightDecay` does not correct the bias of the moments, and
    `experimental.optim.AdamW` computes each of a dozen operators apart. Moments have the names that
    `nn.Adam` gives them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(rate, groups, 0.0)
        self.decays = [float(decay) for decay in _decay_of_each(groups)]
        self.moment1 = self._parameters.clone(prefix="moment1", init="zeros")
        self.moment2 = self._parameters.clone(prefix="moment2", init="zeros")
        self.beta1, self.beta2, self.eps = betas[0], betas[1], eps
        self.beta1_power = Parameter(Tensor(1.0, ms.float32), name="beta1_power")
        self.beta2_power = Parameter(Tensor(1.0, ms.float32), name="beta2_power")
        self.adam = ops.Adam()

    @ms.jit  # type: ignore[untyped-decorator]  # as MindSpore's own optimizers are
    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        power1, power2 = self.beta1_power * self.beta1, self.beta2_power * self.beta2
        ops.assign(self.beta1_power, power1)
        ops.assign(self.beta2_power, power2)
        # The kernel divides by sqrt(v) + eps, and corrects both moments by the rate.
        eps = self.eps * ops.sqrt(1.0 - power2)
        for i, gradient in enumerate(gradients):
            weight = self._parameters[i]
            if self.decays[i] != 0.0:
                ops.assign(weight, weight * (1.0 - rate * self.decays[i]))
            self.adam(
                weight,
                self.moment1[i],
                self.moment2[i],
                power1,
                power2,
                rate,
                self.beta1,
                self.beta2,
                eps,
                gradient,
            )
        return rate


def _decay_of_each(groups: list[dict[str, Any]]) -> list[float]:
    decays = {p.name: g["weight_decay"] for g in groups if "params" in g for p in g["params"]}
    return [decays[parameter.name] for parameter in groups[-1]["order_params"]]


def build_optimizer(
    weights: Sequence[Parameter],
    groups: Sequence[ParameterGroup],
    theirs: Callable[[str], Sequence[str]],
    options: OptimizerSection,
) -> nn.Optimizer:
    """Build the optimizer of a run.

    Args:
      weights: the network's, in its order.
      groups: which of them decay, by the names that they have in `vitbase.model`.
      theirs: such a name -> the network's.
    """
    by_name = {weight.name: weight for weight in weights}
    listed: list[dict[str, Any]] = [
        {
            "params": [by_name[name] for ours in group.names for name in theirs(ours)],
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    listed.append({"order_params": list(weights)})
    if options.optimizer == "adamw":
        return AdamW(listed, options.lr_init, options.betas, 1e-8)
    return nn.Momentum(listed, learning_rate=options.lr_init, momentum=options.momentum)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The parts of an update, ready to be called."""

    gradients: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    add: Callable[..., tuple[Tensor, ...]]
    share: Callable[..., tuple[Tensor, ...]] | None
    norm: Callable[..., Tensor]
    scale: Callable[..., tuple[Tensor, ...]]
    optimizer: nn.Optimizer

    @classmethod
    def of(
        cls, classify: nn.Cell, optimizer: nn.Optimizer, *, num_ranks: int, as_graph: bool
    ) -> Steps:
        """Build the parts for a network and its optimizer."""
        return cls(
            compiled(Gradients(classify, optimizer.parameters), as_graph),
            compiled(Add(), as_graph),
            compiled(Share(), as_graph) if num_ranks > 1 else None,
            compiled(Norm(), as_graph),
            compiled(Scale(), as_graph),
            optimizer,
        )
