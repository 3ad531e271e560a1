"""A path -> a classifier: weights of any origin by one of the ways to run them, or an exported file
in its own runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from vitbase.disk import as_path, find_strange
from vitbase.errors import ConfigError, WeightsError, nearest
from vitbase.evaluation.calibration import read_temperature
from vitbase.evaluation.classifier import Classifier
from vitbase.runtime import Runtime, local_runtime
from vitbase.shipping.exporting.formats import FORMATS, Format
from vitbase.shipping.running.findings import find_best
from vitbase.shipping.running.ways import WAYS
from vitbase.weights.load import LoadedModel, load_model

BATCH = 32


def open_classifier(
    path: str | Path,
    *,
    runtime: str = "auto",
    device_target: str = "auto",
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = BATCH,
) -> Classifier:
    """Open what classifies images.

    Args:
      path: a run, a checkpoint, a weights file of any origin; or a file of `vitbase export`.
      runtime: what computes: of weights, one of `running.ways.WAYS`, and "auto" is the fastest in
        full precision that `vitbase bench` has found here, or else "eager"; of an exported file,
        the one of its format. A `.pt2` is a program, which opening runs: it is opened with
        "torch_export" or "aoti" alone, never with "auto".
      device_target: Ascend, GPU, CPU or auto; exported files run on a CPU.
      num_heads: where the weights do not tell.
      image_size: (height, width); None: as the weights.
      batch_size: for which "auto" chooses.
    Returns: a classifier; its temperature is the one that is kept beside the weights, or in the
      exported file.
    Raises: ConfigError for a runtime that there is not, that is not of the file, or not possible
      here; WeightsError or CheckpointError for the file, also if it has no head; DataError for the
      temperature.
    """
    place = as_path(path)
    forms = [form for form in FORMATS.values() if form.suffix == place.suffix.lower()]
    if forms and not place.is_dir():
        return _open_exported(place, forms, runtime, device_target, num_heads, image_size)
    if runtime != "auto" and runtime not in WAYS:
        raise _unknown(runtime, WAYS)
    device = local_runtime(device_target, precision="fp32")
    if runtime != "auto":
        WAYS[runtime].require(device)
    loaded = load_model(path, num_heads=num_heads, image_size=image_size)
    loaded.check_head()
    if runtime == "auto":
        runtime = _choose(loaded, device, batch_size)
    way = WAYS[runtime]
    takes_turns = way.name.startswith("eager") and device.reads_at_once
    return Classifier(
        way.network(loaded, device),
        loaded.preprocess,
        loaded.labels or (),
        path=loaded.path,
        num_classes=loaded.spec.num_classes,
        temperature=read_temperature(loaded.path) or 1.0,
        pin_memory=device.pin_memory,
        streams=torch.get_num_threads() if takes_turns else 1,
        runtime=way.name,
    )


def _choose(loaded: LoadedModel, device: Runtime, batch_size: int) -> str:
    """Return the name of the fastest way in full precision that is known."""
    found = find_best(loaded, device, batch_size)
    known = found in WAYS and WAYS[found].is_exact and WAYS[found].problem(device) is None
    return found if found is not None and known else "eager"


def _unknown(runtime: str, known: Iterable[str]) -> ConfigError:
    names = ("auto", *known)
    return ConfigError(
        f"There is no runtime '{runtime}'; there are {', '.join(names)}.{nearest(runtime, names)}"
    )


def _open_exported(
    place: Path,
    forms: list[Format],
    runtime: str,
    device_target: str,
    num_heads: int | None,
    image_size: tuple[int, int] | None,
) -> Classifier:
    """Open a file whose name ends as those of some formats do."""
    names = [form.runtime for form in forms]
    if runtime == "auto" and any(form.is_program for form in forms):
        raise ConfigError(
            f"{place} is a program: opening it runs what is in it. If you trust whoever made it, "
            f"give --runtime {' or --runtime '.join(names)}, whichever wrote it."
        )
    if runtime not in {"auto", *names}:
        raise ConfigError(f"{place} runs in {' or '.join(names)}, not in '{runtime}'.")
    if num_heads is not None or image_size is not None:
        option = "num_heads" if num_heads is not None else "image_size"
        raise ConfigError(f"{place} is exported, and stays as it is: --{option} is of weights.")
    if device_target not in {"auto", "CPU"}:
        raise ConfigError(f"{place} is exported, and runs on a CPU: not with {device_target}.")
    form = next(form for form in forms if runtime in {"auto", form.runtime})
    form.require(to_write=False)
    form.check_name(place)
    for each in form.files(place):
        try:
            problem = find_strange(each)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem is not None and (each == place or os.path.lexists(each)):
            raise WeightsError(f"{each} {problem}.")
    network, facts = form.open(place)
    return Classifier(
        network,
        facts.preprocess,
        facts.labels,
        path=place,
        num_classes=facts.num_classes,
        temperature=facts.temperature,
        runtime=form.runtime,
    )
