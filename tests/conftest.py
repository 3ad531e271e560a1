"""Small real inputs that many tests share."""

from __future__ import annotations

import gzip
import os
import signal
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_command
from hypothesis import settings
from made_images import encode, photo
from made_runs import TINY
from PIL import Image

from vitbase.config.config import Config, load_config
from vitbase.config.options import EMBEDDED
from vitbase.model.zoo import VARIANTS
from vitbase.sources.open import open_source

# Nothing is timed. In CI the examples are always the same: what a change breaks, it breaks again.
settings.register_profile("vitbase", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("vitbase")
# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Two threads of torch per process fight with each other on a busy machine, and wait for each other
# in a loop: a third of what a tiny run takes. One is enough, here and in what tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


# With --dist loadfile and --no-loadscope-reorder, a file that takes long and comes late would be
# alone at the end: these come first, the longest before all others.
LONGEST_FILES = (
    "test_cluster.py",
    "test_stop_signals.py",
    "test_ranks.py",
    "test_launch.py",
    "test_agreement.py",
    "test_eval_ranks.py",
    "test_features.py",
    "test_golden_losses.py",
    "test_weights_fuzz.py",
    "test_damaged_run.py",
    "test_hostile_words.py",
    "test_hostile_files.py",
    "test_cli.py",
    "test_lost_ranks.py",
    "test_passing.py",
    "test_recipes.py",
    "test_damaged_shards.py",
    "test_sharded_parameters.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest come first."""
    rank = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@pytest.fixture(scope="session")
def clothing() -> tuple[np.ndarray, np.ndarray]:
    """Real photographs: the first 80 embedded ones, [80, 28, 28] uint8, and their labels."""
    source = open_source(EMBEDDED, "val", "data_path")
    pixels = [np.asarray(source.read(i))[..., 0] for i in range(80)]
    return np.stack(pixels), np.asarray(source.labels[:80])


@pytest.fixture(scope="session")
def tiny_idx(tmp_path_factory: pytest.TempPathFactory, clothing: Any) -> Path:
    """A folder of IDX files with 60 training and 20 evaluation photographs."""
    folder = tmp_path_factory.mktemp("tiny_idx")
    pixels, labels = clothing
    for name, part in (("train", slice(0, 60)), ("t10k", slice(60, 80))):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", pixels[part])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels[part])
    return folder


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, clothing: Any) -> Path:
    """Class folders of real images in several formats: 3 classes, 8 images each, 40x32 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    pixels, labels = clothing
    suffixes = ("jpg", "png", "JPEG", "webp")
    for label, name in enumerate(("bag", "boot", "coat")):
        (folder / name).mkdir()
        chosen = np.flatnonzero(labels % 3 == label)[:8]
        for number, index in enumerate(chosen):
            image = Image.fromarray(pixels[index]).convert("RGB").resize((40, 32))
            image.save(folder / name / f"{number}.{suffixes[number % 4]}")
    return folder


@pytest.fixture
def photo_config(photo_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """Build the configuration of a run of a second on class folders; options may be changed."""

    def build(**options: Any) -> Config:
        defaults: dict[str, Any] = {
            "data_path": str(photo_folder),
            "output_dir": str(tmp_path / "run"),
            "model": "testing",
            "pool": "gap",
            "image_height": 32,
            "image_width": 32,
            "batch_size": 4,
            "epoch_size": 1,
            "warmup_epochs": 0,
            "device_target": "CPU",
            "precision": "fp32",
        }
        return load_config("finetune", **{**defaults, **options})

    return build


@pytest.fixture
def three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the smallest model three blocks; in this process alone."""
    monkeypatch.setitem(VARIANTS, "testing", VARIANTS["testing"].replace(depth=3))


@pytest.fixture
def tiny_config(tiny_idx: Path, tmp_path: Path) -> Callable[..., Config]:
    """Build the configuration of a run of a second; options may be changed."""

    def build(**options: Any) -> Config:
        defaults = {**TINY, "data_path": str(tiny_idx), "output_dir": str(tmp_path / "run")}
        return load_config("fashion", **{**defaults, **options})

    return build


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
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where vitbase keeps what it has found out, of this test alone."""
    monkeypatch.setenv("VITBASE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def vitbase_command(capsys, cache) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command: exit code, standard output, standard error."""
    return partial(run_command, capsys)
