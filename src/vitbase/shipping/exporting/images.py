"""The real images that a file is compared on, and those that int8 is calibrated with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from vitbase.config.config import load_config
from vitbase.data.augment import EvalTransform
from vitbase.data.loader import EvalLoader
from vitbase.errors import ConfigError, DataError
from vitbase.evaluation.classes import ModelClasses, fit_classes
from vitbase.inspection.probing.shots import draw_evenly
from vitbase.runs.checkpoints import CONFIG_FILE, check_config_file, find_run_folder
from vitbase.sources.named import open_named
from vitbase.sources.open import open_val_unmatched
from vitbase.sources.source import Source
from vitbase.weights.load import LoadedModel

MOST_IMAGES = 2000
"""That are compared, unless asked otherwise."""

MOST_CALIBRATION = 256
"""That ranges are set by; more change little."""

BATCH = 16

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class RealImages:
    """Images of a data set.

    Attributes:
      source: none of it where there is no data set.
      labelled: whether each has one label, a number of the model's.
      what: they are, in words.
    """

    source: Source | None
    labelled: bool = False
    what: str = ""

    def __len__(self) -> int:
        return 0 if self.source is None else len(self.source)


def find_images(
    loaded: LoadedModel,
    checkpoint: str | Path,
    val_data_path: str | None,
    most: int,
    tell: Tell,
) -> RealImages:
    """Open images to compare on: those that are given, or those of the run.

    Args:
      checkpoint: as it was given, which may lie in a run.
      most: images, drawn from every class alike.
      tell: gets a line about what is remarkable.
    Raises: DataError if those that are given cannot be opened, or are of other classes.
    """
    if val_data_path is not None:
        config = load_config("finetune", val_data_path=val_data_path)
        source = open_val_unmatched(config)
    else:
        run = find_run_folder(checkpoint)
        if run is None:
            return RealImages(None)
        check_config_file(run / CONFIG_FILE)
        try:
            source = open_val_unmatched(load_config(str(run / CONFIG_FILE)))
        except (DataError, ConfigError) as error:
            tell(f"The run's evaluation images are not there ({error}).")
            return RealImages(None)
    whole = len(source)
    labelled = source.labels.ndim == 1
    if labelled:
        classes = ModelClasses(loaded.labels, loaded.spec.num_classes, loaded.path)
        source = fit_classes(source, classes)
        for note in source.notes:
            tell(note)
    if not whole:
        raise DataError("There are no evaluation images.")
    if whole > most:
        every = np.linspace(0, whole - 1, most).astype(np.int64)
        source = source.take(draw_evenly(source.labels, most, 0) if labelled else every)
    which = "of the run's evaluation" if val_data_path is None else f"of {val_data_path}"
    part = "all" if whole <= most else f"{most:,} of {whole:,}"
    return RealImages(source, labelled, f"{part} {which}")


def loader_of(images: RealImages, loaded: LoadedModel) -> EvalLoader | tuple[()]:
    """Return batches of images as the model looks at them."""
    if images.source is None:
        return ()
    return EvalLoader(images.source, EvalTransform(loaded.preprocess), batch_size=BATCH)


def read_calibration(
    loaded: LoadedModel, places: Sequence[str], most: int, tell: Tell
) -> torch.Tensor:
    """Read images to set the ranges of integers by, from all over what is named.

    Args:
      places: as `vitbase predict` takes them; nobody asks for labels.
    Returns: uint8 [N, H, W, C].
    Raises: DataError if there are none that can be read.
    """
    source = open_named(places, recursive=True, tell=tell)
    if len(source) > most:
        source = source.take(np.linspace(0, len(source) - 1, most).astype(np.int64))
    parts, bad = [], 0
    for batch in EvalLoader(source, EvalTransform(loaded.preprocess), batch_size=BATCH):
        parts.append(batch.images[batch.readable].clone())
        bad += len(batch.bad)
    if bad:
        tell(f"{bad} of {len(source)} calibration images cannot be read, and are left out.")
    pixels = torch.cat(parts)
    if not len(pixels):
        raise DataError("None of the calibration images can be read.")
    return pixels
