"""Agreement with the seed's system: MindSpore's logits, losses and updates, to 1e-6."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_weights import write_mindspore

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import CheckpointError, WeightsError
from vitbase.runtime import local_runtime
from vitbase.training.losses import build_loss
from vitbase.training.mindspore_state import read_mindspore_state
from vitbase.training.optim import build_optimizer
from vitbase.training.state import RunState, momentum_tensors
from vitbase.weights.files.open import open_tensors
from vitbase.weights.load import open_weights

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


def train_steps(model, optimizer, expected, steps):
    model.train()
    loss_of = build_loss("softmax", model.spec.num_classes)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(expected["images"]), expected["labels"].long())
        loss = loss / len(expected["labels"])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def start(file):
    model = vitbase.load_model(FOLDER / file, num_heads=META["heads"]).model
    config = load_config(
        "imagenet",
        lr_init=META["lr"],
        momentum=META["momentum"],
        weight_decay=META["weight_decay"],
    )
    return model, build_optimizer(model, config.optimizer, local_runtime("CPU"))


def test_training_is_that_of_mindspore(expected):
    model, optimizer = start("weights.ckpt")
    losses = train_steps(model, optimizer, expected, META["steps"])
    assert len(losses) == 5
    assert largest_difference(torch.tensor(losses), expected["losses"]) < TOLERANCE
    # Not only the losses: every weight and every moment ends where MindSpore's does.
    after = vitbase.load_model(FOLDER / "train.ckpt", num_heads=META["heads"]).model.state_dict()
    for name, value in model.state_dict().items():
        assert largest_difference(value, after[name]) < TOLERANCE, name
    moments = open_tensors(FOLDER / "train.ckpt").tensors
    head = optimizer.state[model.head.weight]["momentum_buffer"]
    assert largest_difference(head, moments["moments.head.weight"].read()) < TOLERANCE


def take_over(model, optimizer, state):
    """Put the momentum of MindSpore's checkpoint into an optimizer."""
    run = RunState(model, optimizer, None, local_runtime("CPU"))
    run.restore(momentum_tensors(state), state.path)


def test_training_continues_from_the_checkpoint_of_mindspore(expected):
    ours, our_optimizer = start("weights.ckpt")
    train_steps(ours, our_optimizer, expected, META["steps"])
    theirs, their_optimizer = start("train.ckpt")
    state = read_mindspore_state(open_weights(FOLDER / "train.ckpt", num_heads=META["heads"]))
    assert state.updates == META["steps"]
    take_over(theirs, their_optimizer, state)
    losses = train_steps(theirs, their_optimizer, expected, 8)
    assert train_steps(ours, our_optimizer, expected, 8) == pytest.approx(losses, abs=TOLERANCE)
    for name, value in ours.state_dict().items():
        assert largest_difference(value, theirs.state_dict()[name]) < TOLERANCE, name


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("global_step", "no tensor 'global_step'"),
        ("moments.transformer.encoder.layer.0.attn.key.weight", r"attn\.query\.weight.*missing"),
        ("moments.head.bias", r"moments\.head\.bias"),
    ],
)
def test_a_training_checkpoint_without_its_state_is_refused(tmp_path, lost, message):
    tensors = open_tensors(FOLDER / "train.ckpt").tensors
    path = tmp_path / "train.ckpt"
    write_mindspore(path, {name: t.read() for name, t in tensors.items() if name != lost})
    with pytest.raises(CheckpointError, match=message):
        read_mindspore_state(open_weights(path, num_heads=META["heads"]))


# What MindSpore 2.10 saves of its optimizers, and of a training with a loss scale.
LEFT_BEHIND = {
    "Momentum": ("moments.{}", "learning_rate", "momentum", "global_step"),
    "SGD": ("accum.{}", "stat.{}", "learning_rate", "momentum"),
    "Adam": ("moment1.{}", "moment2.{}", "vhat.{}", "beta1_power", "beta2_power"),
    "AdamWeightDecay": ("adam_m.{}", "adam_v.{}"),
    "Lamb": ("lamb_m.{}", "lamb_v.{}"),
    "LARS": ("fake_lr", "fake_param", "moments.{}"),
    "RMSProp": ("mean_grad.{}", "mean_square.{}", "moment.{}"),
    "Adadelta": ("accum.{}", "accum_update.{}"),
    "Rprop": ("prev.{}", "step_size.{}"),
    "FTRL": ("moments.{}", "linear.{}"),
    "loss scale": ("scale_sense", "current_iterator_step", "last_overflow_iterator_step"),
    "callback": ("epoch_num", "step_num"),
}


@pytest.mark.parametrize("optimizer", LEFT_BEHIND)
def test_what_optimizers_keep_is_told_apart_from_the_weights(tmp_path, optimizer):
    weights = {n: t.read() for n, t in open_tensors(FOLDER / "weights.ckpt").tensors.items()}
    beside = {
        pattern.format(name): value if "{}" in pattern else torch.zeros(())
        for pattern in LEFT_BEHIND[optimizer]
        for name, value in weights.items()
    }
    write_mindspore(tmp_path / "train.ckpt", {**weights, **beside})
    report = vitbase.load_model(tmp_path / "train.ckpt", num_heads=META["heads"]).report
    assert set(report.dropped) == set(beside)
    assert len(report.mapped) == 32


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
