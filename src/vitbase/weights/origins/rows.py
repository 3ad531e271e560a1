"""The tables of every origin but Hugging Face, as data; `dialects.py` says how they are read.

Our own names are those of `VisionTransformer.state_dict()`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vitbase.model.spec import ViTSpec
from vitbase.weights.origins.dialect import (
    CONV,
    DENSE,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    VECTOR,
    Dialect,
    Layout,
    Row,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _both(theirs: str, ours: str) -> tuple[Row, Row]:
    """Rows for the weight and bias of a layer; ` + ` joins several of theirs."""
    parts = theirs.split(" + ")
    return (
        Row(tuple(f"{part}.weight" for part in parts), f"{ours}.weight"),
        Row(tuple(f"{part}.bias" for part in parts), f"{ours}.bias"),
    )


def layers(*pairs: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(row for theirs, ours in pairs for row in _both(theirs, ours))


def _kernel(theirs: str, ours: str, layout: Layout = DENSE) -> tuple[Row, Row]:
    """Rows for a layer of JAX's: kernel and bias."""
    return (
        Row((f"{theirs}/kernel",), f"{ours}.weight", layout),
        Row((f"{theirs}/bias",), f"{ours}.bias"),
    )


def _scale(theirs: str, ours: str) -> tuple[Row, Row]:
    """Rows for a norm of JAX's: scale and bias."""
    return (
        Row((f"{theirs}/scale",), f"{ours}.weight", VECTOR),
        Row((f"{theirs}/bias",), f"{ours}.bias", VECTOR),
    )


def _needs_head(spec: ViTSpec) -> str | None:
    return None if spec.num_classes else "no classes"


def _needs_square(spec: ViTSpec) -> str | None:
    height, width = spec.image_size
    return None if height == width else f"images of {height}x{width} pixels, which are no square"


def reads_both(spec: ViTSpec) -> str | None:
    """DINOv2's heads read the class token and the mean, its backbones give the class token."""
    if bool(spec.num_classes) == (spec.pool == "token_gap"):
        return None
    return f"pool {spec.pool!r} " + ("and classes" if spec.num_classes else "and no classes")


# What a plain classifier is; a dialect that can express more says so.
PLAIN: dict[str, tuple[Any, ...]] = {
    "stem": ("patch",),
    "class_token": (True,),
    "pool": ("token",),
    "num_registers": (0,),
    "representation_size": (None,),
    "layer_scale_init": (None,),
    "pos_embed": ("learned",),
    "qkv_bias": (True,),
}

_OUR_BLOCKS = layers(
    *(
        (name, name)
        for name in (
            "blocks.{i}.norm1",
            "blocks.{i}.attn.qkv",
            "blocks.{i}.attn.proj",
            "blocks.{i}.norm2",
            "blocks.{i}.mlp.fc1",
            "blocks.{i}.mlp.fc2",
        )
    )
)

VITBASE = Dialect(
    name="vitbase",
    rows=(
        *_OUR_BLOCKS,
        *(Row((n,), n) for n in ("cls_token", "registers", "pos_embed")),
        *(Row((n,), n) for n in ("blocks.{i}.scale1", "blocks.{i}.scale2")),
        *layers(*((n, n) for n in ("stem.proj", "norm", "pre_logits", "head", "stem.root_norm"))),
        Row(("stem.root_conv.weight",), "stem.root_conv.weight"),
        *layers(("stem.norms.{i}", "stem.norms.{i}")),
        Row(("stem.convs.{i}.weight",), "stem.convs.{i}.weight"),
        *(
            Row((n,), n)
            for layer in ("1", "2", "3", "_proj")
            for n in (
                f"stem.stages.{{s}}.{{u}}.conv{layer}.weight",
                f"stem.stages.{{s}}.{{u}}.norm{layer}.weight",
                f"stem.stages.{{s}}.{{u}}.norm{layer}.bias",
            )
        ),
    ),
    signature=(r"stem\.proj\.weight",),
    suffixes=(".safetensors",),
)

# Source: the MindSpore model zoo's vit_base, modeling_ms.py. The order of the rows is that of its
# files.
MINDSPORE = Dialect(
    name="mindspore",
    rows=(
        Row(("transformer.embeddings.position_embeddings",), "pos_embed"),
        Row(("transformer.embeddings.cls_token",), "cls_token"),
        *layers(("transformer.embeddings.patch_embeddings", "stem.proj")),
        *(
            Row((f"transformer.encoder.layer.{{i}}.{t}",), f"blocks.{{i}}.{o}")
            for t, o in (
                ("attention_norm.gamma", "norm1.weight"),
                ("attention_norm.beta", "norm1.bias"),
                ("ffn_norm.gamma", "norm2.weight"),
                ("ffn_norm.beta", "norm2.bias"),
                ("ffn.fc1.weight", "mlp.fc1.weight"),
                ("ffn.fc1.bias", "mlp.fc1.bias"),
                ("ffn.fc2.weight", "mlp.fc2.weight"),
                ("ffn.fc2.bias", "mlp.fc2.bias"),
            )
        ),
        *layers(
            (
                "transformer.encoder.layer.{i}.attn.query"
                " + transformer.encoder.layer.{i}.attn.key"
                " + transformer.encoder.layer.{i}.attn.value",
                "blocks.{i}.attn.qkv",
            ),
            ("transformer.encoder.layer.{i}.attn.out", "blocks.{i}.attn.proj"),
        ),
        Row(("transformer.encoder.encoder_norm.gamma",), "norm.weight"),
        Row(("transformer.encoder.encoder_norm.beta",), "norm.bias"),
        *layers(("head", "head")),
    ),
    signature=(r"transformer\.embeddings\.patch_embeddings\.weight",),
    # What MindSpore's optimizers, and its scaling of losses, keep beside the weights in a training
    # checkpoint. Source: mindspore/nn/optim, mindspore/nn/wrap/loss_scale.py.
    left_out=(
        r"(moment[s12]?|vhat|(adam|lamb)_[mv]|accum(_update)?|stat|mean_(square|grad)|linear|prev"
        r"|step_size)\..+"
        r"|learning_rate|momentum|beta[12]_power|global_step|epoch_num|step_num"
        r"|scale_sense|current_iterator_step|last_overflow_iterator_step|fake_(lr|param)"
    ),
    gelu="tanh",
    preprocess=IMAGENET,
    limits={**PLAIN, "gelu": ("tanh",)},
    refuses=_needs_head,
    suffixes=(".ckpt",),
    file_order=("_norm.", ".ffn.", ".query.", ".key.", ".value.", ".out."),
)

_GOOGLE_BLOCK = "Transformer/encoderblock_{i}"
_MHA = f"{_GOOGLE_BLOCK}/MultiHeadDotProductAttention_1"

# Source: google-research/vision_transformer, vit_jax/models_vit.py and models_resnet.py; the
# numbers in the names are those of the published files.
GOOGLE = Dialect(
    name="google",
    rows=(
        Row(("cls",), "cls_token"),
        Row(("Transformer/posembed_input/pos_embedding",), "pos_embed"),
        *_kernel("embedding", "stem.proj", CONV),
        *_scale(f"{_GOOGLE_BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
        *_scale(f"{_GOOGLE_BLOCK}/LayerNorm_2", "blocks.{i}.norm2"),
        Row(
            tuple(f"{_MHA}/{part}/kernel" for part in ("query", "key", "value")),
            "blocks.{i}.attn.qkv.weight",
            HEADS_IN,
        ),
        Row(
            tuple(f"{_MHA}/{part}/bias" for part in ("query", "key", "value")),
            "blocks.{i}.attn.qkv.bias",
            HEADS_BIAS,
        ),
        Row((f"{_MHA}/out/kernel",), "blocks.{i}.attn.proj.weight", HEADS_OUT),
        Row((f"{_MHA}/out/bias",), "blocks.{i}.attn.proj.bias"),
        *_kernel(f"{_GOOGLE_BLOCK}/MlpBlock_3/Dense_0", "blocks.{i}.mlp.fc1"),
        *_kernel(f"{_GOOGLE_BLOCK}/MlpBlock_3/Dense_1", "blocks.{i}.mlp.fc2"),
        *_scale("Transformer/encoder_norm", "norm"),
        *_kernel("pre_logits", "pre_logits"),
        *_kernel("head", "head"),
        Row(("conv_root/kernel",), "stem.root_conv.weight", CONV),
        *_scale("gn_root", "stem.root_norm"),
        *(
            row
            for layer in ("1", "2", "3", "_proj")
            for row in (
                Row(
                    (f"block{{s+1}}/unit{{u+1}}/conv{layer}/kernel",),
                    f"stem.stages.{{s}}.{{u}}.conv{layer}.weight",
                    CONV,
                ),
                *_scale(
                    f"block{{s+1}}/unit{{u+1}}/gn{layer}", f"stem.stages.{{s}}.{{u}}.norm{layer}"
                ),
            )
        ),
    ),
    signature=(r"embedding/kernel", r"Transformer/encoder_norm/scale"),
    spellings=(
        (r"^(?:opt/target/|params/img/|params/)", ""),
        # Newer flax counts each kind of module from 0, older flax all of them together.
        (r"(/encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
        (r"/MlpBlock_0/", "/MlpBlock_3/"),
        (r"/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),  # big_vision
    ),
    gelu="tanh",
    preprocess={**HALF, "crop_mode": "squash", "crop_ratio": 1.0},
    limits={
        "stem": ("patch", "resnet"),
        "resnet_form": ("jax",),
        "pool": ("token", "gap"),
        "num_registers": (0,),
        "layer_scale_init": (None,),
        "pos_embed": ("learned",),
        "qkv_bias": (True,),
        "gelu": ("tanh",),
    },
    refuses=lambda spec: (
        "an average and a class token" if spec.class_token and spec.pool == "gap" else None
    ),
    suffixes=(".npz",),
)


def _renamed(rows: tuple[Row, ...], names: dict[str, str]) -> tuple[Row, ...]:
    return tuple(
        dataclasses.replace(row, theirs=tuple(names.get(name, name) for name in row.theirs))
        for row in rows
    )


_TIMM_STEM = "patch_embed.backbone.stem"
_TIMM_UNIT = "patch_embed.backbone.stages.{s}.blocks.{u}"
_TIMM_ROWS = (
    Row(("cls_token",), "cls_token"),
    Row(("reg_token",), "registers"),
    Row(("pos_embed",), "pos_embed"),
    *layers(("patch_embed.proj", "stem.proj")),
    *_OUR_BLOCKS,
    Row(("blocks.{i}.ls1.gamma",), "blocks.{i}.scale1"),
    Row(("blocks.{i}.ls2.gamma",), "blocks.{i}.scale2"),
    *layers(("norm", "norm"), ("pre_logits.fc", "pre_logits"), ("head", "head")),
    Row((f"{_TIMM_STEM}.conv.weight",), "stem.root_conv.weight"),
    *layers((f"{_TIMM_STEM}.norm", "stem.root_norm")),
    *(
        row
        for theirs_conv, theirs_norm, layer in (
            ("conv1", "norm1", "1"),
            ("conv2", "norm2", "2"),
            ("conv3", "norm3", "3"),
            ("downsample.conv", "downsample.norm", "_proj"),
        )
        for row in (
            Row(
                (f"{_TIMM_UNIT}.{theirs_conv}.weight",),
                f"stem.stages.{{s}}.{{u}}.conv{layer}.weight",
            ),
            *_both(f"{_TIMM_UNIT}.{theirs_norm}", f"stem.stages.{{s}}.{{u}}.norm{layer}"),
        )
    ),
)
_TIMM_LIMITS: dict[str, tuple[Any, ...]] = {
    "stem": ("patch", "resnet"),
    "resnet_form": ("timm",),
    "representation_size": (None,),  # timm had one once, and reads it no more
    "pos_embed": ("learned", "learned_grid"),
    "gelu": ("erf",),
}

# Source: timm/models/vision_transformer.py, vision_transformer_hybrid.py.
TIMM = Dialect(
    name="timm",
    rows=_TIMM_ROWS,
    signature=(r"patch_embed\.proj\.weight",),
    preprocess={**HALF, "crop_ratio": 0.9, "interpolation": "bicubic"},
    limits={**_TIMM_LIMITS, "pool": ("token", "gap")},
    suffixes=("", ".safetensors", ".pth", ".pt", ".bin"),
)
# Without a class token's position the average may be taken before the norm, which is then called
# otherwise; a stem without stages, too, has another name.
TIMM_POOLED = dataclasses.replace(
    TIMM,
    rows=_renamed(_TIMM_ROWS, {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}),
    signature=(r"patch_embed\.proj\.weight", r"fc_norm\.weight"),
    limits={**_TIMM_LIMITS, "pool": ("gap_norm",)},
)
_BARE_ROWS = _renamed(
    _TIMM_ROWS,
    {
        f"{_TIMM_STEM}.{part}": f"patch_embed.backbone.{part}"
        for part in ("conv.weight", "norm.weight", "norm.bias")
    },
)
TIMM_BARE_STEM = dataclasses.replace(
    TIMM,
    rows=_BARE_ROWS,
    signature=(r"patch_embed\.proj\.weight", r"patch_embed\.backbone\.conv\.weight"),
    limits={**TIMM.limits, "stem": ("resnet",), "resnet_layers": ((),)},
)

# Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py.
DINOV2 = Dialect(
    name="dinov2",
    rows=(
        Row(("cls_token",), "cls_token"),
        Row(("pos_embed",), "pos_embed"),
        Row(("register_tokens",), "registers"),
        *layers(("patch_embed.proj", "stem.proj")),
        *_OUR_BLOCKS,
        Row(("blocks.{i}.ls1.gamma",), "blocks.{i}.scale1"),
        Row(("blocks.{i}.ls2.gamma",), "blocks.{i}.scale2"),
        *layers(("norm", "norm"), ("linear_head", "head")),
    ),
    signature=(r"patch_embed\.proj\.weight", r"mask_token|register_tokens|linear_head\.weight"),
    spellings=(
        (r"^backbone\.", ""),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # its blocks may stand in chunks
    ),
    left_out=r"mask_token|(dino|ibot)_head\..+",
    preprocess={**IMAGENET, "interpolation": "bicubic"},
    limits={
        "stem": ("patch",),
        "class_token": (True,),
        "pool": ("token", "token_gap"),
        "representation_size": (None,),
        "pos_embed": ("learned",),
        "gelu": ("erf",),
    },
    refuses=reads_both,
    suffixes=(".pth", ".pt", ".safetensors"),
    unused=("mask_token",),
)

_TORCHVISION_BLOCK = "encoder.layers.encoder_layer_{i}"

# Source: torchvision/models/vision_transformer.py.
TORCHVISION = Dialect(
    name="torchvision",
    rows=(
        Row(("class_token",), "cls_token"),
        *layers(("conv_proj", "stem.proj")),
        Row(("encoder.pos_embedding",), "pos_embed"),
        *layers((f"{_TORCHVISION_BLOCK}.ln_1", "blocks.{i}.norm1")),
        *(
            Row((f"{_TORCHVISION_BLOCK}.self_attention.in_proj_{k}",), f"blocks.{{i}}.attn.qkv.{k}")
            for k in ("weight", "bias")
        ),
        *layers(
            (f"{_TORCHVISION_BLOCK}.self_attention.out_proj", "blocks.{i}.attn.proj"),
            (f"{_TORCHVISION_BLOCK}.ln_2", "blocks.{i}.norm2"),
            (f"{_TORCHVISION_BLOCK}.mlp.0", "blocks.{i}.mlp.fc1"),
            (f"{_TORCHVISION_BLOCK}.mlp.3", "blocks.{i}.mlp.fc2"),
            ("encoder.ln", "norm"),
            ("heads.pre_logits", "pre_logits"),
            ("heads.head", "head"),
        ),
    ),
    signature=(r"conv_proj\.weight", r"encoder\.pos_embedding"),
    spellings=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    preprocess=IMAGENET,
    limits={
        **{k: v for k, v in PLAIN.items() if k != "representation_size"},
        "gelu": ("erf",),
    },
    refuses=lambda spec: _needs_head(spec) or _needs_square(spec),
    suffixes=(".pth", ".pt", ".safetensors"),
)
