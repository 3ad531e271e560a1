"""The variants: one table, a variant is a row.

Rows say sizes only. What a run chooses (classes, image size, dropout, stochastic depth) is given
to ``create_model``; dropout is 0 in every row, although the JAX configurations have 0.1 in some,
because it belongs to the run. The GELU is the tanh approximation, as in JAX and MindSpore, but
for the DINOv2 rows; the readers of other weights set what their origin needs.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, TypedDict

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vitbase.errors import ConfigError
from vitbase.model.layers import sincos_pos_embed
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer

DEFAULT_VARIANT = "ViT-B_16"


class _Size(TypedDict):
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


# Ti: DeiT (arXiv 2012.12877); S: AugReg (arXiv 2106.10270); B, L, H: ViT (arXiv 2010.11929)
# table 1; g: Scaling Vision Transformers (arXiv 2106.04560) table 2.
_Ti: _Size = {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768}
_S: _Size = {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536}
_B: _Size = {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072}
_L: _Size = {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096}
_H: _Size = {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120}
_g: _Size = {"width": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144}

# Early Convolutions (arXiv 2106.14881) table 1: ViT_C-1GF, 4GF and 18GF, one block fewer than the
# patch models. The paper has BatchNorm in the stem.
_C_Ti: _Size = {"width": 192, "depth": 11, "num_heads": 3, "mlp_dim": 576}
_C_S: _Size = {"width": 384, "depth": 11, "num_heads": 6, "mlp_dim": 1152}
_C_B: _Size = {"width": 768, "depth": 11, "num_heads": 12, "mlp_dim": 3072}
_C_Mini: _Size = {"width": 128, "depth": 1, "num_heads": 4, "mlp_dim": 256}
_STEM_Ti = ((24, 3, 2), (48, 3, 2), (96, 3, 2), (192, 3, 2))
_STEM_S = ((48, 3, 2), (96, 3, 2), (192, 3, 2), (384, 3, 2))
_STEM_B = ((64, 3, 2), (128, 3, 2), (128, 3, 1), (256, 3, 2), (256, 3, 1), (512, 3, 2))
_STEM_MINI = ((8, 3, 1), (32, 3, 2), (64, 3, 2), (128, 3, 2))  # the first sees every pixel

_R50 = (3, 4, 6, 3)
_R50_16 = (3, 4, 9)  # three stages, so that a token stands for 16 pixels
_R26 = (2, 2, 2, 2)


def _dinov2(name: str, size: _Size, num_registers: int) -> ViTSpec:
    # DINOv2 (arXiv 2304.07193) without its SwiGLU giant; registers: arXiv 2309.16588.
    return ViTSpec(
        name=name,
        patch_size=14,
        **size,
        layer_scale_init=1e-5,
        num_registers=num_registers,
        gelu="erf",
    )


_ROWS: tuple[ViTSpec, ...] = (
    ViTSpec(name="testing", patch_size=16, width=10, depth=1, num_heads=2, mlp_dim=10),
    ViTSpec(name="ViT-Ti_16", patch_size=16, **_Ti),
    ViTSpec(name="ViT-S_16", patch_size=16, **_S),
    ViTSpec(name="ViT-S_32", patch_size=32, **_S),
    ViTSpec(name="ViT-B_8", patch_size=8, **_B),
    ViTSpec(name="ViT-B_16", patch_size=16, **_B),
    ViTSpec(name="ViT-B_32", patch_size=32, **_B),
    ViTSpec(name="ViT-L_16", patch_size=16, **_L),
    ViTSpec(name="ViT-L_32", patch_size=32, **_L),
    ViTSpec(name="ViT-H_14", patch_size=14, **_H),
    ViTSpec(name="ViT-g_14", patch_size=14, **_g),
    ViTSpec(name="R50+ViT-B_16", patch_size=16, **_B, stem="resnet", resnet_layers=_R50_16),
    ViTSpec(name="R26+ViT-B_32", patch_size=32, **_B, stem="resnet", resnet_layers=_R26),
    ViTSpec(name="R26+ViT-S_32", patch_size=32, **_S, stem="resnet", resnet_layers=_R26),
    ViTSpec(name="R50+ViT-L_32", patch_size=32, **_L, stem="resnet", resnet_layers=_R50),
    _dinov2("DINOv2-S_14", _S, 0),
    _dinov2("DINOv2-B_14", _B, 0),
    _dinov2("DINOv2-L_14", _L, 0),
    _dinov2("DINOv2-S_14-reg4", _S, 4),
    _dinov2("DINOv2-B_14-reg4", _B, 4),
    _dinov2("DINOv2-L_14-reg4", _L, 4),
    ViTSpec(name="ViTC-Ti_16", patch_size=16, **_C_Ti, stem="conv", conv_layers=_STEM_Ti),
    ViTSpec(name="ViTC-S_16", patch_size=16, **_C_S, stem="conv", conv_layers=_STEM_S),
    ViTSpec(name="ViTC-B_16", patch_size=16, **_C_B, stem="conv", conv_layers=_STEM_B),
    ViTSpec(
        name="ViTC-Mini_8",
        image_size=(28, 28),
        in_channels=1,
        patch_size=8,
        **_C_Mini,
        stem="conv",
        conv_layers=_STEM_MINI,
        class_token=False,
        pool="gap",
        head_init_std=0.05,
    ),
)
VARIANTS: dict[str, ViTSpec] = {row.name: row for row in _ROWS}


def list_variants() -> tuple[str, ...]:
    """The names of all variants."""
    return tuple(VARIANTS)


_SIZE_WORDS = {
    "tiny": "ti",
    "small": "s",
    "base": "b",
    "large": "l",
    "huge": "h",
    "giant": "g",
}


def _name_key(name: str) -> str:
    """A form in which "ViT-B_16", "B/16", "vit_b_16" and "vit_base_patch16" are the same."""
    text = re.sub(r"(?<=vit)(?=[a-z]\d)", "_", name.lower())  # vitb14, vits16
    words = [_SIZE_WORDS.get(word, word) for word in re.split(r"[^a-z0-9]+", text)]
    words = [re.sub(r"^patch(?=\d)", "", word) for word in words]
    words = ["reg4" if word == "reg" else word for word in words]
    words = [word for word in words if word not in ("", "vit", "patch")]
    # timm says vit_base_r50_s16 for R50+ViT-B_16 and vit_base_patch14_dinov2 for DINOv2-B_14.
    words = [re.sub(r"^s(?=(16|32)$)", "", w) if i > 1 else w for i, w in enumerate(words)]
    words.sort(key=_word_rank)
    return "".join(words)


def _word_rank(word: str) -> int:
    """Order of a key's words: stem or method, size, patch, registers."""
    if re.fullmatch(r"r\d+|dinov2|vitc", word):
        return 0
    return 2 if word.startswith("reg") else 1


_BY_KEY = {_name_key(name): name for name in VARIANTS}
_TRAILING_SIZE = re.compile(r"[_-](\d{3})$")


def find_variant(name: str) -> tuple[str, int | None]:
    """Look a variant up by any of its names, in any case.

    Args:
      name: "ViT-B_16", "B/16", "vit_b_16", "vit_base_patch16_384", "vit_base_r50_s16", ...
    Returns: the name in the table, and the image size in the name, if there is one.
    Raises: ConfigError if there is no such variant; it names the nearest.
    """
    size = _TRAILING_SIZE.search(name)
    stem = name[: size.start()] if size else name
    key = _name_key(stem)
    if key in _BY_KEY:
        return _BY_KEY[key], int(size[1]) if size else None
    close = difflib.get_close_matches(key, _BY_KEY, n=1, cutoff=0.4)
    hint = f" Did you mean '{_BY_KEY[close[0]]}'?" if close else ""
    raise ConfigError(f"Unknown model '{name}'.{hint} Known: {', '.join(VARIANTS)}.")


def variant_spec(
    name: str = DEFAULT_VARIANT,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    **overrides: Any,
) -> ViTSpec:
    """The specification of a variant, changed where asked.

    Args:
      name: of a variant, see ``find_variant``.
      num_classes: outputs of the head; 0 for none.
      image_size: side, or (height, width), in pixels; None means the size in the name, else the
        row's own (224; 28 for ViTC-Mini_8).
      in_channels: None means the row's own (3; 1 for ViTC-Mini_8).
      overrides: other fields of the row.
    Raises: ConfigError if the name or a field is unknown, or the combination impossible.
    """
    row_name, size_in_name = find_variant(name)
    row = VARIANTS[row_name]
    size = image_size or size_in_name or row.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return row.replace(
        num_classes=num_classes,
        image_size=(height, width),
        in_channels=row.in_channels if in_channels is None else in_channels,
        **overrides,
    )


_SIZES = (
    "patch_size",
    "width",
    "depth",
    "num_heads",
    "mlp_dim",
    "stem",
    "conv_layers",
    "resnet_layers",
    "resnet_width_factor",
    "num_registers",
)


def name_of(spec: ViTSpec) -> str | None:
    """Find the variant whose row has the sizes of a specification.

    Returns: its name, or None. Of two rows of the same sizes, the one with or without LayerScale.
    """
    for row in _ROWS:
        same = all(getattr(row, field) == getattr(spec, field) for field in _SIZES)
        if same and (row.layer_scale_init is None) == (spec.layer_scale_init is None):
            return row.name
    return None


def heads_of(width: int, mlp_dim: int) -> int | None:
    """Return the heads that every variant of these sizes has, or None if there is none."""
    found = {row.num_heads for row in _ROWS if (row.width, row.mlp_dim) == (width, mlp_dim)}
    return found.pop() if len(found) == 1 else None


def build_model(spec: ViTSpec) -> VisionTransformer:
    """Build a model with new weights, drawn from torch's default generator."""
    return VisionTransformer(spec)


def build_unfilled(spec: ViTSpec) -> VisionTransformer:
    """Build a model on the meta device: every parameter has a shape, none has memory or a value."""
    with torch.device("meta"), _Undrawn():
        return VisionTransformer(spec)


class _Undrawn(TorchFunctionMode):
    """Draws no values: there is no place for them, and to say so torch loads its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in {"normal_", "uniform_", "trunc_normal_"}:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **kwargs or {})


def allocate(model: VisionTransformer) -> None:
    """Give the parameters of :func:`build_unfilled` memory; the caller fills every one of them."""
    # `to_empty` does the same, and loads a second's worth of torch to do so.
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(memory, parameter.requires_grad))
    if model.spec.pos_embed == "sincos2d":
        model.pos_embed = sincos_pos_embed(model.spec.grid_hw, model.spec.width)


def create_model(
    name: str = DEFAULT_VARIANT,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    **overrides: Any,
) -> VisionTransformer:
    """Build a variant with new weights; the arguments are those of ``variant_spec``."""
    return build_model(
        variant_spec(
            name,
            num_classes=num_classes,
            image_size=image_size,
            in_channels=in_channels,
            **overrides,
        )
    )
