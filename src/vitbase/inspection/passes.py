"""One pass of images through a model, with all that is looked at on the way.

Shape legend: B images of a batch, L blocks, H heads, N tokens, n patches, h and w rows and columns
of them, D width, R registers and class token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from vitbase.inspection.attention import attending, on_grid, rows_of_query
from vitbase.inspection.distance import mean_distance, patch_distances
from vitbase.inspection.kinds import Kind
from vitbase.inspection.rollout import read_by_head, roll
from vitbase.model.packing import packed
from vitbase.model.vit import VisionTransformer

Found = dict[str, Tensor]
ATTENTION: frozenset[Kind] = frozenset({"distance", "attention", "rollout"})
TOKENS: frozenset[Kind] = frozenset({"features", "norms"})


class _Attended:
    """What is kept of the attention of a batch."""

    def __init__(self, model: VisionTransformer, kinds: Collection[Kind], count: int) -> None:
        self.spec, self.kinds = model.spec, kinds
        self.seen = [0] * self.spec.depth  # images, of each block
        self.distances_nn = patch_distances(self.spec).to(model.pos_embed.device)
        self.rolled: list[Tensor | None] = [None] * count
        self.rows: list[list[Tensor]] = [[] for _ in range(count)]
        self.pixels: list[list[Tensor]] = [[] for _ in range(count)]

    def visit(self, block: int, p_HNN: Tensor) -> None:
        image = self.seen[block]
        self.seen[block] += 1
        if "attention" in self.kinds:
            self.rows[image].append(rows_of_query(p_HNN, self.spec))
        if "distance" in self.kinds:
            found_H = mean_distance(p_HNN, self.distances_nn, self.spec.num_prefix)
            self.pixels[image].append(found_H)
        if "rollout" in self.kinds:
            self.rolled[image] = roll(self.rolled[image], p_HNN)

    def found(self) -> dict[Kind, Found]:
        spec, found = self.spec, dict[Kind, Found]()
        if "attention" in self.kinds:
            rows_BLHN = torch.stack([torch.stack(rows) for rows in self.rows])
            found["attention"] = {
                "maps": on_grid(rows_BLHN[..., spec.num_prefix :], spec),
                "prefix": rows_BLHN[..., : spec.num_prefix],
            }
        if "distance" in self.kinds:
            found["distance"] = {"pixels": torch.stack([torch.stack(row) for row in self.pixels])}
        if "rollout" in self.kinds:
            read_Bn = [read_by_head(rolled, spec) for rolled in self.rolled if rolled is not None]
            found["rollout"] = {"maps": on_grid(torch.stack(read_Bn), spec)}
        return found


@contextlib.contextmanager
def _norms(model: VisionTransformer, norms: list[Tensor]) -> Iterator[None]:
    """Inside, each block adds the lengths of its tokens, [B, N]."""

    def after(block: torch.nn.Module, given: Any, y_BND: Tensor) -> None:
        norms.append(y_BND.norm(dim=-1))

    handles = [block.register_forward_hook(after) for block in model.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pass_through(
    model: VisionTransformer, images_BCHW: Tensor, kinds: Collection[Kind]
) -> dict[Kind, Found]:
    """Look at attention, features and norms of a batch.

    Args:
      model: in evaluation mode.
      images_BCHW: normalised.
      kinds: of :data:`ATTENTION` and :data:`TOKENS`; others are passed over.
    Returns: of `attention` `maps` [B, L, H, h, w] and `prefix` [B, L, H, R], of `distance` `pixels`
      [B, L, H], of `rollout` `maps` [B, h, w], of `norms` `patches` [B, L, h, w] and `prefix`
      [B, L, R], of `features` `tokens` [B, h, w, D]; all on the CPU.
    Raises: ConfigError if the attention of one image does not fit in memory.
    """
    spec = model.spec
    attended = _Attended(model, kinds, len(images_BCHW))
    norms: list[Tensor] = []
    with torch.inference_mode(), packed(model), contextlib.ExitStack() as hooks:
        if ATTENTION & {*kinds}:
            hooks.enter_context(attending(model, attended.visit))
        if "norms" in kinds:
            hooks.enter_context(_norms(model, norms))
        tokens_BND = model.forward_tokens(images_BCHW)
        found = attended.found()
        if "norms" in kinds:
            norms_BLN = torch.stack(norms, dim=1)
            found["norms"] = {
                "patches": on_grid(norms_BLN[..., spec.num_prefix :], spec),
                "prefix": norms_BLN[..., : spec.num_prefix],
            }
        if "features" in kinds:
            tokens_BnD = tokens_BND[:, spec.num_prefix :]
            found["features"] = {"tokens": tokens_BnD.unflatten(1, spec.grid_hw)}
        return _map(found, lambda value: value.float().cpu().clone())


def _map(found: dict[Kind, Found], change: Callable[[Tensor], Tensor]) -> dict[Kind, Found]:
    return {
        kind: {name: change(value) for name, value in values.items()}
        for kind, values in found.items()
    }


def join(parts: list[dict[Kind, Found]]) -> dict[Kind, Found]:
    """Join what was found in several batches."""
    first = parts[0]
    return {
        kind: {name: torch.cat([part[kind][name] for part in parts]) for name in values}
        for kind, values in first.items()
    }
