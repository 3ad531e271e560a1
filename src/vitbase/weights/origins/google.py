"""Google's weights: google-research/vision_transformer, AugReg, SAM, big_vision.

Source: vit_jax/models_vit.py and models_resnet.py; the numbers in the names are those of the
published files.
"""

from __future__ import annotations

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
from vitbase.weights.origins.rows import HALF

_BLOCK = "Transformer/encoderblock_{i}"
_MHA = f"{_BLOCK}/MultiHeadDotProductAttention_1"
_UNIT = "block{s+1}/unit{u+1}"


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


def _qkv(theirs: str, ours: str, layout: Layout) -> Row:
    parts = (f"{_MHA}/{part}/{theirs}" for part in ("query", "key", "value"))
    return Row(tuple(parts), f"blocks.{{i}}.attn.qkv.{ours}", layout)


def _unit(layer: str) -> tuple[Row, ...]:
    ours = "stem.stages.{s}.{u}"
    convolution = Row((f"{_UNIT}/conv{layer}/kernel",), f"{ours}.conv{layer}.weight", CONV)
    return (convolution, *_scale(f"{_UNIT}/gn{layer}", f"{ours}.norm{layer}"))


GOOGLE = Dialect(
    name="google",
    rows=(
        Row(("cls",), "cls_token"),
        Row(("Transformer/posembed_input/pos_embedding",), "pos_embed"),
        *_kernel("embedding", "stem.proj", CONV),
        *_scale(f"{_BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
        *_scale(f"{_BLOCK}/LayerNorm_2", "blocks.{i}.norm2"),
        _qkv("kernel", "weight", HEADS_IN),
        _qkv("bias", "bias", HEADS_BIAS),
        Row((f"{_MHA}/out/kernel",), "blocks.{i}.attn.proj.weight", HEADS_OUT),
        Row((f"{_MHA}/out/bias",), "blocks.{i}.attn.proj.bias"),
        *_kernel(f"{_BLOCK}/MlpBlock_3/Dense_0", "blocks.{i}.mlp.fc1"),
        *_kernel(f"{_BLOCK}/MlpBlock_3/Dense_1", "blocks.{i}.mlp.fc2"),
        *_scale("Transformer/encoder_norm", "norm"),
        *_kernel("pre_logits", "pre_logits"),
        *_kernel("head", "head"),
        Row(("conv_root/kernel",), "stem.root_conv.weight", CONV),
        *_scale("gn_root", "stem.root_norm"),
        *(row for layer in ("1", "2", "3", "_proj") for row in _unit(layer)),
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
    fixed=("gelu", "norm_eps"),
    preprocess_of=lambda spec: {**HALF, "crop_mode": "squash", "crop_ratio": 1.0},
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
    arguments=lambda spec: (),  # its kernels keep heads apart
)
