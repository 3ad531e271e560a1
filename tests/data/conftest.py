from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commands import run_command
from made_images import encode, photo

from vitbase.config import Config


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """24 JPEGs of two classes, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        name = "cat" if number % 2 else "dog"
        (root / name).mkdir(exist_ok=True)
        pixels = photo(40 + 3 * number, 90 - 2 * number, seed=number)
        (root / name / f"{number:02}.JPEG").write_bytes(encode(pixels))
    return root


@pytest.fixture
def config() -> Callable[..., Config]:
    """Return a configuration for small images, with options on top."""

    def build(**options) -> Config:
        return Config().replace(
            **{"image_height": 32, "image_width": 32, "batch_size": 8, **options}
        )

    return build


@pytest.fixture
def vitbase_command(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command: exit code, standard output, standard error."""
    monkeypatch.setenv("VITBASE_CACHE", str(tmp_path / "cache"))

    return partial(run_command, capsys)
