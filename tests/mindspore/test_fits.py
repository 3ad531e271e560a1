"""What the MindSpore engine does not do is refused, by the option's name; no MindSpore needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from commands import run_command

import vitbase
from vitbase.config.config import FIELDS, load_config
from vitbase.config.shipped import recipe_names
from vitbase.errors import ConfigError, DeviceError
from vitbase.mindspore.fits import (
    NOT_READ,
    ONLY,
    READ,
    check_installed,
    check_options,
    check_spec,
)
from vitbase.model.zoo import VARIANTS, variant_spec

# For each option that the engine does not read, or not with every value, one that it refuses.
REFUSED: dict[str, Any] = {
    "tf32": True,
    "compile": True,
    "device_graph": True,
    "fp8": True,
    "tensorboard": True,
    "layer_scale_init": 1e-5,
    "freeze_backbone": True,
    "activation_checkpointing": True,
    "memory_budget": 8.0,
    "layer_decay": 0.75,
    "ema_decay": 0.999,
    "over_classes": "mean",
    "binary_targets": True,
    "class_weights": "balanced",
    "max_nonfinite_updates": 1,
    "on_nonfinite": "rewind",
    "decoder": "device",
    "worker_processes": True,
    "device_target": "GPU",
    "parallel": "fsdp",
    "optimizer": "lamb",
    "loss": "sigmoid",
    "pos_embed": "sincos2d",
    "dropout": 0.1,
    "stochastic_depth": 0.1,
    "num_registers": 4,
}
TOGETHER: dict[str, dict[str, Any]] = {
    "over_classes": {"loss": "sigmoid"},
    "binary_targets": {"loss": "sigmoid"},
}
EVERY_VALUE_READ = {"precision", "pool"}  # of those that an option can have


def test_every_option_is_read_or_refused():
    """A new option has to be entered in one of the tables: it cannot pass unread."""
    tables = [set(READ), set(ONLY), set(NOT_READ)]
    assert set.union(*tables) == set(FIELDS)
    assert sum(map(len, tables)) == len(FIELDS)
    assert set(REFUSED) | EVERY_VALUE_READ == set(ONLY) | NOT_READ


@pytest.mark.parametrize("option", REFUSED)
def test_what_the_engine_does_not_do_is_refused_by_name(option):
    options = {option: REFUSED[option], **TOGETHER.get(option, {})}
    config = load_config("imagenet", engine="mindspore", **options)
    with pytest.raises(ConfigError, match=rf"Option '{option}' is .*[\s\S]*--engine torch"):
        vitbase.train(config)


def test_the_seeds_recipe_is_read_whole():
    check_options(load_config("imagenet", engine="mindspore"))
    with pytest.raises(ConfigError, match=r"Option 'optimizer' is lamb.*\n.*'loss' is sigmoid"):
        check_options(load_config("deit3_b16"))


def test_published_recipes_are_trained_or_refused_with_names():
    told = {}
    for name in recipe_names():
        try:
            check_options(load_config(name))
        except ConfigError as error:
            told[name] = str(error)
    assert "imagenet" not in told
    assert all("Option '" in text for text in told.values())


def test_models_that_are_no_plain_transformers_are_refused():
    plain = [name for name in VARIANTS if not fails(name)]
    assert {"ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14", "testing"} <= set(plain)
    for name, reason in (
        ("R50+ViT-B_16", "stem resnet"),
        ("ViTC-Ti_16", "stem conv"),
        ("DINOv2-B_14", "layer_scale_init"),
    ):
        with pytest.raises(ConfigError, match=rf"{reason}.*--engine torch does that"):
            check_spec(variant_spec(name))


def fails(name: str) -> bool:
    try:
        check_spec(variant_spec(name))
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["none", "a folder"])
def test_a_missing_mindspore_is_told_before_anything_starts(monkeypatch, capsys, tmp_path, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.chdir(tmp_path)
    for command in ("train", "eval"):
        words = [command, "imagenet", "--engine", "mindspore", "--checkpoint_path", "x.ckpt"]
        code, _, error = run_command(capsys, *words)
        assert code == 2
        assert "needs MindSpore, which is not installed here" in error
        assert "pip install 'vitbase[mindspore]'" in error
    assert list(tmp_path.iterdir()) == []


def test_a_numpy_that_is_too_new_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="x"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.6")
    with pytest.raises(DeviceError, match=r"numpy 2\.4\.6.*environment of its own"):
        check_installed()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    check_installed()


def test_an_unknown_engine_is_an_error_that_names_those_there_are(capsys):
    code, _, error = run_command(capsys, "train", "imagenet", "--engine", "mindsport")
    assert code == 2
    assert "engine" in error


def test_a_run_keeps_its_engine(tiny_config):
    config = tiny_config(epoch_size=1)
    vitbase.train(config)
    plain = {"model": "testing", "optimizer": "momentum"}
    other = config.replace(engine="mindspore", **plain)
    from vitbase.runs.folder import RunFolder

    with pytest.raises(ConfigError, match="engine: the run has torch, asked for mindspore"):
        RunFolder(config.output_dir).check(other)
