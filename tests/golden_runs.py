"""Short runs whose losses are committed: what a refactor must not move.

    python tests/golden_runs.py --write    # or: make golden-losses

renews tests/training/golden_losses/. A change that moves them must say why in its commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from made_runs import rows_of

import vitbase

FOLDER = Path(__file__).parent / "training" / "golden_losses"
STEPS = 30

# Enlarged from 28 pixels, so that crops and random operations have something to do. The rates are
# those of a small batch, raised until the losses of 30 steps depend on every option.
_COMMON: dict[str, Any] = {
    "data_path": "embedded",
    "val_data_path": None,
    "model": "ViT-Ti_16",
    "num_classes": 10,
    "num_train_images": None,
    "num_val_images": None,
    "image_height": 32,
    "image_width": 32,
    "image_channels": 1,
    "mean": (0.286,),
    "std": (0.353,),
    "batch_size": 4,
    "global_batch": 8,
    "eval_batch_size": 500,
    "total_steps": STEPS,
    "log_every_steps": 1,
    "device_target": "CPU",
    "precision": "fp32",
    "num_workers": 1,
}

RUNS: dict[str, dict[str, Any]] = {
    # Momentum, L2 decay on biases too, random resized crop.
    "imagenet": {"lr_init": 0.02, "warmup_steps": 5},
    # AdamW, timm's RandAugment, erasing, MixUp and CutMix, smoothing, stochastic depth, copies.
    "deit_b16": {"lr_init": 5e-4, "warmup_steps": 5},
    # The sigmoid loss summed over classes, big_vision's RandAugment, tanh layer, clipping.
    "augreg_b16": {
        "lr_init": 5e-4,
        "warmup_steps": 5,
        "representation_size": 192,
        "head_bias_init": -2.3,
    },
    # LAMB, 3-Augment, LayerScale, the sigmoid loss of binary targets.
    "deit3_b16": {"lr_init": 0.01, "warmup_steps": 5, "layer_scale_init": 0.1},
}
"""Recipe -> what is scaled down besides."""


def losses_of_recipe(recipe: str, folder: Path) -> list[float]:
    """Train some steps of a recipe in a folder; the loss of each, and of the evaluation after."""
    config = vitbase.load_config(
        recipe, **{**_COMMON, **RUNS[recipe], "output_dir": str(folder / recipe)}
    )
    output = vitbase.train(config).output_dir
    return [row["loss"] if "loss" in row else row["eval_loss"] for row in rows_of(output)]


def path_of(recipe: str) -> Path:
    """Where the losses of a recipe are committed."""
    return FOLDER / f"{recipe}.json"


def write_all() -> None:
    """Renew the committed losses."""
    torch.set_num_threads(1)
    for recipe in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            losses = losses_of_recipe(recipe, Path(folder))
        text = json.dumps({"recipe": recipe, "losses": losses}, indent=1)
        path_of(recipe).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write_all()
