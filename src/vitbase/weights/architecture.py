"""What a file is: the architecture, read off its tensors, and the preprocessing.

The tensors' shapes decide; then what stands beside them, the sidecar; then what the dialect's
published weights have in common.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from vitbase.config.preprocess import Preprocess, default_preprocess
from vitbase.errors import ConfigError, WeightsError
from vitbase.model.hybrid import ROOT_CHANNELS, resnet_stride
from vitbase.model.spec import Pool, PosEmbed, ViTSpec, describe_problem
from vitbase.model.zoo import heads_of, name_of
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Dialect, Mapped, their_name
from vitbase.weights.origins.sidecar import Sidecar
from vitbase.weights.origins.vitbase import METADATA_KEY, read_metadata

_DAMAGE = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, ConfigError)


def read_sidecar(file: TensorFile, dialect: Dialect) -> Sidecar:
    """Read what stands beside the tensors: our metadata, else what the dialect's files tell.

    Raises: WeightsError naming the file, and the key that is wrong.
    """
    try:
        return read_metadata(file) or dialect.read_sidecar(file)
    except _DAMAGE as error:
        where = "metadata" if METADATA_KEY in file.metadata else "config.json"
        problem = describe_problem(error) if isinstance(error, ValidationError) else error
        raise WeightsError(f"{file.path} has damaged {where}: {problem}") from None


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Shapes by our names of parameters; errors have the file's."""

    dialect: Dialect
    shapes: Mapping[str, tuple[int, ...]]

    def wrong(self, name: str, what: str) -> WeightsError:
        return WeightsError(f"tensor '{their_name(self.dialect, name)}' {what}")

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.shapes:
            raise self.wrong(name, "is missing")
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise self.wrong(name, f"has the impossible shape {shape}")
        return shape

    def count(self, start: str, one: str) -> int:
        """Count parts numbered behind a start of names.

        Raises: WeightsError if a number is left out, naming the tensor `one` of that part.
        """
        pattern = re.compile(rf"{re.escape(start)}\.(\d+)\.")
        found = {int(match[1]) for name in self.shapes if (match := pattern.match(name))}
        for number in range(len(found)):
            if number not in found:
                raise self.wrong(f"{start}.{number}.{one}", "is missing")
        return len(found)

    def count_units(self) -> tuple[int, ...]:
        """Count the bottleneck units in each stage of a ResNet stem."""
        stages = self.count("stem.stages", "0.conv1.weight")
        units = (self.count(f"stem.stages.{n}", "conv1.weight") for n in range(stages))
        return tuple(units)


def read_spec(
    dialect: Dialect,
    ours: Mapping[str, Mapped],
    sidecar: Sidecar,
    num_heads: int | None,
    trained_size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
) -> ViTSpec:
    """Read the architecture off the tensors' shapes; the sidecar tells what shapes do not.

    Args:
      num_heads: the user's; else the file's, else those of the published models of this width
        and MLP, else heads are 64 wide.
      trained_size: what the user says that the positions were trained on; the file goes before.
      image_size: what the user will compute on; it, too, may tell a grid that is no square.
    Raises: WeightsError naming the tensor that is missing or fits no Vision Transformer.
    """
    if sidecar.spec is not None:
        if num_heads is None:
            return sidecar.spec
        _check_heads(num_heads, sidecar.spec.width)
        return sidecar.spec.replace(num_heads=num_heads)
    shapes = _Shapes(dialect, {name: tensor.shape for name, tensor in ours.items()})
    width, channels, side, side_2 = shapes.of("stem.proj.weight", 4)
    if side != side_2:
        raise shapes.wrong(
            "stem.proj.weight", f"has patches of {side}x{side_2}; vitbase needs square ones"
        )
    root = shapes.of("stem.root_conv.weight", 4) if "stem.root_conv.weight" in ours else None
    resnet_layers = shapes.count_units() if root else ()
    patch_size = side * (resnet_stride(resnet_layers) if root else 1)
    class_token = "cls_token" in ours
    grid, pos_embed = _read_grid(shapes, sidecar, patch_size, trained_size, image_size)
    head = shapes.of("head.weight", 2) if "head.weight" in ours else None
    rep = shapes.of("pre_logits.weight", 2)[0] if "pre_logits.weight" in ours else None
    is_wide = head is not None and rep is None and head[1] == 2 * width
    mlp_dim = shapes.of("blocks.0.mlp.fc1.weight", 2)[0]
    asked = sidecar.num_heads if num_heads is None else num_heads
    values: dict[str, Any] = {
        "image_size": (grid[0] * patch_size, grid[1] * patch_size),
        "in_channels": root[1] if root else channels,
        "patch_size": patch_size,
        "width": width,
        "depth": shapes.count("blocks", "norm1.weight"),
        "num_heads": _read_heads(shapes, ours, width, mlp_dim, asked),
        "mlp_dim": mlp_dim,
        "num_classes": head[0] if head else 0,
        "stem": "resnet" if root else "patch",
        "resnet_layers": resnet_layers,
        "resnet_form": dialect.limits.get("resnet_form", ("jax",))[0],
        "class_token": class_token,
        "pool": _read_pool(dialect, class_token, is_wide, sidecar.pool),
        "num_registers": shapes.of("registers", 3)[1] if "registers" in ours else 0,
        "representation_size": rep,
        "layer_scale_init": 1e-5 if "blocks.0.scale1" in ours else None,
        "pos_embed": pos_embed,
        "gelu": sidecar.gelu or dialect.gelu,
        "norm_eps": dialect.norm_eps if sidecar.norm_eps is None else sidecar.norm_eps,
        "qkv_bias": "blocks.0.attn.qkv.bias" in ours,
    }
    if root:
        values["resnet_width_factor"] = root[0] / ROOT_CHANNELS
    try:
        spec = ViTSpec(name=dialect.name, **values)
    except ConfigError as error:
        raise WeightsError(f"its tensors make no Vision Transformer: {error}") from None
    unlisted = f"ViT-{spec.width}x{spec.depth}_{spec.patch_size}"
    return spec.replace(name=name_of(spec) or unlisted)


def _read_grid(
    read: _Shapes,
    sidecar: Sidecar,
    patch_size: int,
    trained_size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
) -> tuple[tuple[int, int], PosEmbed]:
    """Find rows and columns of patches, and whether the class token has a position."""

    def grid_of(size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // patch_size, size[1] // patch_size

    if "pos_embed" not in read.shapes:
        size = sidecar.image_size or trained_size or image_size
        if size is None:
            raise read.wrong(
                "pos_embed",
                "is missing. If the positions are fixed sines and cosines, give the image_size, or "
                "--image_height and --image_width",
            )
        return grid_of(size), "sincos2d"
    shape = read.shapes["pos_embed"]
    if len(shape) != 3 or shape[0] != 1:
        raise read.wrong("pos_embed", f"has the impossible shape {shape}")
    class_token = "cls_token" in read.shapes
    kinds: list[tuple[PosEmbed, int]] = [("learned", shape[1] - int(class_token))]
    if class_token and "learned_grid" in read.dialect.limits.get("pos_embed", ()):
        kinds.append(("learned_grid", shape[1]))

    def fitting(size: tuple[int, int] | None) -> Iterator[tuple[tuple[int, int], PosEmbed]]:
        for kind, tokens in kinds:
            if size is not None and math.prod(grid_of(size)) == tokens > 0:
                yield grid_of(size), kind

    for known in (*fitting(sidecar.image_size), *fitting(trained_size)):
        return known
    found: list[tuple[tuple[int, int], PosEmbed]] = []
    for kind, tokens in kinds:
        side = math.isqrt(max(tokens, 0))
        if trained_size is None and side * side == tokens > 0:
            found.append(((side, side), kind))
    # It may be the size that it was trained on, or another one, of as many patches.
    found += fitting(image_size)
    if not found:
        raise read.wrong(
            "pos_embed",
            f"has {shape[1]} positions, which make no grid of patches"
            f"{'' if trained_size is None else ' of that size'}. Give the size that it was trained "
            f"on: image_size, or --image_height and --image_width",
        )
    if len({grid for grid, _ in found}) > 1:
        grids = " or of ".join(f"{rows}x{columns}" for (rows, columns), _ in found)
        raise read.wrong(
            "pos_embed",
            f"may be of a grid of {grids} patches, and nothing tells which. Say it "
            f"with trained_size; or let `vitbase weights convert` write a .safetensors, which "
            f"tells, with the --image_height and --image_width that it was trained on",
        )
    return found[0]


def _read_heads(
    read: _Shapes, ours: Mapping[str, Mapped], width: int, mlp_dim: int, asked: int | None
) -> int:
    query = ours.get("blocks.0.attn.qkv.weight")
    kept = query.num_heads if query else None
    if kept is not None and asked is not None and kept != asked:
        raise read.wrong("blocks.0.attn.qkv.weight", f"has {kept} heads, not {asked}")
    known = kept if asked is None else asked
    heads = heads_of(width, mlp_dim) if known is None else known
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


def _read_pool(dialect: Dialect, class_token: bool, is_wide: bool, told: Pool | None) -> Pool:
    pools = dialect.limits.get("pool", ())
    if pools == ("gap_norm",):
        return "gap_norm"
    if is_wide and "token_gap" in pools:
        return "token_gap"
    return told or ("token" if class_token else "gap")


def read_preprocess_of(dialect: Dialect, sidecar: Sidecar, spec: ViTSpec) -> Preprocess:
    """Put together what images must become: the file's word, else the origin's.

    Raises: WeightsError if the file's values make no sense.
    """
    channels: Literal[1, 3] = 1 if spec.in_channels == 1 else 3
    height, width = spec.image_size
    values = default_preprocess(height, width, channels).model_dump()
    values |= dialect.preprocess_of(spec) if channels == 3 else {}
    values |= sidecar.preprocess
    values |= {"height": height, "width": width, "channels": channels}
    try:
        return Preprocess.model_validate(values)
    except ValidationError as error:
        raise WeightsError(f"its preprocessing makes no sense: {describe_problem(error)}") from None
