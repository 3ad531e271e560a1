"""A path -> a classifier: weights of any origin, on a device, by the runtime that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vitbase.errors import ConfigError, nearest
from vitbase.evaluation.calibration import read_temperature
from vitbase.evaluation.classifier import Classifier, of_model
from vitbase.runtime import local_runtime
from vitbase.weights.load import load_model


def open_classifier(
    path: str | Path,
    *,
    runtime: str = "auto",
    device_target: str = "auto",
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Classifier:
    """Open what classifies images.

    Args:
      path: a run, a checkpoint, or a weights file of any origin.
      runtime: what computes, one of :data:`RUNTIMES`; "auto" is the fastest that is known here.
      device_target: Ascend, GPU, CPU or auto.
      num_heads: where the weights do not tell.
      image_size: (height, width); None: as the weights.
    Returns: a classifier; its temperature is the one that is kept beside the weights.
    Raises: ConfigError for a runtime that there is not; WeightsError or CheckpointError for the
      weights, also if they have no head; DataError for the temperature.
    """
    name = "eager" if runtime == "auto" else runtime
    if name not in RUNTIMES:
        known = ", ".join(("auto", *RUNTIMES))
        raise ConfigError(
            f"There is no runtime '{runtime}'; there are {known}.{nearest(runtime, RUNTIMES)}"
        )
    return RUNTIMES[name](path, device_target, num_heads, image_size)


def _open_eager(
    path: str | Path,
    device_target: str,
    num_heads: int | None,
    image_size: tuple[int, int] | None,
) -> Classifier:
    """Open weights for torch, an operator after the other."""
    loaded = load_model(path, num_heads=num_heads, image_size=image_size)
    # Half precision would be faster on some devices, and move probabilities in the third digit.
    device = local_runtime(device_target, precision="fp32")
    return Classifier(
        of_model(loaded, device),
        loaded.preprocess,
        loaded.labels or (),
        path=loaded.path,
        num_classes=loaded.spec.num_classes,
        temperature=read_temperature(loaded.path) or 1.0,
        pin_memory=device.pin_memory,
        streams=torch.get_num_threads() if device.reads_at_once else 1,
        runtime="eager",
    )


RUNTIMES: dict[str, Callable[..., Classifier]] = {"eager": _open_eager}
"""What computes, by its name."""
