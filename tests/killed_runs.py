"""Runs that were killed in their third epoch, and what becomes of them at the next start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import vitbase
from vitbase.config.config import Config, load_config
from vitbase.runs import lock
from vitbase.training import prepare
from vitbase.training import run as training
from vitbase.training.schedule import Place
from vitbase.training.step import Learner

STEPS = 4
NEWEST, EARLIER = f"train_vit_finetune-2_{STEPS}", f"train_vit_finetune-1_{STEPS}"
CHECKPOINT = f"checkpoints/{NEWEST}"


class ReachedError(Exception):
    """Training has come to its first update."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


class KilledError(Exception):
    pass


def options_of(data: Path, run: Path, **options: Any) -> Config:
    defaults: dict[str, Any] = {
        "data_path": str(data),
        "output_dir": str(run),
        "model": "testing",
        "pool": "token",
        "image_height": 32,
        "image_width": 32,
        "batch_size": 4,
        "epoch_size": 3,
        "warmup_epochs": 0,
        "device_target": "CPU",
        "precision": "fp32",
        "num_workers": 1,
        "log_every_steps": 2,
        "checkpoint_format": "mindspore",
        "pre_trained": False,
        "holdout_fraction": 0.3,
    }
    return load_config("finetune", **{**defaults, **options})


def kill_runs(place: Path, data: Path) -> dict[str, Path]:
    """Train this run, another, and one of another model until they are killed: their folders."""
    found = {}
    for name, options in (
        ("own", {}),
        ("other_run", {"seed": 1}),
        ("other_model", {"image_height": 16, "image_width": 16}),
    ):
        step = Learner.step

        def until_killed(self: Learner, update: int, *given: Any, step=step, **named: Any) -> Any:
            if update == 2 * STEPS + 3:
                raise KilledError
            return step(self, update, *given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "step", until_killed)
            config = options_of(data, place / name, **options)
            with pytest.raises(KilledError):
                vitbase.train(config)
        gone = lock._this_process() | {"process": 2**22 + 7}
        (place / name / lock.LOCK_FILE).write_text(json.dumps(gone))
        found[name] = place / name
    return found


def goes_on(config: Config, patch: pytest.MonkeyPatch) -> str:
    """Start the run again, up to its first update. Returns: where it goes on from."""

    def reached(run: Any, place: Place, **named: Any) -> Any:
        raise ReachedError(place)

    patch.setattr(training, "fit", reached)
    for room, name in (
        (training, "describe"),
        (training, "estimate_run"),
        (prepare, "check_agreement"),
    ):
        patch.setattr(room, name, lambda *given: [])  # they take time, and read nothing
    patch.setattr(os, "fsync", lambda descriptor: None)
    try:
        vitbase.train(config)
    except ReachedError as error:
        return {0: "anew", STEPS: "earlier", 2 * STEPS: "newest"}[error.place.updates]
    raise AssertionError("it did not train")
