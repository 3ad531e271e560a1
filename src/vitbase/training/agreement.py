"""Whether all ranks of a run have the same code, options and images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from vitbase._version import __version__
from vitbase.config.config import FIELDS, OF_THE_IMAGES, Config
from vitbase.errors import ConfigError, DataError
from vitbase.runtime import Runtime
from vitbase.sources.open import TrainVal

_OWN_PLACES = {"data_path", "output_dir", "num_workers", *OF_THE_IMAGES}  # of each server


def check_agreement(runtime: Runtime, config: Config) -> None:
    """Check that all ranks run the same code with the same options (collective).

    Those that say where and what the images are may differ: see :func:`check_same_images`.

    Raises: ConfigError on every rank, naming one that differs and in what.
    """
    own = [("vitbase's code", _code_digest()), *_listed(config)]
    first, *others = runtime.all_gather(own)
    for rank, theirs in enumerate(others, 1):
        differing = [
            f"{name} is {value}, on rank 0 {before}"
            for (name, before), (_, value) in zip(first, theirs, strict=True)
            if value != before
        ]
        if differing:
            raise ConfigError(
                f"Rank {rank} was started otherwise than rank 0: {'; '.join(differing)}. Start "
                f"the same command with the same version of vitbase on every server."
            ).everywhere()


def check_same_images(runtime: Runtime, data: TrainVal, num_classes: int) -> None:
    """Check that all ranks see the same images, for the same number of classes (collective).

    Raises: DataError on every rank.
    """
    own: list[tuple[int, str]] = [(num_classes, "")]
    for source in (data.train, data.val):
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr(source.class_names).encode())
        digest.update(source.labels.tobytes())
        own.append((len(source), digest.hexdigest()))
    first, *others = runtime.all_gather(own)
    for rank, theirs in enumerate(others, 1):
        if theirs != first:
            raise DataError(
                f"Rank {rank} finds other images than rank 0: {theirs[1][0]} for training and "
                f"{theirs[2][0]} for evaluation, on rank 0 {first[1][0]} and {first[2][0]}, or "
                f"other labels. Give every server the same data set, and --num_classes alike."
            ).everywhere()


def _listed(config: Config) -> list[tuple[str, str]]:
    return [(option, str(config.value(option))) for option in FIELDS if option not in _OWN_PLACES]


def _code_digest() -> str:
    digest = hashlib.blake2b(f"{__version__} {torch.__version__}".encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
