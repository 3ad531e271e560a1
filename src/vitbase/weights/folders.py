"""Folders as Hugging Face and timm keep them: weights, and a `config.json` to build the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.weights.files.open import write_safetensors
from vitbase.weights.origins.dialect import Dialect

# timm's model functions by the stages of their ResNet stem; any of them takes all other sizes.
_TIMM_FUNCTIONS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_RESAMPLING = {"bilinear": 2, "bicubic": 3}


def write_folder(
    folder: Path,
    dialect: Dialect,
    tensors: Mapping[str, Tensor],
    spec: ViTSpec,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
) -> None:
    """Write weights and configuration, so that `from_pretrained` or `local-dir:` opens them.

    Raises: WeightsError if the configuration cannot express the architecture, or the labels are
      more than the classes.
    """
    if labels and len(labels) > spec.num_classes:
        raise WeightsError(f"There are {len(labels)} labels for {spec.num_classes} classes.")
    if dialect.name == "timm":
        config = _timm_config(spec, preprocess, labels)
    else:
        config = _hf_config(spec, labels)
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    _write_json(folder / "config.json", config)
    if dialect.name == "hf" and preprocess is not None:
        _write_json(folder / "preprocessor_config.json", _hf_processor(preprocess))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _timm_config(
    spec: ViTSpec, preprocess: Preprocess | None, labels: tuple[str, ...] | None
) -> dict[str, Any]:
    """Source: timm/models/_hub.py, save_config_for_hf."""
    hybrid = spec.stem == "resnet"
    if hybrid and spec.resnet_layers not in _TIMM_FUNCTIONS:
        raise WeightsError(f"timm has no model with resnet_layers {spec.resnet_layers}.")
    if spec.resnet_width_factor != 1.0:
        raise WeightsError(
            f"timm has no model with resnet_width_factor {spec.resnet_width_factor:g}."
        )
    ratio = spec.mlp_dim / spec.width
    if int(spec.width * ratio) != spec.mlp_dim:  # timm cuts off, and the quotient was rounded down
        ratio = (spec.mlp_dim + 0.5) / spec.width
    arguments: dict[str, Any] = {
        "img_size": list(spec.image_size),
        "patch_size": spec.patch_size // spec.stem_stride,
        "in_chans": spec.in_channels,
        "num_classes": spec.num_classes,
        "global_pool": "token" if spec.pool == "token" else "avg",
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": ratio,
        "qkv_bias": spec.qkv_bias,
        "init_values": spec.layer_scale_init,
        "class_token": spec.class_token,
        "reg_tokens": spec.num_registers,
        # As `save.py` has put it: positions for the class token unless there are registers.
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
        trained |= {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_ratio,
            "crop_mode": preprocess.crop_mode,
        }
    name = _TIMM_FUNCTIONS[spec.resnet_layers] if hybrid else "vit_base_patch16_224"
    return {
        "architecture": name,
        "num_classes": spec.num_classes,
        "num_features": spec.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": trained,
        **({"label_names": list(labels)} if labels else {}),
    }


def _hf_config(spec: ViTSpec, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Source: transformers' configuration_vit.py, configuration_dinov2.py."""
    height, width = spec.image_size
    config: dict[str, Any] = {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "hidden_act": "gelu_pytorch_tanh" if spec.gelu == "tanh" else "gelu",
        "layer_norm_eps": spec.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": spec.in_channels,
        "qkv_bias": spec.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    if spec.layer_scale_init is None:
        kind = "ViT"
        config |= {"model_type": "vit", "intermediate_size": spec.mlp_dim}
        if spec.representation_size is not None:
            config |= {"pooler_output_size": spec.representation_size, "pooler_act": "tanh"}
    else:
        kind = "Dinov2WithRegisters" if spec.num_registers else "Dinov2"
        config |= {
            "model_type": "dinov2_with_registers" if spec.num_registers else "dinov2",
            "mlp_ratio": spec.mlp_dim // spec.width,
            "layerscale_value": spec.layer_scale_init,
            "use_swiglu_ffn": False,
        }
        if spec.num_registers:
            config["num_register_tokens"] = spec.num_registers
    config["architectures"] = [kind + ("ForImageClassification" if spec.num_classes else "Model")]
    if spec.num_classes:
        names = list(labels or ())
        names += [f"LABEL_{number}" for number in range(len(names), spec.num_classes)]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    return config


def _hf_processor(preprocess: Preprocess) -> dict[str, Any]:
    """Source: transformers' image_processing_vit.py, image_processing_{deit,bit}.py."""
    sides = {"height": preprocess.height, "width": preprocess.width}
    resized = {side: int(pixels / preprocess.crop_ratio + 1e-6) for side, pixels in sides.items()}
    crop: dict[str, Any] = {"do_center_crop": True, "crop_size": sides}
    how: dict[str, Any]
    if preprocess.crop_mode == "squash" and resized == sides:
        how = {"image_processor_type": "ViTImageProcessor", "size": sides}
    elif preprocess.crop_mode == "squash":
        how = {"image_processor_type": "DeiTImageProcessor", "size": resized, **crop}
    elif preprocess.height == preprocess.width:
        shortest = {"shortest_edge": resized["height"]}
        how = {"image_processor_type": "BitImageProcessor", "size": shortest, **crop}
    else:
        # A shortest edge is not enough to cover another shape: black bars would fill it up. So it
        # is told not to resize, and its model refuses images that nobody has resized.
        how = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": preprocess.channels == 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "resample": _RESAMPLING[preprocess.interpolation],
        **how,
    }
