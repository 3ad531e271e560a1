"""ReaL: every label that is right of ImageNet's evaluation images, by Beyer et al. 2020.

`real.json` lists, for ILSVRC2012_val_00000001.JPEG and on, the classes that are right; an image
with none is left out. An answer is right if it is one of them.
Shape legend: B images of a batch, N all images, C classes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from vitbase.disk import list_folder
from vitbase.errors import DataError
from vitbase.evaluation.metrics import describe_images
from vitbase.files import read_json
from vitbase.sources.imagenet.classes import NUM_CLASSES, imagenet_synsets
from vitbase.sources.source import Source

_FOLDERS = ("", "real", "imagenet-real", "reassessed-imagenet", "reassessed-imagenet-master")


@dataclasses.dataclass(frozen=True)
class ValidLabelSums:
    """Counts over images that may have several right labels; two of them add up."""

    images: int = 0
    hits: int = 0
    unreadable: int = 0

    @classmethod
    def of(cls, logits_BC: torch.Tensor, labels_BC: torch.Tensor, readable_B: torch.Tensor) -> Self:
        """Count one batch; an unreadable image counts as wrong.

        Args:
          logits_BC: [B, C], any float type.
          labels_BC: [B, C] of 0 and 1, at least one of each image.
          readable_B: [B] bool.
        """
        chosen_B = labels_BC.gather(1, logits_BC.argmax(dim=1, keepdim=True))[:, 0] > 0
        return cls(
            images=len(labels_BC),
            hits=int((chosen_B & readable_B).sum()),
            unreadable=int((~readable_B).sum()),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.images + other.images,
            self.hits + other.hits,
            self.unreadable + other.unreadable,
        )

    @property
    def accuracy(self) -> float:
        return self.hits / self.images

    def to_row(self) -> dict[str, Any]:
        return {
            "eval_real_accuracy": self.accuracy,
            "eval_images": self.images,
            "eval_unreadable": self.unreadable,
        }

    def describe(self, class_names: object = ()) -> str:
        error = math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)
        return (
            f"{describe_images(self.images, self.unreadable)}: "
            f"ReaL accuracy {self.accuracy:.2%} (standard error {error:.2%})"
        )


def find_real(top: Path) -> Path | None:
    """Return `real.json` in a folder, or in the one that it is distributed in."""
    known = {"", *list_folder(top).folders}
    places = [top / folder / "real.json" for folder in _FOLDERS if folder in known]
    return next((place for place in places if place.is_file()), None)


def keep_labelled(source: Source, file: Path) -> Source:
    """Return the images of ImageNet's val that have a label in `real.json`, with all of theirs.

    Args:
      source: the images.
      file: lists of class numbers in sorted order of the synsets, one for each image of the set.
    Returns: a source whose classes are the sorted synsets, its labels float32 [N, C] of 0 and 1.
    Raises: DataError if an image has no place in the file, or the file is no such list.
    """
    try:
        lists = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {file}: {error}") from None
    right = range(NUM_CLASSES)
    if not isinstance(lists, list) or not all(
        isinstance(own, list) and all(type(n) is int and n in right for n in own) for own in lists
    ):
        raise DataError(f"{file}: expected a list of lists of class numbers from 0 to 999.")
    rows, labels = [], []
    for index in range(len(source)):
        name = source.name(index)
        number = re.search(r"(\d+)\.\w+$", name)
        place = int(number[1]) - 1 if number else -1
        if not 0 <= place < len(lists):
            raise DataError(
                f"{file} has {len(lists)} lists, and none for {name}: its images are named as "
                f"ILSVRC2012_val_00000001.JPEG is."
            )
        if lists[place]:
            rows.append(index)
            labels.append(lists[place])
    hot = np.zeros((len(rows), NUM_CLASSES), np.float32)
    for row, own in enumerate(labels):
        hot[row, own] = 1
    if not rows:
        raise DataError(f"{file}: none of the {len(source)} images has a label.")
    kept = source.take(np.array(rows, np.int64))
    note = (
        f"imagenet-real: {len(rows)} of {len(source)} images; {len(source) - len(rows)} without "
        f"a label in {file} are left out."
    )
    return dataclasses.replace(kept, labels=hot, class_names=imagenet_synsets(), notes=(note,))
