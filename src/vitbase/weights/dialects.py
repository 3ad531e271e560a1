"""Name tables: how the parameters of other systems are called here.

A table is a list of rows, theirs -> ours, in which `{i}` stands for the block's number. Where one
of ours joins several of theirs (the fused query, key and value), the row lists them in order and
they are concatenated along the first axis. A row works both ways.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from vitbase.errors import WeightsError


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its name, or names, there, and its name here."""

    theirs: tuple[str, ...]
    ours: str


def _rows(*pairs: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(Row(tuple(theirs.split(" + ")), ours) for theirs, ours in pairs)


# Source: the MindSpore model zoo's vit_base, modeling_ms.py.
MINDSPORE = _rows(
    ("transformer.embeddings.position_embeddings", "pos_embed"),
    ("transformer.embeddings.cls_token", "cls_token"),
    ("transformer.embeddings.patch_embeddings.weight", "stem.proj.weight"),
    ("transformer.embeddings.patch_embeddings.bias", "stem.proj.bias"),
    ("transformer.encoder.layer.{i}.attention_norm.gamma", "blocks.{i}.norm1.weight"),
    ("transformer.encoder.layer.{i}.attention_norm.beta", "blocks.{i}.norm1.bias"),
    ("transformer.encoder.layer.{i}.ffn_norm.gamma", "blocks.{i}.norm2.weight"),
    ("transformer.encoder.layer.{i}.ffn_norm.beta", "blocks.{i}.norm2.bias"),
    ("transformer.encoder.layer.{i}.ffn.fc1.weight", "blocks.{i}.mlp.fc1.weight"),
    ("transformer.encoder.layer.{i}.ffn.fc1.bias", "blocks.{i}.mlp.fc1.bias"),
    ("transformer.encoder.layer.{i}.ffn.fc2.weight", "blocks.{i}.mlp.fc2.weight"),
    ("transformer.encoder.layer.{i}.ffn.fc2.bias", "blocks.{i}.mlp.fc2.bias"),
    (
        "transformer.encoder.layer.{i}.attn.query.weight"
        " + transformer.encoder.layer.{i}.attn.key.weight"
        " + transformer.encoder.layer.{i}.attn.value.weight",
        "blocks.{i}.attn.qkv.weight",
    ),
    (
        "transformer.encoder.layer.{i}.attn.query.bias"
        " + transformer.encoder.layer.{i}.attn.key.bias"
        " + transformer.encoder.layer.{i}.attn.value.bias",
        "blocks.{i}.attn.qkv.bias",
    ),
    ("transformer.encoder.layer.{i}.attn.out.weight", "blocks.{i}.attn.proj.weight"),
    ("transformer.encoder.layer.{i}.attn.out.bias", "blocks.{i}.attn.proj.bias"),
    ("transformer.encoder.encoder_norm.gamma", "norm.weight"),
    ("transformer.encoder.encoder_norm.beta", "norm.bias"),
    ("head.weight", "head.weight"),
    ("head.bias", "head.bias"),
)

# What MindSpore's optimizer keeps beside the weights in a training checkpoint.
_MINDSPORE_STATE = re.compile(r"^(moments\..+|learning_rate|momentum|global_step|epoch_num)$")


def drop_mindspore_state(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Tell the network's tensors from the optimizer's.

    Returns: the network's tensors, and the names of the others.
    """
    network = {n: t for n, t in tensors.items() if not _MINDSPORE_STATE.match(n)}
    return network, tuple(n for n in tensors if n not in network)


def to_ours(
    path: Path, tensors: Mapping[str, torch.Tensor], table: tuple[Row, ...]
) -> dict[str, torch.Tensor]:
    """Rename, and join where needed, every tensor of a file.

    Raises: WeightsError naming the file and the first tensor that is missing or left over.
    """
    remaining = dict(tensors)
    numbers = [int(match[1]) for name in tensors if (match := re.search(r"\.layer\.(\d+)\.", name))]
    ours: dict[str, torch.Tensor] = {}
    for row in table:
        for number in range(max(numbers, default=-1) + 1) if "{i}" in row.ours else (0,):
            names = [name.replace("{i}", str(number)) for name in row.theirs]
            missing = [name for name in names if name not in remaining]
            if missing:
                raise WeightsError(f"{path}: tensor '{missing[0]}' is missing.")
            parts = [remaining.pop(name) for name in names]
            ours[row.ours.replace("{i}", str(number))] = (
                parts[0] if len(parts) == 1 else torch.cat(parts)
            )
    if remaining:
        raise WeightsError(
            f"{path}: tensor '{next(iter(remaining))}' belongs to no part of a Vision Transformer "
            f"({len(remaining)} such tensors)."
        )
    return ours
