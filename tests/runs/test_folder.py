"""What a run leaves on disk: old forms open, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitbase
from vitbase.errors import CheckpointError
from vitbase.runs.checkpoints import (
    MANIFEST_FILE,
    PROGRESS_FILE,
    STATE_FILE,
    list_checkpoints,
    write_manifest,
)
from vitbase.runs.progress import read_progress


def as_version_0_1(checkpoint: Path) -> None:
    """Rewrite a checkpoint as the first version did: its progress inside the training state."""
    numbers = json.dumps(json.loads((checkpoint / PROGRESS_FILE).read_text()), sort_keys=True)
    state = load_file(checkpoint / STATE_FILE)
    save_file(state, checkpoint / STATE_FILE, {"vitbase": numbers})
    (checkpoint / PROGRESS_FILE).unlink()
    write_manifest(checkpoint)


def newest(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1].path


def test_a_checkpoint_of_the_first_version_is_continued_bit_for_bit(tiny_config, tmp_path):
    config = tiny_config()
    vitbase.train(config)
    whole = load_file(newest(config.output_dir) / "weights.safetensors")
    for path in (config.output_dir / "checkpoints").iterdir():
        if path.name.endswith("-2_6"):
            shutil.rmtree(path)
    before = read_progress(newest(config.output_dir))
    as_version_0_1(newest(config.output_dir))
    assert read_progress(newest(config.output_dir)) == before
    result = vitbase.train(config)
    assert result.updates == 12
    again = load_file(newest(config.output_dir) / "weights.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_progress_is_under_the_manifest(tiny_config):
    config = tiny_config(epoch_size=1)
    vitbase.train(config)
    files = json.loads((newest(config.output_dir) / MANIFEST_FILE).read_text())["files"]
    assert set(files) == {"weights.safetensors", STATE_FILE, PROGRESS_FILE}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"best": 1}', '{"updates": 1}', "[" * 10_000])
def test_a_progress_that_is_none_is_named(tmp_path, text):
    (tmp_path / PROGRESS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"no progress to go on from"):
        read_progress(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x05", (2**40).to_bytes(8, "little") + b"{}"])
def test_a_state_that_holds_no_progress_is_named(tmp_path, content):
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no progress to go on from"):
        read_progress(tmp_path)
