"""What a run was computed with, for its report: versions and device; no host, user or path."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from vitbase._version import __version__
from vitbase.errors import CheckpointError
from vitbase.files import json_line, write_whole
from vitbase.runs.checkpoints import REPORT

_PACKAGES = ("torch", "mindspore", "numpy", "pillow", "simplejpeg")


def write_environment(run: Path, device: str) -> None:
    """Write `report/environment.json` in a run's folder. Raises: CheckpointError."""
    found = {"vitbase": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {"system": f"{platform.system()} {platform.machine()}", "device": device}
    place = run / REPORT / "environment.json"
    try:
        place.parent.mkdir(exist_ok=True)
        write_whole(place, json_line(found, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"Cannot write {place}: {error.strerror}.") from None
