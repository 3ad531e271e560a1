"""Options of runs that take a second."""

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
}
"""Options that turn recipe `fashion` into a run of a second on `tiny_idx`."""
