"""Files made of a model to be run here, kept in the cache folder; those unused for longest go."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import torch

from vitbase._version import __version__
from vitbase.accelerators import cpu_name
from vitbase.files import cache_folder, remove, written_whole
from vitbase.shipping.exporting.export import facts_of
from vitbase.shipping.exporting.facts import Precision
from vitbase.shipping.exporting.formats import Format
from vitbase.shipping.exporting.wanted import Wanted
from vitbase.weights.load import LoadedModel

_KEPT_BYTES = 8 << 30

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "zentorch")


def fingerprint(loaded: LoadedModel) -> str:
    """Return a digest of all that a model computes by: weights, architecture, preprocessing."""
    key = blake2b(digest_size=16)
    for name, tensor in loaded.model.state_dict().items():
        key.update(name.encode())
        key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    key.update(repr((loaded.spec.to_dict(), loaded.preprocess.model_dump())).encode())
    return key.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what makes and runs files."""
    found = {__name__.partition(".")[0]: __version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def kept_file(form: Format, loaded: LoadedModel, precision: Precision) -> Iterator[Path]:
    """Give the path of a file that takes pixels, made before or now.

    Where nothing can be kept, it is made for this block alone: who opens it has all of it then.
    """
    place = _place(form, loaded, precision)
    name = f"model{form.suffix}"
    if place is not None and not (place / name).is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(place) as beside:
                beside.mkdir(mode=0o700)
                _write(form, loaded, precision, beside / name)
            _let_go(place.parent)
        except OSError:
            if not (place / name).is_file():  # where another process was first, it is there
                place = None
    if place is not None:
        with contextlib.suppress(OSError):
            os.utime(place)
        yield place / name
        return
    with tempfile.TemporaryDirectory(prefix="vitbase-") as folder:
        _write(form, loaded, precision, Path(folder) / name)
        yield Path(folder) / name


def _place(form: Format, loaded: LoadedModel, precision: Precision) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    key = blake2b(digest_size=16)
    facts = (fingerprint(loaded), form.name, precision, sorted(versions().items()), cpu_name())
    key.update(repr(facts).encode())
    return folder / "runtimes" / f"{form.name}-{precision}-{key.hexdigest()}"


def _write(form: Format, loaded: LoadedModel, precision: Precision, path: Path) -> None:
    form.write(Wanted(loaded, facts_of(loaded, precision, "inside")), path)


def _let_go(folder: Path) -> None:
    """Remove what was not used for longest, where there is too much. Raises: OSError."""
    kept = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime)
    total = 0
    for place in kept:
        total += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        if total > _KEPT_BYTES and place != kept[0]:
            remove(place)
