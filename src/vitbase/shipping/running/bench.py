"""Every way to run a model that there is here: how fast, in how much memory, how far from eager."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import ConfigError, ExportError, nearest
from vitbase.files import plain_name
from vitbase.runs.checkpoints import is_own_weights
from vitbase.runtime import local_runtime
from vitbase.shipping.exporting.images import RealImages, find_images, loader_of
from vitbase.shipping.exporting.proof import random_pixels
from vitbase.shipping.running.findings import keep_finding
from vitbase.shipping.running.table import Bench, Row
from vitbase.shipping.running.ways import WAYS
from vitbase.shipping.running.worker import Worker
from vitbase.weights.files.safetensors import read_safetensors, write_safetensors
from vitbase.weights.load import LoadedModel, load_model

BATCHES, ROUNDS, SECONDS = (1, 16), 5, 0.5
MOST_IMAGES = 128
"""That answers are compared on: each way has to compute them."""

_REFERENCE = "eager"

Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
    """What answers are compared on, in a file for all processes."""

    file: Path
    labels: torch.Tensor | None
    what: str
    are_real: bool


def bench(
    checkpoint: str | Path,
    *,
    ways: Sequence[str] = (),
    batch: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    val_data_path: str | None = None,
    max_images: int = MOST_IMAGES,
    device_target: str = "auto",
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    tell: Tell = lambda line: None,
    progress: Progress = lambda what, done, total: None,
) -> Bench:
    """Measure the ways to run a model on this machine, each in a process of its own, in turns.

    Args:
      checkpoint: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      ways: names of :data:`WAYS`; none: all that are possible here. `eager` is always among them.
      batch: sizes that are measured.
      rounds: in each of which every way has its turn.
      seconds: of a turn, or one batch, if that takes longer.
      val_data_path: real images to compare answers on; None: the run's, if it is of a run.
      max_images: of these, at most.
      tell: gets a line about what is remarkable.
      progress: gets (what, done, of how many).
    Returns: the figures, which are also kept for `--runtime auto`, if all ways were tried.
    Raises: ConfigError for options; WeightsError or CheckpointError for the weights.
    """
    for name, least in (("rounds", rounds), ("max_images", max_images), ("batch", min(batch))):
        if least < 1:
            raise ConfigError(f"Option '{name}' should be at least 1.")
    if not 0 < seconds < 3600:
        raise ConfigError(f"Option 'seconds' should be above 0 (got {seconds:g}).")
    for name in ways:
        if name not in WAYS:
            raise ConfigError(
                f"There is no way '{name}'; there are {', '.join(WAYS)}.{nearest(name, WAYS)}"
            )
    runtime = local_runtime(device_target, precision="fp32")
    for name in ways:
        WAYS[name].require(runtime)
    loaded = load_model(checkpoint, num_heads=num_heads, image_size=image_size)
    loaded.check_head()
    images = find_images(loaded, checkpoint, val_data_path, max_images, tell)
    names = [*dict.fromkeys((_REFERENCE, *(ways or WAYS)))]
    problems = {name: WAYS[name].problem(runtime) for name in names}
    left_out = {name: problem for name, problem in problems.items() if problem is not None}
    opening = {
        "checkpoint": str(checkpoint),
        "num_heads": num_heads,
        "image_size": image_size,
        "device_target": device_target,
    }
    sizes = tuple(sorted({*batch}))
    with tempfile.TemporaryDirectory(prefix="vitbase-") as folder:
        compared = _write_images(loaded, images, Path(folder))
        rows, failed = _measure(
            [name for name in names if name not in left_out],
            opening,
            compared,
            sizes,
            rounds,
            seconds,
            progress,
        )
    own = is_own_weights(loaded.path)
    found = Bench(
        loaded.spec.name,
        plain_name(loaded.path.parent.name if own else loaded.path.name),
        rows,
        sizes,
        {**left_out, **failed},
        runtime.machine,
        compared.what,
        compared.are_real,
        rounds,
    )
    kept = not ways and keep_finding(loaded, runtime, found.best, found.to_dict())
    return dataclasses.replace(found, kept=bool(kept))


def _write_images(loaded: LoadedModel, images: RealImages, folder: Path) -> _Images:
    file, parts, labels = folder / "images.safetensors", list[Any](), list[Any]()
    for batch in loader_of(images, loaded):
        parts.append(batch.images[batch.readable].clone())
        labels.append(batch.labels[batch.readable])
    are_real = any(len(part) for part in parts)
    pixels = torch.cat(parts) if are_real else random_pixels(loaded.preprocess)
    write_safetensors(file, {"pixels": pixels}, {})
    what = f"{len(pixels):,} real images ({images.what})" if are_real else "random images alone"
    told = torch.cat(labels) if are_real and images.labelled else None
    return _Images(file, told, what, are_real)


def _measure(
    names: Sequence[str],
    opening: dict[str, Any],
    images: _Images,
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
    progress: Progress,
) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Return a row for each way that runs, and why the others do not."""
    failed: dict[str, str] = {}
    ready: dict[str, tuple[Row, Worker]] = {}
    reference: torch.Tensor | None = None
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            progress(f"opening {name}", number, len(names))
            try:
                row, worker, logits = _open(name, opening, images, batches, stack)
            except ExportError as error:
                if name == _REFERENCE:
                    raise
                failed[name] = f"failed: {error.args[0]}"
                continue
            reference = logits if reference is None else reference
            row.sums.add(reference, logits, images.labels)
            ready[name] = row, worker
        turns = [(batch, number) for batch in batches for number in range(rounds)]
        for done, (batch, number) in enumerate(turns):
            progress("measuring", done, len(turns))
            order = list(ready)
            for name in reversed(order) if number % 2 else order:
                row, worker = ready[name]
                said = worker.ask("time", batch=batch, seconds=seconds)
                row.seconds.setdefault(batch, []).append(said["seconds"])
        for row, worker in ready.values():
            said = worker.ask("memory")
            row.memory = said["on_device"] or said["bytes"]
    return tuple(row for row, _ in ready.values()), failed


def _open(
    name: str,
    opening: dict[str, Any],
    images: _Images,
    batches: tuple[int, ...],
    stack: contextlib.ExitStack,
) -> tuple[Row, Worker, torch.Tensor]:
    """Open a way in a process, which stays; return what it answers, too. Raises: ExportError."""
    row = Row(name, is_told=images.are_real)
    if WAYS[name].prepare is not None:
        with Worker(name, opening) as maker:  # of which no memory is to be counted
            row.making = maker.ask("prepare")["seconds"]
    worker = stack.enter_context(Worker(name, opening))
    row.opening = worker.ask("open", batches=list(batches))["seconds"]
    answers = images.file.with_name(f"{name}.safetensors")
    worker.ask("check", images=str(images.file), logits=str(answers))
    return row, worker, read_safetensors(answers).tensors["logits"].read()
