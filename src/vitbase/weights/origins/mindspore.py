"""MindSpore's `vit_base`. Source: the MindSpore model zoo's modeling_ms.py."""

from __future__ import annotations

from vitbase.weights.origins.dialect import Dialect, Row
from vitbase.weights.origins.rows import IMAGENET, PLAIN, layers, needs_head

_BLOCK = "transformer.encoder.layer.{i}"

# The order of the rows is that of its files.
MINDSPORE = Dialect(
    name="mindspore",
    rows=(
        Row(("transformer.embeddings.position_embeddings",), "pos_embed"),
        Row(("transformer.embeddings.cls_token",), "cls_token"),
        *layers(("transformer.embeddings.patch_embeddings", "stem.proj")),
        Row((f"{_BLOCK}.attention_norm.gamma",), "blocks.{i}.norm1.weight"),
        Row((f"{_BLOCK}.attention_norm.beta",), "blocks.{i}.norm1.bias"),
        Row((f"{_BLOCK}.ffn_norm.gamma",), "blocks.{i}.norm2.weight"),
        Row((f"{_BLOCK}.ffn_norm.beta",), "blocks.{i}.norm2.bias"),
        *layers(
            (f"{_BLOCK}.ffn.fc1", "blocks.{i}.mlp.fc1"),
            (f"{_BLOCK}.ffn.fc2", "blocks.{i}.mlp.fc2"),
            (
                f"{_BLOCK}.attn.query + {_BLOCK}.attn.key + {_BLOCK}.attn.value",
                "blocks.{i}.attn.qkv",
            ),
            (f"{_BLOCK}.attn.out", "blocks.{i}.attn.proj"),
        ),
        Row(("transformer.encoder.encoder_norm.gamma",), "norm.weight"),
        Row(("transformer.encoder.encoder_norm.beta",), "norm.bias"),
        # Of our own engine, as its metadata tell; the model zoo's code has no such layer.
        *layers(("pre_logits", "pre_logits")),
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
    fixed=("gelu", "norm_eps"),
    preprocess_of=lambda spec: IMAGENET,
    limits={**PLAIN, "gelu": ("tanh",)},
    refuses=needs_head,
    suffixes=(".ckpt",),
    file_order=("_norm.", ".ffn.", ".query.", ".key.", ".value.", ".out."),
    momentum_prefix="moments.",
)
