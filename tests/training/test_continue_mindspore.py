"""A run that MindSpore began goes on here as if it had been ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import write_mindspore
from safetensors.torch import load_file

import vitbase
from vitbase.errors import CheckpointError, ConfigError
from vitbase.weights.origins.dialect import to_theirs
from vitbase.weights.origins.mindspore import MINDSPORE

HEADS = 2
RUN: dict[str, Any] = {
    "model": None,
    "pool": None,
    "num_heads": HEADS,
    "optimizer": "momentum",
    "lr_init": 0.05,
    "warmup_epochs": 1,
    "keep_checkpoint_max": 9,
    "checkpoint_every_steps": 4,
}


@pytest.fixture
def begun(tiny_config: Any, tmp_path: Path) -> Path:
    """A whole run of ours of 12 updates, and what MindSpore would have written after 4 and 8."""
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=10, image_size=(16, 16), in_channels=1)
    vitbase.save_weights(model, tmp_path / "start.ckpt", dialect="mindspore")
    path = str(tmp_path / "start.ckpt")
    vitbase.train(tiny_config(output_dir=str(tmp_path / "whole"), checkpoint_path=path, **RUN))
    for updates, name in ((4, "1_4"), (8, "2_2")):
        folder = tmp_path / "whole" / "checkpoints" / f"train_vit_fashion-{name}"
        tensors = {}
        for prefix, stored in (
            ("", load_file(folder / "weights.safetensors")),
            ("moments.", momentum_of(load_file(folder / "training_state.safetensors"))),
        ):
            for ours, value in stored.items():
                for theirs, part in to_theirs(MINDSPORE, ours, value, HEADS).items():
                    tensors[prefix + theirs] = part
        tensors["global_step"] = torch.tensor([updates], dtype=torch.int32)
        write_mindspore(tmp_path / f"train-{updates}.ckpt", tensors)
    return tmp_path


def momentum_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "momentum_buffer/"
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize("updates", [4, 8], ids=["in the first epoch", "in the second"])
def test_the_rest_of_the_run_is_the_same_bit_for_bit(begun: Path, tiny_config: Any, updates: int):
    result = vitbase.train(
        tiny_config(
            output_dir=str(begun / "continued"),
            checkpoint_path=str(begun / f"train-{updates}.ckpt"),
            continue_training=True,
            **RUN,
        )
    )
    assert result.updates == 12
    ends = [
        load_file(begun / run / "checkpoints/train_vit_fashion-2_6/weights.safetensors")
        for run in ("whole", "continued")
    ]
    for name in ends[0]:
        assert torch.equal(ends[0][name], ends[1][name]), name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint_path": None}, ConfigError, "needs a --checkpoint_path"),
        ({"pre_trained": False}, ConfigError, "needs a --checkpoint_path"),
        ({"optimizer": "adamw"}, ConfigError, "--optimizer momentum"),
        ({"epoch_size": 1, "warmup_epochs": 0}, ConfigError, r"ends after 6.*--epoch_size"),
        ({"num_classes": 12}, ConfigError, "has 10 classes, this run has 12"),
        ({"checkpoint_path": "start.ckpt"}, CheckpointError, "leave out --continue_training"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_continued_is_refused(
    begun: Path, tiny_config: Any, options: dict[str, Any], error: type[Exception], message: str
):
    given = {"checkpoint_path": "train-8.ckpt", **options}
    if given["checkpoint_path"]:
        given["checkpoint_path"] = str(begun / given["checkpoint_path"])
    config = tiny_config(
        output_dir=str(begun / "continued"), continue_training=True, **{**RUN, **given}
    )
    with pytest.raises(error, match=message):
        vitbase.train(config)
    assert not (begun / "continued").exists()
