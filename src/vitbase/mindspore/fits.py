"""What of a configuration the MindSpore engine reads; the rest is refused, by the option's name.

No MindSpore here: a run that needs the other engine is told so before anything is loaded. Every
option stands in one of three tables, which a test holds against the options there are, so that a
new one cannot pass unread.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

from vitbase.config.config import FIELDS, Config
from vitbase.errors import ConfigError, DeviceError
from vitbase.model.spec import ViTSpec

READ = frozenset(
    {
        # of the run, and its folder
        *("engine", "name", "output_dir", "seed", "device_id", "num_devices", "resume"),
        *("hang_minutes", "report"),
        *("log_every_steps", "keep_checkpoint_max", "checkpoint_every_steps", "checkpoint_format"),
        "checkpoint_every_minutes",
        # images, their order and augmentation: the code of both engines
        *("data_path", "val_data_path", "layout", "num_train_images", "num_val_images"),
        *("num_classes", "image_height", "image_width", "image_channels", "mean", "std"),
        *("interpolation", "crop_ratio", "crop_mode", "batch_size", "global_batch", "sampling"),
        *("eval_batch_size", "num_workers", "holdout_fraction", "on_bad_image", "max_bad_images"),
        *("train_crop", "crop_area_min", "crop_pad", "flip", "policy", "randaugment_layers"),
        *("randaugment_magnitude", "randaugment_magnitude_std", "color_jitter"),
        *("erase_probability", "erase_mode", "repeated_augmentation", "mixup_alpha"),
        *("cutmix_alpha", "mix_probability", "mix_switch_probability"),
        # the model and its weights; what a specification may be, see `check_spec`
        *("model", "pre_trained", "checkpoint_path", "ignore_weights", "weights_prefix"),
        *("continue_training", "num_heads", "representation_size", "head_init_std"),
        *("head_bias_init", "gelu", "stochastic_depth_rule"),
        # how it learns
        *("lr_init", "lr_by_global_batch", "lr_scaling", "momentum", "betas", "weight_decay"),
        *("decay_on", "clip_norm", "accumulation_steps", "ema_every_steps", "label_smoothing"),
        *("epoch_size", "total_steps", "schedule", "lr_final", "warmup_epochs", "warmup_steps"),
        *("eval_every_epochs", "patience", "frozen_views", "on_failed_save"),
        # how `vitbase eval` looks at images: the code of both engines
        *("protocol", "test_time_augmentation", "suite", "map"),
    }
)
"""Options that may have any value. Three belong to others that are refused, and decide nothing."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "device_target": ("auto", "Ascend", "CPU"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "parallel": ("auto", "ddp"),
    "optimizer": ("momentum", "adamw"),
    "loss": ("softmax",),
    "pool": (None, "token", "gap"),
    "pos_embed": (None, "learned"),
    "dropout": (None, 0.0),
    "stochastic_depth": (None, 0.0),
    "num_registers": (None, 0),
}
"""Options that may have some values only."""

NOT_READ = frozenset(
    {
        *("tf32", "compile", "device_graph", "fp8", "tensorboard", "layer_scale_init"),
        *("freeze_backbone", "activation_checkpointing", "memory_budget", "layer_decay"),
        *("ema_decay", "over_classes", "decoder", "worker_processes"),
        *("binary_targets", "class_weights", "max_nonfinite_updates", "on_nonfinite"),
    }
)
"""Options that must keep their defaults."""

_SPEC: Mapping[str, tuple[Any, ...]] = {
    "stem": ("patch",),
    "pool": ("token", "gap"),
    "num_registers": (0,),
    "layer_scale_init": (None,),
    "pos_embed": ("learned",),
    "qkv_bias": (True,),
    "dropout": (0.0,),
    "stochastic_depth": (0.0,),
}
_TORCH_DOES = "--engine torch does that."
INSTALL = "pip install 'vitbase[mindspore]'"


def check_options(config: Config) -> None:
    """Check that this engine reads all that a run asks for.

    Raises: ConfigError naming every option that it does not.
    """
    lines = []
    for option, (section, field) in FIELDS.items():
        if option in READ:
            continue
        value = getattr(getattr(config, section), option)
        allowed = ONLY.get(option, (field.get_default(call_default_factory=True),))
        if value not in allowed:
            takes = " or ".join(str(known) for known in allowed if known is not None)
            lines.append(
                f"Option '{option}' is {value}; engine mindspore "
                + (f"takes {takes}." if option in ONLY and takes else "does not read it.")
            )
    if lines:
        raise ConfigError(*lines, f"For such a run, {_TORCH_DOES}")


def check_spec(spec: ViTSpec) -> None:
    """Check that a model is a plain Vision Transformer. Raises: ConfigError saying what is not."""
    found = [
        f"{field} {getattr(spec, field)}"
        for field, allowed in _SPEC.items()
        if getattr(spec, field) not in allowed
    ]
    if found:
        raise ConfigError(
            f"Engine mindspore computes plain Vision Transformers; {spec.name} (option 'model', or "
            f"the weights' own) has {', '.join(found)}: {_TORCH_DOES}"
        )


def check_installed() -> None:
    """Check that MindSpore can be used here, without loading it.

    Raises: DeviceError saying what to install.
    """
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None:  # or a folder of that name, somewhere on the path
        raise DeviceError(
            f"Engine mindspore needs MindSpore, which is not installed here: {INSTALL}, in an "
            f"environment of its own (it needs numpy below 2), or give --engine torch."
        )
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise DeviceError(
            f"MindSpore was built with numpy 1 and fails in the middle of a run with the numpy "
            f"{version} that is here. Give it an environment of its own: {INSTALL}, with numpy<2."
        )
