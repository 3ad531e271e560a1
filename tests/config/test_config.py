"""Options: typed, documented, validated, and written so that they can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbase.config.config import (
    FIELDS,
    Config,
    differences_on_resume,
    load_config,
)
from vitbase.config.shipped import read_recipe_text, recipe_names
from vitbase.errors import ConfigError

# R7: what the seed's users find in its config.py.
SEED_OPTIONS = {
    "name": "imagenet",
    "pre_trained": False,
    "num_classes": 1000,
    "lr_init": 0.02,
    "batch_size": 128,
    "epoch_size": 160,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "image_height": 224,
    "image_width": 224,
    "data_path": "/data/ILSVRC2012_train/",
    "val_data_path": "/data/ILSVRC2012_val/",
    "device_target": "auto",
    "device_id": 0,
    "keep_checkpoint_max": 30,
    "checkpoint_path": "./ckpt_0/train_vit_imagenet-156_10009.ckpt",
}


def value_of(config: Config, option: str) -> object:
    return getattr(getattr(config, FIELDS[option][0]), option)


def test_imagenet_holds_the_values_of_the_seed():
    config = load_config("imagenet")
    assert {option: value_of(config, option) for option in SEED_OPTIONS} == SEED_OPTIONS


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_valid_documented_and_named_after_its_file(recipe):
    config = load_config(recipe)
    assert config.run.name == recipe
    header = [line for line in read_recipe_text(recipe).splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for heading in ("Command:", "Cost:", "Result:", "Source:"):
        assert heading in text, f"{recipe}: its header lacks '{heading}'"


def test_every_option_is_documented():
    assert [option for option, (_, field) in FIELDS.items() if not field.description] == []


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_written_configuration_reads_back_equal(recipe, tmp_path):
    config = load_config(recipe)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(str(path)) == config


@given(
    lr_init=st.floats(min_value=1e-12, max_value=1e6),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
    data_path=st.text(st.characters(blacklist_categories=["Cs"]), max_size=40),
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
    clip_norm=st.none() | st.floats(min_value=1e-6, max_value=1e6),
)
def test_any_valid_values_read_back_equal(tmp_path_factory, **options):
    config = load_config("fashion", **options)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_intt": 1}, "Unknown option 'lr_intt'. Did you mean 'lr_init'?"),
        ({"lr_init": -1}, "Option 'lr_init' should be greater than 0"),
        ({"lr_init": float("nan")}, "Option 'lr_init'"),
        ({"epoch_size": 0}, "Option 'epoch_size' should be greater than or equal to 1"),
        ({"epoch_size": 2.5}, "Option 'epoch_size'"),
        ({"batch_size": "many"}, "Option 'batch_size'"),
        ({"device_target": "TPU"}, "Ascend, GPU, CPU"),
        ({"mean": (0.5,)}, "mean has 1 values for image_channels 3"),
        ({"std": (0.0, 1.0, 1.0)}, "std should be greater than 0"),
        ({"warmup_epochs": 160}, "warmup_epochs 160 should be less than epoch_size 160"),
        ({"name": "a/b"}, "Option 'name'"),
        ({"betas": (0.9, 1.0)}, "Option 'betas'"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(ConfigError) as error:
        load_config("imagenet", **options)
    assert message in str(error.value)


@pytest.mark.parametrize("spelling", ["Ascend", "ascend", "ASCEND"])
def test_device_target_is_taken_in_any_case(spelling):
    assert load_config("imagenet", device_target=spelling).run.device_target == "Ascend"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\nbatch_sise = 3\n", "Unknown option 'batch_sise'. Did you mean 'batch_size'?"),
        ("[run]\nbatch_size = 3\n", "belongs into [data]"),
        ("[dat]\nbatch_size = 3\n", "Unknown section [dat]. Did you mean 'data'?"),
        ("batch_size =", "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert message in str(error.value)
    assert "mine.toml" in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        load_config("imagnet")


def test_only_what_moves_no_number_may_change_on_resume():
    saved = load_config("imagenet", lr_init=0.02)  # as a run saves it, with the rate it had
    moved = saved.replace(data_path="/elsewhere", num_workers=3, keep_checkpoint_max=2)
    assert differences_on_resume(saved, moved) == []
    other = saved.replace(lr_init=0.1, global_batch=64)
    assert differences_on_resume(saved, other) == [
        "global_batch: the run has None, asked for 64",
        "lr_init: the run has 0.02, asked for 0.1",
    ]
