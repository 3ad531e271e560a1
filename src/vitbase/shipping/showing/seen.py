"""What a model says of one image, and where it looks: all of the page that is no page.

Shape legend: L blocks, H heads, h and w rows and columns of patches, y and x pixels, C channels.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import torch

from vitbase.data.augment import EvalTransform
from vitbase.data.normalize import normalize
from vitbase.disk import read_regular
from vitbase.errors import ImageError
from vitbase.evaluation.calibration import read_temperature
from vitbase.evaluation.classifier import Classifier, of_model
from vitbase.inspection.attention import refuse_too_many
from vitbase.inspection.looked import Array, Pixels
from vitbase.inspection.overlay import overlay, resized
from vitbase.inspection.passes import pass_through
from vitbase.runtime import local_runtime
from vitbase.shipping.exporting.images import find_images
from vitbase.weights.load import LoadedModel, load_model

TOP = 5
LONGEST_UPLOAD = 64 << 20
"""Bytes of an image that somebody may send."""
_SIDE = 512
"""Pixels of the longer side of what is shown."""
_EXAMPLES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What a model has made of one image.

    Attributes:
      classes: names and probabilities, best first.
      pixels: what it saw, uint8 [y, x, C].
      attention: of the class token (or of all patches) to each patch, [L, H, h, w].
      rollout: how much of each patch arrives in what the head reads, [h, w].
    """

    classes: tuple[tuple[str, float], ...]
    pixels: Pixels
    attention: Array
    rollout: Array

    def overlay(self, layer: int | None, head: int | None) -> Pixels:
        """Lay a map over the image, uint8 [y, x, 3].

        Args:
          layer: block whose attention it is, from 1; None: the rollout of all.
          head: of that block, from 1; None: the mean of all.
        """
        if layer is None:
            found = self.rollout
        else:
            heads = self.attention[min(layer, len(self.attention)) - 1]
            found = heads.mean(0) if head is None else heads[min(head, len(heads)) - 1]
        return overlay(self.pixels, found, self._size())

    def plain(self) -> Pixels:
        """Return the image as the model saw it, in the size of the maps."""
        return resized(self.pixels, self._size())

    def _size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[:2]
        times = _SIDE / max(height, width)
        return max(1, round(height * times)), max(1, round(width * times))


class Viewer:
    """A model that looks at images, one at a time, however many ask.

    Args:
      loaded: with a head.
      device_target: Ascend, GPU, CPU or auto.
    Raises: WeightsError without a head; DataError for its temperature; ConfigError if its attention
      has more tokens than can be shown.
    """

    def __init__(self, loaded: LoadedModel, device_target: str = "auto") -> None:
        loaded.check_head()
        refuse_too_many(loaded.spec)
        self.loaded = loaded
        self._runtime = local_runtime(device_target, precision="fp32")
        self._classifier = Classifier(
            of_model(loaded, self._runtime),
            loaded.preprocess,
            loaded.labels or (),
            path=loaded.path,
            num_classes=loaded.spec.num_classes,
            temperature=read_temperature(loaded.path) or 1.0,
        )
        self._transform = EvalTransform(loaded.preprocess)
        self._alone = threading.Lock()  # hooks see every pass through the model

    def look(self, image: bytes) -> Seen:
        """Look at an image file.

        Raises: ImageError if it is none, saying what it is.
        """
        preprocess = self.loaded.preprocess
        pixels = np.zeros((preprocess.height, preprocess.width, preprocess.channels), np.uint8)
        self._transform(image, None, pixels)
        with self._alone:
            (answer,) = self._classifier.classify_bytes([image], top=TOP, num_workers=1)
            if answer.error is not None:
                raise ImageError(answer.error)
            images_1yxC = torch.from_numpy(pixels[None]).to(self._runtime.device)
            # A copy: memory of batches is used again.
            images_1Cyx = normalize(images_1yxC, preprocess).clone()
            found = pass_through(self.loaded.model, images_1Cyx, {"attention", "rollout"})
        names = self._classifier.class_names
        classes = zip(answer.classes, answer.probabilities, strict=True)
        return Seen(
            tuple((names[number], share) for number, share in classes),
            pixels,
            found["attention"]["maps"][0].numpy(),
            found["rollout"]["maps"][0].numpy(),
        )

    def look_at(self, path: Path) -> Seen:
        """Look at an image in a file. Raises: ImageError, also if it cannot be read."""
        try:
            return self.look(read_regular(path, LONGEST_UPLOAD))
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None


def open_viewer(
    checkpoint: str | Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    device_target: str = "auto",
) -> Viewer:
    """Open a model to look at images with.

    Args:
      checkpoint: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      num_heads: where the weights do not tell.
      image_size: (height, width); None: as the weights.
      device_target: Ascend, GPU, CPU or auto.
    Raises: as :class:`Viewer`; WeightsError or CheckpointError for the file.
    """
    loaded = load_model(checkpoint, num_heads=num_heads, image_size=image_size)
    return Viewer(loaded, device_target)


def write_examples(viewer: Viewer, checkpoint: str | Path, folder: Path) -> list[Path]:
    """Write some of a run's evaluation images into a folder, of every class alike.

    Returns: the files; none where there is no run, or its images are gone.
    Raises: OSError if they cannot be written.
    """
    from PIL import Image

    images = find_images(viewer.loaded, checkpoint, None, _EXAMPLES, lambda line: None)
    found: list[Path] = []
    for index in range(len(images) if images.source is not None else 0):
        assert images.source is not None
        try:
            stored = images.source.read(index)
        except ImageError:
            continue
        path = folder / f"example-{index + 1:02}.png"
        if isinstance(stored, bytes):
            path = path.with_suffix(".jpg" if stored[:2] == b"\xff\xd8" else ".img")
            if path.suffix == ".img":  # a browser may not show it
                continue
            path.write_bytes(stored)
        else:
            Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored).save(path)
        found.append(path)
    return found
