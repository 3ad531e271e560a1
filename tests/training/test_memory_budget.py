"""As many blocks are computed again as the memory of a device needs, and no number changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_runs import losses_of
from safetensors.torch import load_file

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import ConfigError
from vitbase.model.zoo import variant_spec
from vitbase.runtime import Runtime
from vitbase.training.memory import Memory, training_memory

TRAINED: dict[str, Any] = {
    **{"stochastic_depth": 0.3, "image_height": 64, "image_width": 64},
    **{"batch_size": 60, "epoch_size": 3, "log_every_steps": 1},
}


def memory_of(**options: Any) -> Memory:
    free = options.pop("free", None)
    config = load_config("imagenet", model="ViT-B_16", **options)
    return training_memory(
        config,
        variant_spec("ViT-B_16"),
        parameters=86_567_656,
        trainable=86_567_656,
        batch_size=64,
        half=True,
        free=free,
    )


def test_the_least_number_of_blocks_that_fits_is_computed_again():
    plain, least = memory_of(), memory_of(activation_checkpointing=True)
    assert (plain.recomputed, least.recomputed) == (0, 11)
    assert plain.activations > 4 * least.activations
    budgets = [plain.total / 2**30 * share for share in (1.001, 0.9, 0.7, 0.5)]
    found = [memory_of(memory_budget=budget) for budget in budgets]
    for budget, memory in zip(budgets, found, strict=True):
        assert memory.total <= budget * 2**30
        assert memory.state == plain.state
    blocks = [memory.recomputed for memory in found]
    assert blocks[0] == 0
    assert blocks == sorted(set(blocks))
    with pytest.raises(ConfigError, match=r"less than this run needs: 64 images .* --batch_size"):
        memory_of(memory_budget=least.total / 2**30 * 0.99)


def test_what_is_free_decides_where_no_number_is_given():
    free = round(memory_of().total * 0.8)
    memory = memory_of(memory_budget=0.0, free=free)
    assert 0 < memory.recomputed < 11
    assert memory.total <= 0.9 * free
    assert memory_of(memory_budget=0.0).recomputed == 0  # as on a CPU
    assert memory_of(memory_budget=0.0, free=1).recomputed == 11  # and the device says the rest


@pytest.mark.usefixtures("three_blocks")
def test_no_budget_changes_a_number(tiny_config, tmp_path, monkeypatch, capsys):
    plain = tiny_config(**TRAINED, output_dir=str(tmp_path / "plain"))
    vitbase.train(plain)
    (wanted,) = {f"{path}" for path in (tmp_path / "plain" / "checkpoints").glob("*-3_1")}
    least = estimate_of(plain.replace(activation_checkpointing=True))
    tight = (estimate_of(plain) + least) / 2
    for name, budget in (("tight", tight), ("free", 0.0)):
        monkeypatch.setattr(Runtime, "free_memory", lambda self: int(tight / 0.9 * 2**30))
        run = plain.replace(memory_budget=budget, output_dir=str(tmp_path / name))
        vitbase.train(run)
        said = capsys.readouterr().out
        assert "blocks 0 are computed again" not in said
        assert "are computed again for the backward pass" in said
        assert losses_of(run.output_dir) == losses_of(plain.output_dir)
        found = load_file(wanted.replace("plain", name) + "/weights.safetensors")
        for key, value in load_file(wanted + "/weights.safetensors").items():
            assert torch.equal(found[key], value), key
        told = {fact.name: fact for fact in vitbase.explain(run).facts}
        assert "blocks computed again" in told["activations, per image"].source


def estimate_of(config: vitbase.Config) -> float:
    """Return the GiB that explain tells of."""
    facts = {fact.name: fact.value for fact in vitbase.explain(config).facts}
    return float(facts["memory estimate"].split()[0].replace(",", "")) / 1024


@pytest.mark.parametrize("other", ["activation_checkpointing", "freeze_backbone"])
def test_a_budget_that_makes_no_sense_is_refused(tiny_config, other):
    with pytest.raises(ConfigError, match=f"memory_budget .*{other}"):
        tiny_config(memory_budget=1.0, **{other: True})
