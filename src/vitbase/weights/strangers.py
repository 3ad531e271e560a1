"""Tensors that belong to no part of our models: what may stay behind, and what makes another model.

Only what no output of the encoder depends on is left out unasked. All else is named for what it
is, by all the unknown names and not the first: leaving it out would give another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# No part of an encoder, whoever trained it; matched against whole names.
_HARMLESS = re.compile(
    # counters of averages and trainings
    r"n_averaged|num_updates|initted|(global_)?step|epoch|iteration"
    # what optimizers, schedules and losses keep
    r"|(optimizer|optim|lr_scheduler|scheduler|(grad_)?scaler|criterion|(\w+_)?loss(_fn)?)\..+"
    # the decoder of a masked autoencoder, which learns to paint, and its token
    r"|decoder[._].+"
    # heads of learning without labels
    r"|((dino|ibot)_head|projector|projection_head|predictor|prototypes)\..+"
    r"|head\.(mlp|last_layer)\..+|queue(_ptr)?|center"
)
_HEAD = re.compile(r"(head|heads|classifier|fc|mlp_head|linear_head|cls_head)\..+")

# What other models have: a pattern, whose it is, and what to do, where there is something. The
# first that any name has is told, so the narrower ones come first.
_STRANGERS = tuple(
    (re.compile(pattern), whose, remedy)
    for pattern, whose, remedy in (
        (
            r"lora_|\.base_layer\.|\.modules_to_save\.|adapter",
            "a model with adapters (LoRA, PEFT)",
            "Merge them where it was made (peft: merge_and_unload), and save the model itself",
        ),
        (
            r"\.(SCB|qweight|qzeros|g_idx|absmax|quant_map|quant_state.*|(weight_)?scales?)$"
            r"|zero_point|_packed_params",
            "a quantised model",
            "Take its weights from before they were quantised",
        ),
        (
            r"\.(weight_[gv]|weight_orig)$|\.parametrizations\.",
            "a model whose weights are computed from others",
            "Where it was made, remove its parametrizations and save it again",
        ),
        (r"(^|\.)layers\.\d+\.(blocks|downsample)\.", "a Swin, which has windows and stages", ""),
        (r"dist(illation)?_token|head_dist", "a distilled DeiT, which has two heads", ""),
        (
            r"\brope|storage_tokens|bias_mask|^(model\.)?layer\.\d+\.attention\.[qkv]_proj",
            "DINOv3, or another model with rotary positions",
            "",
        ),
        (r"attn_pool|MAPHead|\bhead\.probe|logit_bias", "SigLIP, which pools by attention", ""),
        (r"norm_pre|ln_pre|pre_layrnorm", "CLIP, which has a norm before the blocks", ""),
        (r"relative_position|rel_pos", "BEiT, or another model with relative positions", ""),
        (r"proj_[lw]\.|blocks_token_only|cls_attn", "CaiT, or another with class attention", ""),
        (r"[qk]_norm", "a model that normalises queries and keys", ""),
        (
            r"\bmlp\.(w\d+|norm|fc1_[gx])\b|weights_(in|out)",
            "EVA, or another model with a gated MLP (SwiGLU)",
            "",
        ),
        (r"\.gamma_?\d$|\.[qv]_bias$|lambda_[12]$", "BEiT, EVA, DINOv3 or their like", ""),
        (r"\.(attns|ffns)\.\d", "a model with parallel layers in its blocks", ""),
        (r"text_|token_embedding", "a model of images and texts", ""),
    )
)


def leave_out(
    unknown: Mapping[str, str], pretraining: bool, new_head: bool
) -> tuple[list[str], dict[str, str]]:
    """Part the unknown tensors on which no output depends from the others.

    Args:
      unknown: by the file's name, the name in the network, or from where it parts from the
        network's names.
      pretraining: whether the network learned without labels; then its head is thrown away.
      new_head: whether its head is to be another.
    Returns: the file's names of those to leave out; and the others.
    """
    out, rest = [], {}
    for theirs, name in unknown.items():
        if _HARMLESS.fullmatch(name) or ((pretraining or new_head) and _HEAD.fullmatch(name)):
            out.append(theirs)
        else:
            rest[theirs] = name
    return out, rest


def explain_foreign(names: Iterable[str], dialects: Iterable[str]) -> str:
    """Say what a file is whose tensors no dialect knows."""
    names = list(names)
    first = f" (the first is '{names[0]}')" if names else ""
    stranger = _find_stranger(names)
    return (
        f"its {len(names)} tensors{first} are not those of a Vision Transformer of "
        f"{', '.join(dialects)}" + (f"; they seem to be of {stranger[1]}" if stranger else "")
    )


def explain_unknown(unknown: Mapping[str, str], outside: Iterable[str], prefix: str) -> str:
    """Say what unknown tensors are, and what to do.

    Args:
      unknown: by the file's name, the name in the network or beside it.
      outside: the file's names of those that stand beside it.
      prefix: of the network.
    """
    theirs, count = list(unknown), len(unknown)
    others = f" ({count} such tensors)" if count > 1 else ""
    stranger = _find_stranger(unknown.values())
    if stranger:
        number, words = stranger
        return (
            f"tensor '{theirs[number]}' is of {words}. Leaving it out{others} would make another "
            f"model of it"
        )
    if all(map(_HEAD.fullmatch, unknown.values())):
        head = unknown[theirs[0]].partition(".")[0]
        pattern = f"{theirs[0].removesuffix(unknown[theirs[0]])}{head}.*"
        return (
            f"tensor '{theirs[0]}' is of a head that is not one linear layer of the network"
            f"{others}. Training on other images gives it a new one (num_classes does, too). For "
            f"features without a head, ignore '{pattern}'"
        )
    others = f" ({count} such tensors: {', '.join(theirs[:4])}{', …' * (count > 4)})"
    text = (
        f"tensor '{theirs[0]}' belongs to no part of a Vision Transformer that vitbase computes"
        f"{others if count > 1 else ''}. "
    )
    if theirs[0] in set(outside):
        return f"{text}To take what stands beside it alone, give prefix (--prefix): '{prefix}'"
    return text + (
        "Names do not tell whether outputs depend on it. If you know that they do not, ignore it "
        "by name or pattern"
    )


def _find_stranger(names: Iterable[str]) -> tuple[int, str] | None:
    """Return the number of the first name that tells whose they are, and words for it; or None."""
    numbered = list(enumerate(names))
    for pattern, whose, remedy in _STRANGERS:
        for number, name in numbered:
            if pattern.search(name):
                return number, f"{whose}. {remedy or 'vitbase does not compute it'}"
    return None
