"""Every recipe builds, explains itself, and takes two steps on a small folder like ImageNet's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_images import write_folder
from made_runs import losses_of
from safetensors.torch import load_file

import vitbase
from vitbase.config.config import load_config
from vitbase.config.shipped import read_recipe_text, recipe_names
from vitbase.explanation import explain

SYNSETS = ("n01440764", "n01443537", "n01484850")
CLASSES = len(SYNSETS)

FROM_OTHER_WEIGHTS = ("cifar10", "finetune", "linear_probe", "vit_finetune")
"""Recipes that start from weights with other classes."""

AFTER = {"deit_b16_384": "deit_b16", "deit3_b16_224": "deit3_b16"}
"""Recipes that start from the run of another, at a higher resolution."""

UNSEEN = {"data_path": "/no/data/here"}
PUBLISHED = [name for name in recipe_names() if not name.startswith(("fashion", "finetune"))]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options that name a folder in ImageNet's layout: 3 synsets of 6 and 2 photographs."""
    folder = tmp_path_factory.mktemp("imagenet")
    train, val = folder / "ILSVRC2012_train", folder / "ILSVRC2012_val"
    write_folder(train, dict.fromkeys(SYNSETS, 6), size=(40, 52))
    write_folder(val, dict.fromkeys(SYNSETS, 2), size=(52, 40))
    return {"data_path": str(train), "val_data_path": str(val)}


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small model with five classes."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=5, image_size=32)
    vitbase.save_weights(model, path, dialect="vitbase")
    return path


@pytest.fixture(scope="module")
def run(
    imagenet: dict[str, Any], other_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Take two steps of a recipe with a small model; the run folder. Each recipe runs once."""
    done: dict[str, Path] = {}

    def take_two_steps(recipe: str) -> Path:
        if recipe in done:
            return done[recipe]
        options = load_config(recipe)
        side = 48 if recipe in AFTER else 32
        scaled: dict[str, Any] = {
            **imagenet,
            "output_dir": str(tmp_path_factory.mktemp("runs") / recipe),
            # sincos2d needs a width that 4 divides, which `testing` has not.
            "model": "ViT-Ti_16" if options.model.pos_embed == "sincos2d" else "testing",
            "num_classes": None,
            "num_train_images": 6 * CLASSES,
            "num_val_images": 2 * CLASSES,
            "image_height": side,
            "image_width": side,
            "batch_size": 2,
            "global_batch": 4,
            "total_steps": 2,
            "log_every_steps": 1,
            "device_target": "CPU",
            "precision": "fp32",
            "num_workers": 1,
        }
        if options.schedule.warmup_steps is not None:
            scaled["warmup_steps"] = 1
        if options.data.image_channels == 1:  # made for grey images
            scaled |= {"image_channels": 3, "mean": None, "std": None}
        if recipe in FROM_OTHER_WEIGHTS:
            scaled["checkpoint_path"] = str(other_weights)
        if recipe in AFTER:
            scaled["checkpoint_path"] = str(take_two_steps(AFTER[recipe]))
        result = vitbase.train(load_config(recipe, **scaled))
        assert result.updates == 2
        done[recipe] = result.output_dir
        return result.output_dir

    return take_two_steps


def loss_of_a_new_head(recipe: str) -> float:
    """The loss while every class is as likely, whatever was done to images and labels."""
    options = load_config(recipe)
    if options.loss.loss == "softmax":
        return math.log(CLASSES)
    bias = options.model.head_bias_init or 0.0
    # Softplus for each class, less the bias for the label; or for each class 0 or 1 as likely.
    wrong, right = math.log1p(math.exp(bias)), math.log1p(math.exp(-bias))
    whole = (CLASSES - 1) * wrong + right
    return whole if options.loss.over_classes == "sum" else whole / CLASSES


@pytest.mark.parametrize("recipe", recipe_names())
def test_two_steps_on_a_folder_like_imagenets(recipe, run):
    first, second = losses_of(run(recipe))
    if recipe not in AFTER:
        # To the digit where the head starts at zero.
        near = 0.2 if load_config(recipe).model.head_init_std else 1e-5
        assert first == pytest.approx(loss_of_a_new_head(recipe), rel=near)
    assert math.isfinite(second)
    assert vitbase.load_model(run(recipe)).spec.num_classes == CLASSES


@pytest.mark.parametrize("recipe", AFTER)
def test_a_higher_resolution_goes_on_from_the_run_before(recipe, run):
    before, after = (vitbase.load_model(run(name)) for name in (AFTER[recipe], recipe))
    assert (before.spec.grid_hw, after.spec.grid_hw) == ((2, 2), (3, 3))
    assert after.model.pos_embed.shape[1] == before.model.pos_embed.shape[1] + 5
    # The rate is that small: the weights are those of the run before, the head's too.
    assert torch.allclose(before.model.head.weight, after.model.head.weight, atol=1e-4)
    assert before.labels == after.labels


def test_a_linear_probe_moves_the_head_alone(run, other_weights):
    before = load_file(other_weights)
    after = load_file(next(run("linear_probe").glob("checkpoints/*/weights.safetensors")))
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name != "finetune"])
def test_every_recipe_explains_itself_without_its_data(recipe):
    config = load_config(recipe, **UNSEEN)
    explained = explain(config)
    assert explained.total_steps > 0
    if not config.model.freeze_backbone:
        assert explained.training_flops > 2.5 * explained.forward_flops
    assert all(fact.source for fact in explained.facts)
    # What the header says of the cost is what is explained.
    (cost,) = re.findall(r"^# Cost: +(.+(?:\n# {9}.+)*)", read_recipe_text(recipe), re.MULTILINE)
    (steps,) = re.findall(r"epochs of (\d+)", cost)
    assert int(steps) == explained.steps_per_epoch
    for epochs in re.findall(r"^(\d+) epochs", cost):
        assert int(epochs) * explained.steps_per_epoch == explained.total_steps
    flops = explained.training_flops * explained.global_batch * explained.total_steps
    for said in re.findall(r"(\S+) FLOPs", cost):
        assert float(said) == float(f"{flops:.2g}")


def test_a_frozen_backbone_costs_no_gradients():
    whole = explain(load_config("linear_probe", **UNSEEN, freeze_backbone=False))
    probe = explain(load_config("linear_probe", **UNSEEN))
    assert probe.forward_flops == whole.forward_flops
    assert probe.forward_flops < probe.training_flops < 1.01 * probe.forward_flops
    assert set(probe.decayed + probe.kept) == {"head.weight", "head.bias"}
    assert probe.activation_bytes_per_image < whole.activation_bytes_per_image / 100


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_published_recipe_says_what_is_published_and_what_is_ours(recipe):
    text = read_recipe_text(recipe)
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for heading in ("Command:", "Cost:", "Result:", "Source:", "Ours:"):
        assert header.count(heading) == 1, f"'{heading}' {header.count(heading)} times"
    assert "none measured here" in header
    assert f"vitbase train {recipe} " in header


@pytest.mark.parametrize(
    ("recipe", "batch", "rate"),
    [
        ("imagenet", 128, 0.02),
        ("imagenet", 1024, 0.18),
        ("imagenet", 256, 0.04),
        ("cifar10", 64, 0.013),
        ("cifar10", 256, 0.052),
        ("deit_b16", 1024, 1e-3),
        ("deit_b16", 512, 5e-4),  # 5e-4 * batch / 512
        ("mae_scratch_b16", 4096, 1.6e-3),
        ("mae_scratch_b16", 256, 1e-4),  # 1e-4 * batch / 256
        ("linear_probe", 256, 3.0),  # 3 * batch / 256
        ("deit3_b16", 2048, 3e-3),
        ("plain_vit_s16", 1024, 1e-3),
        ("plain_vit_s16", 256, 5e-4),  # ours: the root
    ],
)
def test_the_rate_follows_the_batch_as_the_source_has_it(recipe, batch, rate):
    config = load_config(recipe, **UNSEEN, model="testing", pos_embed=None, global_batch=batch)
    assert explain(config).peak_lr == pytest.approx(rate)
