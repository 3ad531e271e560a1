"""What an update has seen whose loss or gradient was no number, kept so that it can be repeated.

A box is a folder `blackbox/update-<N>/` of the run's, whole or not there: the weights before the
update, which it has not changed; images, labels and depth scales of its forward passes; and in
`box.json` and `config.toml` all else. Of several ranks those whose outputs are no numbers come
first, as many as there is room for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitbase._version import __version__
from vitbase.config.config import Config
from vitbase.data.loader import TrainLoader
from vitbase.files import remove, written_whole
from vitbase.runs.checkpoints import WEIGHTS_FILE, write_manifest
from vitbase.runtime import Runtime
from vitbase.training.step import Learner, Taken
from vitbase.weights.files.safetensors import write_safetensors
from vitbase.weights.save import save_weights

FOLDER = "blackbox"
BOX_FILE = "box.json"
INPUTS_FILE = "inputs.safetensors"
CONFIG_FILE = "config.toml"
VERSION = 1
_NAME = re.compile(r"^update-(\d+)$")

_MOST_BOXES = 3
_APART = 1000  # updates, after which the newest box gives way to a new one
_MOST_BYTES = 256 << 20  # of images in a box


def boxes_in(run: Path) -> list[Path]:
    """Return the boxes of a run folder, by the number of their update."""
    found = [path for path in (run / FOLDER).glob("update-*") if _NAME.match(path.name)]
    return sorted(found, key=_number)


def _number(box: Path) -> int:
    match = _NAME.match(box.name)
    assert match is not None
    return int(match[1])


def place_for(run: Path, update: int) -> tuple[Path | None, Path | None]:
    """Return where the box of an update goes, and the box that gives way to it, if one does.

    The first ones tell most of what went wrong, so they stay; and a run that fails at every other
    update shall not spend its time on boxes.
    """
    try:
        found = boxes_in(run)
    except OSError:  # of a disk that fails: no box; the other ranks wait to hear of it
        return None, None
    place = run / FOLDER / f"update-{update + 1}"
    if place in found:  # of a run that was continued from before
        return place, place
    if len(found) < _MOST_BOXES:
        return place, None
    if update + 1 - _number(found[-1]) >= _APART:
        return place, found[-1]
    return None, None


def write_box(
    run: Path,
    update: int,
    taken: Taken,
    learner: Learner,
    loader: TrainLoader,
    config: Config,
    labels: tuple[str, ...],
) -> Path | None:
    """Keep an update, if there is room for it (collective).

    Args:
      run: the run folder, which only the first rank needs to see.
      update: its number, from 0; the weights have not changed since.
    Returns: the box, on every rank; None if there is no room.
    Raises: OSError on the first rank if it cannot be written.
    """
    runtime = learner.runtime
    place, gives_way = runtime.from_first(lambda: place_for(run, update))
    if place is None:
        return None
    passes, tensors = _gather_passes(runtime, update, taken, loader)
    weights = learner.state.collect_weights()
    if not runtime.is_first:
        return place
    if learner.objective.class_weights is not None:
        tensors["class_weights"] = learner.objective.class_weights
    scale = float(taken.flags[1]) if taken.flags is not None else 1.0
    box = {
        "version": VERSION,
        "written_by": __version__,
        "update": update + 1,
        "epoch": update // loader.steps_per_epoch + 1,
        "step": update % loader.steps_per_epoch + 1,
        "lr": taken.lr,
        "loss_scale": scale,
        "precision": runtime.precision,
        "device": runtime.device.type,
        "num_ranks": runtime.num_ranks,
        "global_batch": loader.global_batch,
        "on_features": learner.on_features,
        "mix": {"kind": taken.mix.kind, "lam": taken.mix.lam, "box": list(taken.mix.box)},
        "passes": passes,
    }
    place.parent.mkdir(exist_ok=True)
    if gives_way is not None:
        remove(gives_way)
    with written_whole(place) as folder:
        folder.mkdir()
        (folder / BOX_FILE).write_text(json.dumps(box, indent=1) + "\n", encoding="utf-8")
        (folder / CONFIG_FILE).write_text(config.to_toml(), encoding="utf-8")
        write_safetensors(folder / INPUTS_FILE, tensors, {})
        model = learner.state.filled(weights)
        preprocess = config.data.preprocess
        save_weights(model, folder / WEIGHTS_FILE, preprocess=preprocess, labels=labels)
        write_manifest(folder)
    return place


def _gather_passes(
    runtime: Runtime, update: int, taken: Taken, loader: TrainLoader
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Gather forward passes on the first rank (collective), those that went wrong first.

    Returns: what is known of each; their tensors, named by the number of the pass.
    """
    own = [
        (not bool(finite_B.all()), batch.images.nbytes)
        for (batch, _), (_, finite_B) in zip(taken.seen, taken.passes, strict=True)
    ]
    facts: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for rank, chosen in enumerate(_chosen(runtime.all_gather(own))):
        if not chosen:
            continue

        def make(
            chosen: list[int] = chosen,
        ) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
            return [_pass_of(update, taken, micro, loader) for micro in chosen]

        found = runtime.from_first(make, rank=rank)
        for micro, (fact, own_tensors) in zip(chosen, found, strict=True):
            tensors |= {f"{len(facts)}/{name}": value for name, value in own_tensors.items()}
            facts.append({"rank": rank, "micro_batch": micro, **fact})
    return facts, tensors


def _chosen(everywhere: Sequence[Sequence[tuple[bool, int]]]) -> list[list[int]]:
    """Choose the forward passes of each rank that a box has room for: bad ones first."""
    passes = [
        (not bad, rank, micro, size)
        for rank, own in enumerate(everywhere)
        for micro, (bad, size) in enumerate(own)
    ]
    chosen: list[list[int]] = [[] for _ in everywhere]
    room = _MOST_BYTES
    for count, (_, rank, micro, size) in enumerate(sorted(passes)):
        if count and size > room:
            break
        room -= size
        chosen[rank].append(micro)
    return chosen


def _pass_of(
    update: int, taken: Taken, micro: int, loader: TrainLoader
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    batch, depth_scales = taken.seen[micro]
    epoch = update // loader.steps_per_epoch
    tensors = {"images": batch.images.cpu(), "labels": batch.labels, "positions": batch.positions}
    if depth_scales is not None:
        tensors["depth_scales"] = depth_scales.cpu()
    fact = {
        "images": loader.describe_positions(epoch, batch.positions.tolist()),
        "outputs_finite": taken.passes[micro][1].tolist(),
    }
    return fact, tensors
