"""Muon: momentum of which each matrix of weights takes the nearest orthogonal matrix as its step.

A gradient's matrix has a few large directions and many small ones; all of them are taken alike, so
that rare directions learn, too. That holds for hidden matrices. What makes tokens of pixels, the
head, and all that is no matrix follow AdamW, in groups of their own.

Source: Keller Jordan, Muon (kellerjordan.github.io/posts/muon, 2024): Nesterov momentum and five
  Newton-Schulz steps with these coefficients; Muon is Scalable (arXiv 2502.16982) section 2.2: the
  step's size, by which learning rate and weight decay are AdamW's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vitbase.training.foreach import AdamW
from vitbase.training.sharded import zero_where

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAMW_SIZE = 0.2  # root mean square of AdamW's steps


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest orthogonal matrices, roughly: singular values come to 0.7 to 1.2.

    Args:
      matrices_NRC: [N, rows, columns] float; one of zeros stays so.
      steps: of the iteration, each three products of matrices.
    Source: Newton and Schulz's iteration, its polynomial of degree five; see the top.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices_NRC / (matrices_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if wide := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if wide else x


class Muon(AdamW):
    """Muon for the groups that say ``orthogonal``, AdamW for the others.

    Where the attribute `found_inf` is 1, as torch's fused optimizers have it, nothing changes.

    Args:
      groups: with `orthogonal`, and there `parts` for each parameter: how many matrices it is, one
        above the other. Kernels of convolutions are matrices [outputs, all else].
      lr: learning rate of both.
      momentum: of the matrices; Nesterov's.
      betas, eps: of AdamW.
      fused: AdamW in one kernel.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one update. Returns: what `closure`, which computes the loss, returns."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._turn(group)
        return loss

    def _turn(self, group: dict[str, Any]) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        pairs = zip(group["params"], group["parts"], strict=True)
        learning = [(p, parts) for p, parts in pairs if p.grad is not None]
        if not learning:
            return
        weights = [parameter for parameter, _ in learning]
        gradients = [parameter.grad for parameter in weights]
        means = [self._mean_of(parameter) for parameter in weights]
        share = 1 - self.momentum
        if found_inf is None:
            torch._foreach_lerp_(means, gradients, share)
        else:
            zero_where(found_inf, gradients)
            share_or_none = torch.where(found_inf == 0, share, 0.0).to(means[0].dtype)
            torch._foreach_lerp_(means, gradients, [share_or_none] * len(means))
        ahead = torch._foreach_lerp(gradients, means, self.momentum)
        changes = _orthogonal(
            [
                change.view(parts, change.shape[0] // parts, -1)
                for change, (_, parts) in zip(ahead, learning, strict=True)
            ]
        )
        steps = [
            change.reshape(weight.shape) for change, weight in zip(changes, weights, strict=True)
        ]
        torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
        if found_inf is not None:
            zero_where(found_inf, steps)
        torch._foreach_add_(weights, steps, alpha=-group["lr"])

    def _mean_of(self, parameter: Tensor) -> Tensor:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum_buffer"]
        return mean


def _orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    """Make stacks of matrices [parts, rows, columns] orthogonal, those of a shape together."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, stack in enumerate(stacks):
        rows, columns = stack.shape[1:]
        by_shape.setdefault((min(rows, columns), max(rows, columns)), []).append(number)
    found: dict[int, Tensor] = {}
    for (rows, columns), members in by_shape.items():
        lying = [stacks[n] if stacks[n].shape[1] == rows else stacks[n].mT for n in members]
        turned = orthogonalise(torch.cat(lying)) * (_ADAMW_SIZE * columns**0.5)
        for n, part in zip(members, turned.split([len(stacks[n]) for n in members]), strict=True):
            found[n] = part if stacks[n].shape[1] == rows else part.mT
    return [found[number] for number in range(len(stacks))]
