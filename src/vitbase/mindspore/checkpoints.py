"""Checkpoints as MindSpore has them: one `.ckpt` of weights, optimizer and step; back from it, too.

A run's checkpoint is a folder of this project's, with a manifest, that appears whole or not at all;
its file is MindSpore's own. In the run folder itself stands the same file once more, under the name
that the seed gives it (a link: no more disk). What no tensor tells, the architecture, preprocessing
and labels, is a text in the file, so that every tool here opens it alone.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import torch
from mindspore import Parameter, Tensor

from vitbase.errors import CheckpointError
from vitbase.files import sync, written_whole
from vitbase.mindspore.learner import MindSporeLearner, arrays_of
from vitbase.mindspore.model import Array
from vitbase.runs.checkpoints import CKPT_SUFFIX
from vitbase.runs.progress import Progress
from vitbase.runs.saving import prune_checkpoints, prune_files, write_checkpoint
from vitbase.training.guard import DivergedError
from vitbase.training.mindspore_state import MindSporeState
from vitbase.training.saver import Saver, Write
from vitbase.training.schedule import Place
from vitbase.weights.files.open import open_tensors
from vitbase.weights.origins.vitbase import write_metadata


class MindSporeSaver(Saver):
    """Writes a run's checkpoints as MindSpore's files."""

    learner: MindSporeLearner

    def collect(self, place: Place, shared: Path | None) -> tuple[Write, dict[str, Any]]:
        learner, folder = self.learner, self.folder
        values = {parameter.name: parameter.asnumpy() for parameter in learner.parameters()}
        bad = [key for key, value in values.items() if not np.isfinite(value).all()]
        if bad:
            raise DivergedError(
                f"The weights are no numbers after update {place.updates} ({bad[0]}). "
                f"{self.guard.advice()}"
            ).everywhere()
        # MindSpore counts the updates that were taken; loss scaling may have passed over some.
        values["global_step"] = np.array([place.updates], np.int32)
        metadata = write_metadata(learner.model.spec, self.config.data.preprocess, self.labels)

        def write(name: str, progress: Progress) -> None:
            if not learner.runtime.is_first:
                return
            # At once, by MindSpore's own hand: its files are for its own tools.
            final, file = folder.checkpoints / name, f"{name}{CKPT_SUFFIX}"
            keep = self.config.checkpoint.keep_checkpoint_max

            def write_tensors(inside: Path) -> dict[str, str]:
                tensors = [{"name": key, "data": Tensor(value)} for key, value in values.items()]
                try:
                    ms.save_checkpoint(tensors, str(inside / file), append_dict=metadata)
                except OSError as error:  # it does not name the file
                    raise OSError(error.errno, error.strerror, str(inside / file)) from None
                (inside / file).chmod(0o644)  # MindSpore's are read-only, and for their owner
                return {}

            if folder.metrics_file.is_file():
                sync(folder.metrics_file)
            needed = sum(value.nbytes for value in values.values())
            write_checkpoint(final, write_tensors, dataclasses.asdict(progress), needed)
            prune_checkpoints(final, keep, progress.best.checkpoint if progress.best else None)
            with written_whole(folder.path / file) as beside:
                try:
                    os.link(final / file, beside)
                except OSError:  # a file system without links
                    shutil.copyfile(final / file, beside)
            prune_files(folder.path / file, keep)

        return write, learner.scaling.state_dict()

    def is_sharded(self) -> bool:
        return False


def restore(
    learner: MindSporeLearner, read: Callable[[], Mapping[str, Array]], origin: Path
) -> None:
    """Put the state of the optimizer back, on a model that has its weights (collective).

    Args:
      read: called on the first rank; returns arrays by MindSpore's names.
      origin: where they are from, for messages.
    Raises: CheckpointError on every rank if one is missing or does not fit.
    """
    runtime = learner.runtime
    own = {p.name for p in learner.network.get_parameters()} | {"learning_rate"}
    kept: list[Parameter] = [p for p in learner.optimizer.get_parameters() if p.name not in own]
    found: dict[str, Array] = {}

    def check() -> None:
        found.update(read())
        for parameter in kept:
            shape = found[parameter.name].shape if parameter.name in found else None
            if shape is None or shape != tuple(parameter.shape):
                what = "is missing" if shape is None else f"has the shape {shape}"
                raise CheckpointError(
                    f"{origin} cannot be continued: tensor '{parameter.name}', of the optimizer, "
                    f"{what}."
                )

    runtime.from_first(check)
    for parameter in kept:
        if parameter.name == "global_step":
            value = runtime.from_first(lambda name="global_step": found[name])  # type: ignore[misc]
        else:
            sent = torch.from_numpy(
                found.get(parameter.name, np.zeros(parameter.shape, np.float32))
            ).clone()
            runtime.broadcast(sent)
            value = sent.numpy()
        parameter.set_data(Tensor(value))


def stored_arrays(path: Path) -> Callable[[], Mapping[str, Array]]:
    """Return what :func:`restore` needs to read a `.ckpt`, which may come from anywhere."""
    return lambda: {
        name: stored.read().numpy() for name, stored in open_tensors(path).tensors.items()
    }


def momentum_arrays(state: MindSporeState, learner: MindSporeLearner) -> Mapping[str, Array]:
    """Return the momentum of a run that MindSpore has begun, by the names of its optimizer."""
    moments = arrays_of(state.momentum, learner.model.spec)
    return {
        **{f"moments.{name}": value for name, value in moments.items()},
        "momentum": np.array(learner.optimizer.momentum.asnumpy()),
        "global_step": np.array([state.updates], np.int32),
    }
