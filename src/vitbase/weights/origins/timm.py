"""timm's weights: ViT, AugReg, DeiT, DeiT III, DINOv2, hybrids; files, and folders with a config.

Source: timm/models/vision_transformer.py, vision_transformer_hybrid.py, _hub.py.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.errors import ConfigError, WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import find_variant, variant_spec
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Dialect, Row, arguments_of_heads
from vitbase.weights.origins.rows import BLOCKS, HALF, IMAGENET, LAYER_SCALES, layer, layers
from vitbase.weights.origins.sidecar import Sidecar, gelu_of
from vitbase.weights.origins.usage import TIMM as TIMM_USAGE
from vitbase.weights.origins.usage import TRANSFORMERS

# What timm's model functions set that no shape tells, by their names; None: no model of ours.
_NAMES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    (r"vit_.*_rpn_.*", None),  # norms behind the layers, under the names of those before them
    (r"vit_(so400m|giantopt)_patch16_siglip_.*", {"num_heads": 16, "act_layer": "gelu_tanh"}),
    (r"vit_(base_patch32_siglip_.*|large_patch16_siglip_gap_512)", {"act_layer": "gelu_tanh"}),
    (r"vit_(so400m|gigantic)_.*|vit_base_patch16_gap_.*", {"num_heads": 16}),
    (r"test_vit2?", {"num_heads": 2}),
)
# Its model functions by the stages of their ResNet stem; any of them takes all other sizes.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
# And those of patches by width, with the patches that each width has one for; likewise.
_SIZES = {
    192: ("tiny", (16,)),
    384: ("small", (16, 8, 32)),
    768: ("base", (16, 8, 32)),
    1024: ("large", (16, 14, 32)),
    1280: ("huge", (14,)),
    1408: ("giant", (14,)),
}
# Its names of preprocessing, and ours.
_PREPROCESS = {"crop_pct": "crop_ratio"}
_PREPROCESS |= {name: name for name in ("mean", "std", "interpolation", "crop_mode")}


def read_sidecar(file: TensorFile) -> Sidecar:
    """Read its `config.json`, if one stands beside the file."""
    config = file.config
    if config is None or "pretrained_cfg" not in config:
        return Sidecar()
    architecture = str(config.get("architecture")).partition(".")[0]
    found = (values for pattern, values in _NAMES if re.fullmatch(pattern, architecture))
    implied = next(found, {})
    if implied is None:
        raise WeightsError(
            f"it is of timm's {architecture}, which computes otherwise than vitbase can"
        )
    made_with = {**implied, **(config.get("model_args") or {})}
    trained = {**config, **config["pretrained_cfg"]}
    heads = made_with.get("num_heads")
    if heads is None:
        try:
            heads = variant_spec(find_variant(architecture)[0]).num_heads
        except ConfigError:
            heads = None  # none of ours: its width tells
    size = made_with.get("img_size") or tuple(trained.get("input_size") or ())[1:] or None
    labels = trained.get("label_names")
    averaged = made_with.get("global_pool", trained.get("global_pool")) == "avg"
    return Sidecar(
        pool="gap" if averaged else None,
        num_heads=heads,
        gelu=gelu_of("act_layer", made_with.get("act_layer") or "gelu"),
        image_size=size,
        preprocess={_PREPROCESS[k]: v for k, v in trained.items() if k in _PREPROCESS},
        labels=tuple(map(str, labels)) if labels else None,
    )


def _write_sidecar(
    spec: ViTSpec, preprocess: Preprocess | None, labels: tuple[str, ...] | None
) -> dict[str, dict[str, Any]]:
    """Return the `config.json` with which `local-dir:` opens a folder, as save_config_for_hf."""
    if spec.stem == "resnet" and spec.resnet_layers not in _HYBRIDS:
        raise WeightsError(f"timm has no model with resnet_layers {spec.resnet_layers}.")
    if spec.resnet_width_factor != 1.0:
        raise WeightsError(
            f"timm has no model with resnet_width_factor {spec.resnet_width_factor:g}."
        )
    ratio = spec.mlp_dim / spec.width
    if int(spec.width * ratio) != spec.mlp_dim:  # timm cuts off, and the quotient was rounded down
        ratio = (spec.mlp_dim + 0.5) / spec.width
    # Not the classes: transformers gives them itself, beside these.
    arguments: dict[str, Any] = {
        "img_size": list(spec.image_size),
        "patch_size": spec.patch_size // spec.stem_stride,
        "in_chans": spec.in_channels,
        "global_pool": "token" if spec.pool == "token" else "avg",
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": ratio,
        "qkv_bias": spec.qkv_bias,
        "init_values": spec.layer_scale_init,
        "class_token": spec.class_token,
        "reg_tokens": spec.num_registers,
        # As `_express` has put it: positions for the class token unless there are registers.
        "no_embed_class": spec.pos_embed == "learned_grid" or spec.num_registers > 0,
        "fc_norm": spec.pool == "gap_norm",
        "act_layer": "gelu_tanh" if spec.gelu == "tanh" else "gelu",
    }
    trained: dict[str, Any] = {
        "input_size": [spec.in_channels, *spec.image_size],
        "num_classes": spec.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if preprocess is not None:
        values = preprocess.model_dump(mode="json")
        trained |= {theirs: values[ours] for theirs, ours in _PREPROCESS.items()}
    config = {
        "architecture": _function(spec),
        "num_classes": spec.num_classes,
        "num_features": spec.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": trained,
        **({"label_names": list(labels)} if labels else {}),
    }
    return {"config.json": config}


def _function(spec: ViTSpec) -> str:
    """Return the name of the model function nearest to an architecture."""
    if spec.stem == "resnet":
        return _HYBRIDS[spec.resnet_layers]
    width = min(_SIZES, key=lambda width: abs(width - spec.width))
    size, patches = _SIZES[width]
    if spec.patch_size == 14 and spec.layer_scale_init is not None and 384 <= width <= 1024:
        registers = "_reg4" if spec.num_registers else ""
        return f"vit_{size}_patch14{registers}_dinov2"
    patch = spec.patch_size if spec.patch_size in patches else patches[0]
    return f"vit_{size}_patch{patch}_224"


def _express(state: dict[str, Tensor], spec: ViTSpec) -> tuple[dict[str, Tensor], ViTSpec]:
    """Where registers stand between class token and grid, it has positions for all or the grid.

    So the class token takes its own in.
    """
    if not (spec.num_registers and spec.pos_embed_prefix):
        return state, spec
    token, positions = state["cls_token"], state["pos_embed"]
    state = {**state, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}
    return state, spec.replace(pos_embed="learned_grid")


def _arguments(spec: ViTSpec) -> tuple[str, ...]:
    averaged = f"global_pool='avg', fc_norm={spec.pool == 'gap_norm'}"
    return (
        *arguments_of_heads(spec),
        *(["act_layer='gelu_tanh'"] if spec.gelu == "tanh" else []),
        *([averaged] if spec.pool != "token" else []),
    )


def _preprocess_of(spec: ViTSpec) -> dict[str, Any]:
    if spec.layer_scale_init is None:
        return {**HALF, "crop_ratio": 0.9, "interpolation": "bicubic"}
    # DeiT III and DINOv2, not Google's weights.
    return {**IMAGENET, "crop_ratio": 1.0, "interpolation": "bicubic"}


_STEM = "patch_embed.backbone.stem"
_UNIT = "patch_embed.backbone.stages.{s}.blocks.{u}"


def _unit(conv: str, norm: str, ours: str) -> tuple[Row, ...]:
    convolution = Row((f"{_UNIT}.{conv}.weight",), f"stem.stages.{{s}}.{{u}}.conv{ours}.weight")
    return (convolution, *layer(f"{_UNIT}.{norm}", f"stem.stages.{{s}}.{{u}}.norm{ours}"))


TIMM = Dialect(
    name="timm",
    rows=(
        Row(("cls_token",), "cls_token"),
        Row(("reg_token",), "registers"),
        Row(("pos_embed",), "pos_embed"),
        *layers(("patch_embed.proj", "stem.proj")),
        *BLOCKS,
        *LAYER_SCALES,
        *layers(("norm", "norm"), ("pre_logits.fc", "pre_logits"), ("head", "head")),
        Row((f"{_STEM}.conv.weight",), "stem.root_conv.weight"),
        *layers((f"{_STEM}.norm", "stem.root_norm")),
        *(row for n in "123" for row in _unit(f"conv{n}", f"norm{n}", n)),
        *_unit("downsample.conv", "downsample.norm", "_proj"),
    ),
    signature=(r"patch_embed\.proj\.weight",),
    fixed=("norm_eps",),
    preprocess_of=_preprocess_of,
    limits={
        "stem": ("patch", "resnet"),
        "resnet_form": ("timm",),
        "representation_size": (None,),  # timm had one once, and reads it no more
        "pos_embed": ("learned", "learned_grid"),
        "gelu": ("erf",),
        "pool": ("token", "gap"),
    },
    suffixes=("", ".safetensors", ".pth", ".pt", ".bin"),
    # A folder by its config.json, a file by our metadata, which a user of timm's can read.
    says={"gelu": ("", ".safetensors")},
    read_sidecar=read_sidecar,
    write_sidecar=_write_sidecar,
    express=_express,
    arguments=_arguments,
    # transformers opens timm's folders where timm is installed, with a wrapper of its own.
    opened_by={"timm": TIMM_USAGE, "transformers": TRANSFORMERS},
)


def _renamed(prefix: str, new: str) -> tuple[Row, ...]:
    return tuple(
        dataclasses.replace(row, theirs=(row.theirs[0].replace(prefix, new, 1),))
        if row.theirs[0].startswith(prefix)
        else row
        for row in TIMM.rows
    )


# Without a class token's position the average may be taken before the norm, which is then called
# otherwise; a stem without stages, too, has another name.
TIMM_POOLED = dataclasses.replace(
    TIMM,
    rows=_renamed("norm.", "fc_norm."),
    signature=(*TIMM.signature, r"fc_norm\.weight"),
    limits={**TIMM.limits, "pool": ("gap_norm",)},
)
TIMM_BARE_STEM = dataclasses.replace(
    TIMM,
    rows=_renamed(f"{_STEM}.", "patch_embed.backbone."),
    signature=(*TIMM.signature, r"patch_embed\.backbone\.conv\.weight"),
    limits={**TIMM.limits, "stem": ("resnet",), "resnet_layers": ((),)},
)
