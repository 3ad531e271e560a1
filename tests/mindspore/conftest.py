"""Tests of the engine itself need MindSpore: `make test-mindspore` runs them where it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import environment_of_commands
from made_images import write_folder

from vitbase.config.config import Config, load_config

found = importlib.util.find_spec("mindspore")
if found is None or found.origin is None:  # this folder has the same name
    collect_ignore = [
        "test_network.py",
        "test_recipe.py",
        "test_stopped.py",
        "test_msrun_ranks.py",
        "test_strange_checkpoints.py",
    ]

SMALL: dict[str, Any] = {
    "model": "testing",
    "image_height": 32,
    "image_width": 32,
    "num_classes": 5,
    "num_train_images": 80,
    "num_val_images": 23,
    "batch_size": 8,
    "epoch_size": 2,
    "warmup_epochs": 1,
    "head_init_std": 0.1,
    "log_every_steps": 1,
    "device_target": "CPU",
    "precision": "fp32",
    "num_workers": 2,
}
"""What makes the recipe `imagenet` a run of 20 updates that takes seconds."""


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small ImageNet: synsets of photographs, 80 to train on and 23 to evaluate."""
    root = tmp_path_factory.mktemp("imagenet")
    synsets = [f"n{number:08}" for number in range(5)]
    write_folder(root / "ILSVRC2012_train", dict.fromkeys(synsets, 16), (60, 72))
    counts = dict(zip(synsets, (5, 5, 4, 5, 4), strict=True))
    write_folder(root / "ILSVRC2012_val", counts, (72, 60))
    return {
        "data_path": str(root / "ILSVRC2012_train"),
        "val_data_path": str(root / "ILSVRC2012_val"),
    }


@pytest.fixture
def small(imagenet: dict[str, str], tmp_path: Path) -> Callable[..., Config]:
    """Build the configuration of a small run of `imagenet`; options may be changed."""

    def build(engine: str, **options: Any) -> Config:
        place = str(tmp_path / f"run-{engine}")
        defaults = {**SMALL, **imagenet, "output_dir": place, "engine": engine}
        return load_config("imagenet", **{**defaults, **options})

    return build


@pytest.fixture
def command_words(imagenet: dict[str, str]) -> Callable[..., list[str]]:
    """Build the words of the same run as a command; options may be changed."""

    def build(**options: Any) -> list[str]:
        given = {**SMALL, **imagenet, "engine": "mindspore", **options}
        return [
            sys.executable,
            *("-m", "vitbase", "train", "imagenet"),
            *(word for key, value in given.items() for word in (f"--{key}", str(value))),
        ]

    return build


def start(words: list[str], **more: str) -> subprocess.Popen[str]:
    """Start a command whose lines can be read while it runs."""
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment_of_commands(**more),
    )


def rows(folder: Path, key: str) -> list[dict[str, Any]]:
    """Read the rows of a run's metrics that have a key."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder, "loss")]
