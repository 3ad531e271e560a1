"""Runs that take a second: their options, and what stands in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "model": "testing",
    "pool": "gap",
    "image_height": 16,
    "image_width": 16,
    "num_train_images": 60,
    "num_val_images": 20,
    "batch_size": 10,
    "epoch_size": 2,
    "warmup_epochs": 0,
    "log_every_steps": 2,
    "device_target": "CPU",
    "precision": "fp32",  # auto takes bf16 on CPUs that have units for it
    "num_workers": 2,
    "optimizer": "adamw",  # whose state ranks may shard
}
"""Options that turn recipe `fashion` into a run of a second on `tiny_idx`."""


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's metrics, of training and of evaluation."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses_of(run: Path) -> list[float]:
    """Read the losses that training has logged."""
    return [row["loss"] for row in rows_of(run) if "loss" in row]
