"""Agreement with the seed's system: MindSpore's logits, losses and updates, to 1e-6."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vitbase
from vitbase.config import load_config
from vitbase.errors import WeightsError
from vitbase.runtime import open_runtime
from vitbase.training.losses import cross_entropy_sum
from vitbase.training.optim import build_optimizer
from vitbase.weights.formats import open_tensors

FOLDER = Path(__file__).parent / "mindspore_tiny"
META = json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max())


@pytest.mark.parametrize(("file", "logits"), [("weights", "logits"), ("train", "logits_after")])
def test_logits_are_those_of_mindspore(file, logits, expected):
    loaded = vitbase.load_model(FOLDER / f"{file}.ckpt", num_heads=META["heads"])
    loaded.model.eval()
    with torch.inference_mode():
        ours = loaded.model(expected["images"])
    assert largest_difference(ours, expected[logits]) < TOLERANCE


def test_training_is_that_of_mindspore(expected):
    model = vitbase.load_model(FOLDER / "weights.ckpt", num_heads=META["heads"]).model
    config = load_config(
        "imagenet",
        lr_init=META["lr"],
        momentum=META["momentum"],
        weight_decay=META["weight_decay"],
    )
    optimizer = build_optimizer(model, config.optimizer, open_runtime("CPU"))
    model.train()
    losses = []
    for _ in range(META["steps"]):
        optimizer.zero_grad()
        loss = cross_entropy_sum(model(expected["images"]), expected["labels"].long())
        loss = loss / len(expected["labels"])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert len(losses) == 5
    assert largest_difference(torch.tensor(losses), expected["losses"]) < TOLERANCE
    # Not only the losses: every weight and every moment ends where MindSpore's does.
    after = vitbase.load_model(FOLDER / "train.ckpt", num_heads=META["heads"]).model.state_dict()
    for name, value in model.state_dict().items():
        assert largest_difference(value, after[name]) < TOLERANCE, name
    moments = open_tensors(FOLDER / "train.ckpt").tensors
    head = optimizer.state[model.head.weight]["momentum_buffer"]
    assert largest_difference(head, moments["moments.head.weight"].read()) < TOLERANCE


def test_heads_that_the_file_does_not_tell_are_asked_for():
    with pytest.raises(WeightsError, match="num_heads"):
        vitbase.load_model(FOLDER / "weights.ckpt")


@pytest.mark.parametrize("length", [0, 3, 1000, 100_000])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "cut.ckpt"
    path.write_bytes((FOLDER / "weights.ckpt").read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"cut\.ckpt"):
        vitbase.load_model(path, num_heads=3)


def test_the_optimizer_state_is_reported_not_loaded():
    report = vitbase.load_model(FOLDER / "train.ckpt", num_heads=3).report
    assert "global_step" in report.dropped
    assert "moments.head.bias" in report.dropped
    assert "head.bias" in report.mapped
