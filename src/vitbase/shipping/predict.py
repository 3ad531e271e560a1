"""The classes a model sees in a user's images, with probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitbase.data.augment import EvalTransform
from vitbase.data.normalize import normalize
from vitbase.disk import LONGEST_IMAGE, read_regular
from vitbase.errors import ImageError
from vitbase.evaluation.calibration import read_temperature
from vitbase.runtime import local_runtime
from vitbase.sources.named import expand
from vitbase.weights.load import LoadedModel, load_model


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or why it could not be read."""

    image: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        if self.error is not None:
            yield f"{self.image}: {self.error}"
            return
        yield str(self.image)
        width = max(len(name) for name, _ in self.classes)
        for name, probability in self.classes:
            yield f"  {name:<{width}}  {probability:7.2%}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        classes = [{"class": name, "probability": share} for name, share in self.classes]
        return {"image": str(self.image), "classes": classes}


def predict(
    paths: Sequence[str | Path],
    weights: str | Path,
    *,
    top: int = 5,
    device_target: str = "auto",
    batch_size: int = 32,
    recursive: bool = False,
) -> list[Prediction]:
    """Classify images.

    Args:
      paths: image files; a folder stands for every image directly inside it.
      weights: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      top: how many classes to return for each image.
      recursive: whether a folder stands for the images in the folders inside it, too.
    Returns: one Prediction for each image, in order; probabilities are at the temperature that
      `vitbase eval --calibrate` has kept beside the weights, if it has.
    Raises: DataError if a path does not exist, or that temperature is of other weights;
      WeightsError or CheckpointError for the weights; WeightsError if they have no head.
    """
    loaded = load_model(weights)
    return list(
        predict_each(
            expand(paths, recursive=recursive),
            loaded,
            top=top,
            device_target=device_target,
            batch_size=batch_size,
            temperature=read_temperature(loaded.path) or 1.0,
        )
    )


def predict_each(
    images: Sequence[Path],
    loaded: LoadedModel,
    *,
    top: int = 5,
    device_target: str = "auto",
    batch_size: int = 32,
    temperature: float = 1.0,
) -> Iterator[Prediction]:
    """As :func:`predict`, on a loaded model, yielding results as they come.

    Args:
      temperature: divides the logits.
    """
    loaded.check_head()
    # Half precision would be faster on some devices, and move probabilities in the third digit.
    runtime = local_runtime(device_target, precision="fp32")
    preprocess = loaded.preprocess
    transform = EvalTransform(preprocess)
    model = loaded.model.to(runtime.device).eval()
    names = loaded.labels or tuple(str(i) for i in range(loaded.spec.num_classes))
    top = min(top, loaded.spec.num_classes)
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        rows = np.zeros(
            (len(chunk), preprocess.height, preprocess.width, preprocess.channels), np.uint8
        )
        errors: dict[int, str] = {}
        for row, path in enumerate(chunk):
            try:
                transform(read_regular(path, LONGEST_IMAGE), None, rows[row])
            except ImageError as error:
                errors[row] = str(error)
            except OSError as error:
                errors[row] = error.strerror or str(error)
        with torch.inference_mode(), runtime.autocast():
            logits = model(normalize(torch.from_numpy(rows).to(runtime.device), preprocess))
        probabilities, classes = (logits.float() / temperature).softmax(dim=1).topk(top, dim=1)
        for row, path in enumerate(chunk):
            if row in errors:
                yield Prediction(path, error=errors[row])
                continue
            pairs = zip(classes[row].tolist(), probabilities[row].tolist(), strict=True)
            yield Prediction(
                path, tuple((names[i] if i < len(names) else str(i), p) for i, p in pairs)
            )
