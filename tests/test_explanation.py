"""What `explain` says is what a run then does."""

from __future__ import annotations

import pytest
import torch
from made_runs import rows_of

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import ConfigError
from vitbase.explanation import explain


def test_the_steps_and_rates_are_those_of_the_run(tiny_config):
    config = tiny_config(log_every_steps=1, epoch_size=3, warmup_epochs=0.5)
    explained = explain(config)
    result = vitbase.train(config)
    assert explained.total_steps == result.updates
    rows = rows_of(result.output_dir)
    rates = {row["step"] - 1: row["lr"] for row in rows if "loss" in row}
    assert {step: rates[step] for step, _ in explained.learning_rates} == dict(
        explained.learning_rates
    )
    loaded = vitbase.load_model(result.output_dir)
    assert explained.parameters == sum(p.numel() for p in loaded.model.parameters())


def test_flops_are_those_of_the_formula():
    # One block of a GAP model, by hand: stem, qkv, attention, projection, MLP, head.
    config = load_config(
        "fashion", model="testing", pool="gap", image_height=32, image_width=32, gelu="tanh"
    )
    tokens, width, mlp, patch = 4, 10, 10, 16 * 16
    macs = tokens * (patch * width + 4 * width * width + 2 * width * mlp)
    macs += 2 * tokens * tokens * width + width * 10
    assert explain(config).forward_flops == 2 * macs


def test_a_folder_of_images_is_counted(photo_folder):
    explained = explain(load_config("finetune", data_path=str(photo_folder), batch_size=3))
    assert explained.steps_per_epoch == 7  # 24 images, one held out of each of 3 classes
    with pytest.raises(ConfigError, match="--data_path"):
        explain(load_config("finetune"))


def test_the_memory_of_activations_is_what_autograd_keeps():
    config = load_config("imagenet", model="ViT-Ti_16", precision="fp32")
    model = vitbase.create_model("ViT-Ti_16")
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.rand(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    explained = explain(config).activation_bytes_per_image
    assert explained == pytest.approx(sum(kept.values()), rel=0.02)
