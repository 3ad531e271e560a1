"""What a file says of itself: the architecture, read off its tensors; preprocessing; labels.

The tensors' shapes decide. Beside them, in this order: our own metadata in the file, then the
`config.json` of Hugging Face or timm, then what the dialect's published weights have in common.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from vitbase.errors import ConfigError, WeightsError
from vitbase.model.hybrid import ROOT_CHANNELS, resnet_stride
from vitbase.model.layers import Gelu
from vitbase.model.spec import Pool, PosEmbed, ViTSpec
from vitbase.model.zoo import find_variant, heads_of, name_of, variant_spec
from vitbase.options import Preprocess, default_preprocess
from vitbase.weights.dialects import Dialect, Mapped, their_name
from vitbase.weights.formats import METADATA_KEY
from vitbase.weights.stored import TensorFile

Shapes = Mapping[str, tuple[int, ...]]

# transformers' ACT2FN: names of the two forms.
_GELUS: dict[str, Gelu] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True)
class Told:
    """What stands beside the tensors; None where it does not.

    Attributes:
      spec: the whole architecture, as our own metadata have it.
    """

    spec: ViTSpec | None = None
    num_heads: int | None = None
    gelu: Gelu | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    pool: Pool | None = None
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def read_told(file: TensorFile, dialect: Dialect) -> Told:
    """Read what stands beside the tensors.

    Raises: WeightsError naming the file, and the key that is wrong.
    """
    try:
        if METADATA_KEY in file.metadata:
            return _read_own(file)
        if file.config is not None and dialect.name == "hf":
            return _read_hf(file.config, file.processor)
        if file.config is not None and "pretrained_cfg" in file.config:
            return _read_timm(file.config)
        return Told()
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError, ValidationError) as error:
        where = "metadata" if METADATA_KEY in file.metadata else "config.json"
        raise WeightsError(f"{file.path} has damaged {where}: {error}") from None


def _read_own(file: TensorFile) -> Told:
    metadata = json.loads(file.metadata[METADATA_KEY])
    labels = metadata["labels"]
    preprocess = metadata["preprocess"]
    return Told(
        spec=ViTSpec.from_dict(metadata["spec"]),
        preprocess=Preprocess.model_validate(preprocess).model_dump() if preprocess else {},
        labels=tuple(labels) if labels else None,
    )


def _read_hf(config: Mapping[str, Any], processor: Mapping[str, Any] | None) -> Told:
    size = config.get("image_size")
    activation = config.get("hidden_act", "gelu")
    if activation not in _GELUS:
        raise ValueError(f"hidden_act {activation!r} is no GELU that vitbase computes")
    names = config.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    # LABEL_0, LABEL_1: what transformers writes where no names were given.
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        labels = ()
    preprocess: dict[str, Any] = {}
    if processor is not None:
        if processor.get("do_normalize", True) and "image_mean" in processor:
            preprocess["mean"] = tuple(processor["image_mean"])
            preprocess["std"] = tuple(processor["image_std"])
        if processor.get("resample") in _RESAMPLING:
            preprocess["interpolation"] = _RESAMPLING[processor["resample"]]
        shortest = (processor.get("size") or {}).get("shortest_edge")
        crop = processor.get("crop_size") or {}
        if shortest and processor.get("do_center_crop") and "height" in crop:
            preprocess["crop_mode"] = "center"
            preprocess["crop_ratio"] = min(1.0, crop["height"] / shortest)
        elif "height" in (processor.get("size") or {}):
            preprocess["crop_mode"], preprocess["crop_ratio"] = "squash", 1.0
    return Told(
        num_heads=config.get("num_attention_heads"),
        gelu=_GELUS[activation],
        norm_eps=config.get("layer_norm_eps"),
        image_size=(size, size) if isinstance(size, int) else (tuple(size) if size else None),
        preprocess=preprocess,
        labels=labels or None,
    )


def _read_timm(config: Mapping[str, Any]) -> Told:
    made_with = config.get("model_args") or {}
    trained = {**config, **config["pretrained_cfg"]}
    heads = made_with.get("num_heads")
    if heads is None:
        try:
            heads = variant_spec(find_variant(str(config.get("architecture")))[0]).num_heads
        except ConfigError:
            heads = None  # none of ours: its width tells
    activation = made_with.get("act_layer", "gelu")
    if activation not in _GELUS:
        raise ValueError(f"act_layer {activation!r} is no GELU that vitbase computes")
    size = made_with.get("img_size") or trained.get("input_size", (None,))[1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    renamed = {
        "mean": "mean",
        "std": "std",
        "interpolation": "interpolation",
        "crop_pct": "crop_ratio",
        "crop_mode": "crop_mode",
    }
    labels = trained.get("label_names")
    averaged = made_with.get("global_pool", trained.get("global_pool")) == "avg"
    return Told(
        pool="gap" if averaged else None,
        num_heads=heads,
        gelu=_GELUS[activation],
        image_size=size if len(size) == 2 else None,
        preprocess={renamed[k]: v for k, v in trained.items() if k in renamed},
        labels=tuple(map(str, labels)) if labels else None,
    )


def read_spec(
    dialect: Dialect,
    ours: Mapping[str, Mapped],
    told: Told,
    *,
    num_heads: int | None,
    image_size: tuple[int, int] | None,
) -> ViTSpec:
    """Read the architecture off the tensors' shapes; `told` fills in what shapes do not tell.

    Args:
      num_heads: the user's; else the file's, else those of the published models of this width
        and MLP, else heads are 64 wide.
      image_size: the user's; decides only where a grid is not square and the file is silent.
    Raises: WeightsError naming the tensor that is missing or fits no Vision Transformer.
    """
    if told.spec is not None:
        spec = told.spec
        return dataclasses.replace(spec, num_heads=num_heads) if num_heads else spec
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
    grid, pos_embed = _read_grid(dialect, shapes, told, patch_size, class_token, image_size)
    head = shape_of("head.weight", 2) if "head.weight" in shapes else None
    rep = shape_of("pre_logits.weight", 2)[0] if "pre_logits.weight" in shapes else None
    mlp_dim = shape_of("blocks.0.mlp.fc1.weight", 2)[0]
    values: dict[str, Any] = {
        "image_size": (grid[0] * patch_size, grid[1] * patch_size),
        "in_channels": shape_of("stem.root_conv.weight", 4)[1] if hybrid else channels,
        "patch_size": patch_size,
        "width": width,
        "depth": _count_blocks(dialect, shapes),
        "num_heads": _read_heads(dialect, ours, width, mlp_dim, num_heads or told.num_heads),
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
    image_size: tuple[int, int] | None,
) -> tuple[tuple[int, int], PosEmbed]:
    """Find rows and columns of patches, and whether the class token has a position."""
    sizes = [size for size in (told.image_size, image_size) if size is not None]
    grids = [(height // patch_size, width // patch_size) for height, width in sizes]
    if "pos_embed" not in shapes:
        if not grids:
            raise WeightsError(
                f"tensor '{their_name(dialect, 'pos_embed')}' is missing. If the positions are "
                f"fixed sines and cosines, give image_size"
            )
        return grids[0], "sincos2d"
    name, shape = their_name(dialect, "pos_embed"), shapes["pos_embed"]
    if len(shape) != 3 or shape[0] != 1:
        raise WeightsError(f"tensor '{name}' has the impossible shape {shape}")
    options: list[tuple[int, PosEmbed]] = [(shape[1] - int(class_token), "learned")]
    if class_token:
        options.append((shape[1], "learned_grid"))
    for tokens, kind in options:
        for rows, columns in grids:
            if rows * columns == tokens > 0:
                return (rows, columns), kind
    for tokens, kind in options:
        side = round(max(tokens, 0) ** 0.5)
        if tokens > 0 and side * side == tokens:
            return (side, side), kind
    raise WeightsError(
        f"tensor '{name}' has {shape[1]} positions, which make no square grid. Give the image_size "
        f"that it was trained on"
    )


def _read_heads(
    dialect: Dialect, ours: Mapping[str, Mapped], width: int, mlp_dim: int, num_heads: int | None
) -> int:
    query = ours.get("blocks.0.attn.qkv.weight")
    kept = query.num_heads if query else None
    if kept is not None and num_heads is not None and kept != num_heads:
        name = their_name(dialect, "blocks.0.attn.qkv.weight")
        raise WeightsError(f"tensor '{name}' has {kept} heads, not {num_heads}")
    heads = kept or num_heads or heads_of(width, mlp_dim)
    if heads is None and width % 64:
        raise WeightsError(
            f"the number of heads cannot be read off these weights, and the width {width} is not "
            f"made of heads 64 wide. Give --num_heads N"
        )
    heads = heads or width // 64
    if heads < 1 or width % heads:
        raise WeightsError(f"num_heads {heads} does not divide the width {width}")
    return heads


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
