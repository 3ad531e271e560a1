"""Runs that were killed, and copies of one to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from killed_runs import kill_runs, options_of

from vitbase.config.config import Config


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> dict[str, Path]:
    """The folders of this run, another, and one of another model."""
    return kill_runs(tmp_path_factory.mktemp("runs"), photo_folder)


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["own"], tmp_path / "run"))


@pytest.fixture
def config(photo_folder: Path, run: Path) -> Config:
    return options_of(photo_folder, run)
