"""Weights -> a file of another runtime, which is opened there and compared before it is one."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitbase.console import printable
from vitbase.disk import as_path
from vitbase.errors import ConfigError, DataError, ExportError, WeightsError
from vitbase.evaluation.calibration import read_temperature
from vitbase.evaluation.classifier import of_model
from vitbase.files import place_beside, plain_name, remove, sha256_of, sync
from vitbase.runs.checkpoints import is_own_weights
from vitbase.runtime import local_runtime
from vitbase.shipping.exporting.facts import Facts, Place, Precision
from vitbase.shipping.exporting.formats import Format, choose_format
from vitbase.shipping.exporting.images import (
    MOST_CALIBRATION,
    MOST_IMAGES,
    RealImages,
    find_images,
    loader_of,
    read_calibration,
)
from vitbase.shipping.exporting.onnx_files import OLDEST_OPSET
from vitbase.shipping.exporting.proof import BOUNDS, Proof, prove
from vitbase.shipping.exporting.wanted import OPSET, Wanted
from vitbase.weights.load import LoadedModel, load_model

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Export:
    """A file that was written, and how far it is from its model.

    Attributes:
      files: all that belong to it, the one to open last.
      sizes: their bytes.
      seconds: writing took, without the comparison.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    format: str
    facts: Facts
    proof: Proof
    seconds: float

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        yield f"Weights: {self.facts.source}"
        yield from self.proof.lines()
        for path, size in zip(self.files, self.sizes, strict=True):
            yield f"{path}: {size / 1e6:,.1f} MB"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "files": [plain_name(str(path)) for path in self.files],
            "bytes": [*self.sizes],
            "format": self.format,
            "seconds": self.seconds,
            **self.facts.to_texts(),
            **self.proof.to_dict(),
        }


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    precision: Precision = "fp32",
    preprocessing: Place = "outside",
    calibration: Sequence[str] = (),
    val_data_path: str | None = None,
    max_images: int = MOST_IMAGES,
    opset: int | None = None,
    license: str = "",
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda what, done, total: None,
) -> Export:
    """Write a model in the format of another runtime, open it there, and compare.

    Args:
      checkpoint: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      out: the file: `.onnx`, `.xml` (OpenVINO) or `.pt2` (torch.export).
      format: "onnx", "openvino", "torch_export" or "aoti" (also `.pt2`); None: by out's name.
      precision: "fp32"; "fp16", in which norms and softmax stay fp32; or "int8".
      preprocessing: "inside" takes pixels; "outside" takes what `preprocess` makes of them.
      calibration: images that fix the ranges of int8, as `vitbase predict` takes them; none: every
        image sets its own.
      val_data_path: images to compare on; None: the run's evaluation images, if it is of a run.
      max_images: of these, at most.
      opset: of ONNX.
      license: of the weights, to stand in the file.
      image_size: (height, width); None: as the weights.
      overwrite: whether a file that is there is replaced.
      tell: gets a line about what is remarkable.
      progress: gets (what, done, of how many).
    Returns: the figures. The file appears when it has been compared, and not at all if it is worse
      than its bound.
    Raises: ExportError if it cannot be written, or is worse; ConfigError for what is asked or not
      installed; DataError for images; WeightsError or CheckpointError for the weights, also if they
      have no head.
    """
    place = as_path(out)
    form = choose_format(place, format)
    _check(form, place, precision, calibration, opset, max_images, overwrite=overwrite)
    loaded = load_model(checkpoint, num_heads=num_heads, image_size=image_size)
    loaded.check_head()
    images = find_images(loaded, checkpoint, val_data_path, max_images, tell)
    if precision != "fp32" and not len(images):
        raise ConfigError(
            f"What {precision} loses shows on real images alone: give --val_data_path PATH, "
            f"evaluation images in class folders, or as in training."
        )
    pixels = None
    if calibration:
        pixels = read_calibration(loaded, calibration, MOST_CALIBRATION, tell)
    facts = facts_of(loaded, precision, preprocessing, license)
    wanted = Wanted(loaded, facts, opset or OPSET, pixels)
    try:
        return _written(wanted, form, place, images, progress)
    except OSError as error:
        raise DataError(f"Cannot write {place}: {error.strerror or error}.") from None


def facts_of(
    loaded: LoadedModel, precision: Precision, preprocessing: Place, license: str = ""
) -> Facts:
    """Return what a file of a model tells of itself."""
    path = loaded.path
    name = path.parent.name if is_own_weights(path) else path.name
    digest = sha256_of(path)[:16]
    return Facts(
        model=loaded.spec.name,
        precision=precision,
        preprocessing=preprocessing,
        preprocess=loaded.preprocess,
        num_classes=loaded.spec.num_classes,
        labels=loaded.labels or (),
        source=printable(plain_name(f"{name} ({loaded.report.dialect}), sha256 {digest}…")),
        license=printable(plain_name(license)),
        temperature=read_temperature(path) or 1.0,
    )


def _check(
    form: Format,
    place: Path,
    precision: Precision,
    calibration: Sequence[str],
    opset: int | None,
    max_images: int,
    *,
    overwrite: bool,
) -> None:
    """Raise a ConfigError, before the long work, for what cannot be."""
    if precision not in form.precisions:
        raise ConfigError(
            f"--format {form.name} has no --precision {precision}, but "
            f"{', '.join(form.precisions)}."
        )
    if calibration and precision != "int8":
        raise ConfigError("--calibration is of --precision int8.")
    if opset is not None and form.name != "onnx":
        raise ConfigError("--opset is of --format onnx.")
    if opset is not None and opset < OLDEST_OPSET:
        raise ConfigError(f"Option 'opset' should be at least {OLDEST_OPSET} (got {opset}).")
    if max_images < 1:
        raise ConfigError("Option 'max_images' should be at least 1.")
    form.check_name(place)
    for path in form.files(place):
        if path.is_dir() or (os.path.lexists(path) and not overwrite):
            what = "is a folder: give another name." if path.is_dir() else "exists already"
            more = "" if path.is_dir() else ": give another name, or --overwrite."
            raise ConfigError(f"{path} {what}{more}")
    if not place.absolute().parent.is_dir():
        raise ConfigError(f"{place} is no place for a file: there is no folder for it.")
    form.require(to_write=True)


def _written(
    wanted: Wanted, form: Format, place: Path, images: RealImages, progress: Progress
) -> Export:
    """Write a file in a folder beside its place, compare it there, and move it. Raises: OSError."""
    beside = place_beside(place)
    try:
        beside.mkdir()
        made = beside / place.name
        started = time.perf_counter()
        form.write(wanted, made)
        seconds = time.perf_counter() - started
        proof = _proof(wanted, form, made, place, images, progress)
        faults = proof.faults()
        if faults:
            raise ExportError(
                f"{place} is not written: in {proof.precision} it is further from the model than "
                f"it may be.",
                *(f"  {fault}" for fault in faults),
                *proof.lines(),
                _ADVICE[proof.precision],
            )
        pairs = [
            (source, target)
            for source, target in zip(form.files(made), form.files(place), strict=True)
            if source.exists()
        ]
        sizes = tuple(source.stat().st_size for source, _ in pairs)
        for source, target in pairs:
            sync(source)
            os.replace(source, target)
        sync(place.absolute().parent)
        files = tuple(target for _, target in pairs)
        return Export(files, sizes, form.name, wanted.facts, proof, seconds)
    finally:
        remove(beside)


_ADVICE: dict[Precision, str] = {
    "fp32": "This is a fault of the format's runtime, or of this package: please report it.",
    "fp16": "Give --precision fp32.",
    "int8": "Give --precision fp16, or other images, or more of them, to --calibration; without "
    "--calibration every image sets its own ranges.",
}
assert {*_ADVICE} == {*BOUNDS}


def _proof(
    wanted: Wanted, form: Format, made: Path, place: Path, images: RealImages, progress: Progress
) -> Proof:
    try:
        network, facts = form.open(made)
    except WeightsError as error:
        hint = () if wanted.opset == OPSET else (f"--opset {OPSET} is known to be opened.",)
        raise ExportError(
            f"{place} is not written: {str(error).removeprefix(f'{made}: ')}", *hint
        ) from error
    if facts != wanted.facts:
        raise ExportError(f"{form.name} does not keep what the file tells of itself: {facts}.")
    return prove(
        of_model(wanted.loaded, local_runtime("CPU", precision="fp32")),
        network,
        facts,
        loader_of(images, wanted.loaded),
        images.what,
        labelled=images.labelled,
        seen=lambda count: progress("comparing", count, len(images)),
    )
