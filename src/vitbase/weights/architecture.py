"""What a file is: the architecture, read off its tensors, and the preprocessing.

The tensors' shapes decide; then what stands beside them (`told.py`); then what the dialect's
published weights have in common.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from vitbase.config.preprocess import Preprocess, default_preprocess
from vitbase.errors import ConfigError, WeightsError
from vitbase.model.hybrid import ROOT_CHANNELS, resnet_stride
from vitbase.model.spec import Pool, PosEmbed, ViTSpec
from vitbase.model.zoo import heads_of, name_of
from vitbase.weights.origins.dialect import Dialect, Mapped, their_name
from vitbase.weights.origins.told import Told

Shapes = Mapping[str, tuple[int, ...]]


def read_spec(
    dialect: Dialect,
    ours: Mapping[str, Mapped],
    told: Told,
    *,
    num_heads: int | None,
    trained_size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
) -> ViTSpec:
    """Read the architecture off the tensors' shapes; `told` fills in what shapes do not tell.

    Args:
      num_heads: the user's; else the file's, else those of the published models of this width
        and MLP, else heads are 64 wide.
      trained_size: what the user says that the positions were trained on; the file goes before.
      image_size: what the user will compute on; it, too, may tell a grid that is no square.
    Raises: WeightsError naming the tensor that is missing or fits no Vision Transformer.
    """
    if told.spec is not None:
        if num_heads is None:
            return told.spec
        _check_heads(num_heads, told.spec.width)
        return dataclasses.replace(told.spec, num_heads=num_heads)
    shapes = {name: tensor.shape for name, tensor in ours.items()}

    def shape_of(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise WeightsError(f"tensor '{their_name(dialect, name)}' is missing")
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise WeightsError(
                f"tensor '{their_name(dialect, name)}' has the impossible shape {shapes[name]}"
            )
        return shapes[name]

    width, channels, side, side_2 = shape_of("stem.proj.weight", 4)
    if side != side_2:
        raise WeightsError(
            f"tensor '{their_name(dialect, 'stem.proj.weight')}' has patches of {side}x{side_2}; "
            f"vitbase needs square ones"
        )
    hybrid = "stem.root_conv.weight" in shapes
    resnet_layers = _count_units(dialect, shapes) if hybrid else ()
    patch_size = side * (resnet_stride(resnet_layers) if hybrid else 1)
    class_token = "cls_token" in shapes
    grid, pos_embed = _read_grid(
        dialect, shapes, told, patch_size, class_token, trained_size, image_size
    )
    head = shape_of("head.weight", 2) if "head.weight" in shapes else None
    rep = shape_of("pre_logits.weight", 2)[0] if "pre_logits.weight" in shapes else None
    mlp_dim = shape_of("blocks.0.mlp.fc1.weight", 2)[0]
    values: dict[str, Any] = {
        "image_size": (grid[0] * patch_size, grid[1] * patch_size),
        "in_channels": shape_of("stem.root_conv.weight", 4)[1] if hybrid else channels,
        "patch_size": patch_size,
        "width": width,
        "depth": _count_blocks(dialect, shapes),
        "num_heads": _read_heads(
            dialect, ours, width, mlp_dim, told.num_heads if num_heads is None else num_heads
        ),
        "mlp_dim": mlp_dim,
        "num_classes": head[0] if head else 0,
        "stem": "resnet" if hybrid else "patch",
        "resnet_layers": resnet_layers,
        "resnet_form": "timm" if dialect.name == "timm" else "jax",
        "class_token": class_token,
        "pool": _read_pool(dialect, class_token, head, width, rep, told.pool),
        "num_registers": shape_of("registers", 3)[1] if "registers" in shapes else 0,
        "representation_size": rep,
        "layer_scale_init": 1e-5 if "blocks.0.scale1" in shapes else None,
        "pos_embed": pos_embed,
        "gelu": told.gelu or dialect.gelu,
        "norm_eps": dialect.norm_eps if told.norm_eps is None else told.norm_eps,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
    }
    if hybrid:
        root = shape_of("stem.root_conv.weight", 4)
        values["in_channels"] = root[1]
        values["resnet_width_factor"] = root[0] / ROOT_CHANNELS
    try:
        spec = ViTSpec(name=dialect.name, **values)
    except ConfigError as error:
        raise WeightsError(f"its tensors make no Vision Transformer: {error}") from None
    unlisted = f"ViT-{spec.width}x{spec.depth}_{spec.patch_size}"
    return dataclasses.replace(spec, name=name_of(spec) or unlisted)


def _read_grid(
    dialect: Dialect,
    shapes: Shapes,
    told: Told,
    patch_size: int,
    class_token: bool,
    trained_size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
) -> tuple[tuple[int, int], PosEmbed]:
    """Find rows and columns of patches, and whether the class token has a position."""

    def grid_of(size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // patch_size, size[1] // patch_size

    if "pos_embed" not in shapes:
        size = told.image_size or trained_size or image_size
        if size is None:
            raise WeightsError(
                f"tensor '{their_name(dialect, 'pos_embed')}' is missing. If the positions are "
                f"fixed sines and cosines, give the image_size, or --image_height and --image_width"
            )
        return grid_of(size), "sincos2d"
    name, shape = their_name(dialect, "pos_embed"), shapes["pos_embed"]
    if len(shape) != 3 or shape[0] != 1:
        raise WeightsError(f"tensor '{name}' has the impossible shape {shape}")
    kinds: dict[PosEmbed, int] = {"learned": shape[1] - int(class_token)}
    if class_token and "learned_grid" in dialect.limits.get("pos_embed", ()):
        kinds["learned_grid"] = shape[1]
    for size in (told.image_size, trained_size):
        for kind, tokens in kinds.items():
            if size is not None and math.prod(grid_of(size)) == tokens > 0:
                return grid_of(size), kind
    found: list[tuple[tuple[int, int], PosEmbed]] = []
    for kind, tokens in kinds.items():
        side = math.isqrt(max(tokens, 0))
        if trained_size is None and side * side == tokens > 0:
            found.append(((side, side), kind))
    for kind, tokens in kinds.items():
        # It may be the size that it was trained on, or another one, of as many patches.
        if image_size is not None and math.prod(grid_of(image_size)) == tokens > 0:
            found.append((grid_of(image_size), kind))
    if not found:
        raise WeightsError(
            f"tensor '{name}' has {shape[1]} positions, which make no grid of patches"
            f"{'' if trained_size is None else ' of that size'}. Give the size that it was trained "
            f"on: image_size, or --image_height and --image_width"
        )
    if len({grid for grid, _ in found}) > 1:
        grids = " or of ".join(f"{rows}x{columns}" for (rows, columns), _ in found)
        raise WeightsError(
            f"tensor '{name}' may be of a grid of {grids} patches, and nothing tells which. Say it "
            f"with trained_size; or let `vitbase weights convert` write a .safetensors, which "
            f"tells, with the --image_height and --image_width that it was trained on"
        )
    return found[0]


def _read_heads(
    dialect: Dialect, ours: Mapping[str, Mapped], width: int, mlp_dim: int, num_heads: int | None
) -> int:
    query = ours.get("blocks.0.attn.qkv.weight")
    kept = query.num_heads if query else None
    if kept is not None and num_heads is not None and kept != num_heads:
        name = their_name(dialect, "blocks.0.attn.qkv.weight")
        raise WeightsError(f"tensor '{name}' has {kept} heads, not {num_heads}")
    asked = kept if num_heads is None else num_heads
    heads = heads_of(width, mlp_dim) if asked is None else asked
    if heads is None and width % 64:
        raise WeightsError(
            f"the number of heads cannot be read off these weights, and the width {width} is not "
            f"made of heads 64 wide. Give --num_heads N"
        )
    heads = width // 64 if heads is None else heads
    _check_heads(heads, width)
    return heads


def _check_heads(num_heads: int, width: int) -> None:
    if num_heads < 1 or width % num_heads:
        raise WeightsError(f"num_heads {num_heads} does not divide the width {width}")


def _read_pool(
    dialect: Dialect,
    class_token: bool,
    head: tuple[int, ...] | None,
    width: int,
    representation_size: int | None,
    told: Pool | None,
) -> Pool:
    pools = dialect.limits.get("pool", ())
    if pools == ("gap_norm",):
        return "gap_norm"
    wide = head is not None and representation_size is None and head[1] == 2 * width
    if wide and "token_gap" in pools:
        return "token_gap"
    return told or ("token" if class_token else "gap")


def _count_blocks(dialect: Dialect, shapes: Shapes) -> int:
    found = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    for number in range(len(found)):
        if number not in found:
            name = their_name(dialect, f"blocks.{number}.norm1.weight")
            raise WeightsError(f"tensor '{name}' is missing")
    return len(found)


def _count_units(dialect: Dialect, shapes: Shapes) -> tuple[int, ...]:
    stages: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"stem\.stages\.(\d+)\.(\d+)\.", name):
            stages.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = []
    for stage in range(len(stages)):
        units = stages.get(stage, set())
        for unit in range(max(len(units), 1)):
            if unit not in units:
                name = their_name(dialect, f"stem.stages.{stage}.{unit}.conv1.weight")
                raise WeightsError(f"tensor '{name}' is missing")
        counts.append(len(units))
    return tuple(counts)


def read_preprocess_of(dialect: Dialect, told: Told, spec: ViTSpec) -> Preprocess:
    """Put together what images must become: the file's word, else the origin's.

    Raises: WeightsError if the file's values make no sense.
    """
    channels: Literal[1, 3] = 1 if spec.in_channels == 1 else 3
    height, width = spec.image_size
    values = default_preprocess(height, width, channels).model_dump()
    usual = dict(dialect.preprocess)
    if dialect.name == "timm" and spec.layer_scale_init is not None:
        # DeiT III and DINOv2, not Google's weights.
        usual |= {"mean": values["mean"], "std": values["std"], "crop_ratio": 1.0}
    values |= usual if channels == 3 else {}
    values |= told.preprocess
    values |= {"height": height, "width": width, "channels": channels}
    try:
        return Preprocess.model_validate(values)
    except ValidationError as error:
        raise WeightsError(f"its preprocessing makes no sense: {error}") from None
