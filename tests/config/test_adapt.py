"""Recipes made for one data set, on another of a different size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitbase.config.adapt import adapt
from vitbase.config.batch import batch_layout
from vitbase.config.complete import Facts, complete
from vitbase.config.config import differences_on_resume, load_config
from vitbase.config.shipped import recipe_names

OF_A_DATA_SET = [name for name in recipe_names() if load_config(name).data.num_train_images]


def test_a_probe_of_two_thousand_images_is_not_one_of_imagenet(capsys):
    config = load_config("linear_probe", data_path="photos", checkpoint_path="weights")
    assert "val_data_path /data/ILSVRC2012_val/ of recipe linear_probe" in capsys.readouterr().err
    assert config.data.val_data_path is None  # ImageNet's are not those of these photographs
    assert config.data.num_classes is None
    done = complete(config, Facts(num_train_images=1800, num_classes=10), 1)
    assert done.layout.global_batch == 32
    assert done.rate.lr == pytest.approx(12 * 32 / 1024 * (10 / 1000) ** 0.75)
    assert done.config.model.frozen_views == 1
    assert done.config.schedule.eval_every_epochs == 9
    assert done.config.data.num_train_images == 1800
    (note,) = done.notes
    assert "made for 1,281,167 images. For these 1,800: global_batch 32 instead of 1024" in note


@pytest.mark.parametrize("name", OF_A_DATA_SET)
def test_a_recipe_is_as_published_on_the_images_it_was_made_for(name):
    config = load_config(name)
    number = config.data.num_train_images
    assert adapt(config, number, config.data.num_classes, 1) == (config, ())
    assert adapt(config, round(number * 0.97), config.data.num_classes, 1) == (config, ())


def test_options_that_were_given_stay_as_they_are():
    options = {"global_batch": 512, "lr_init": 1.0, "epoch_size": 7, "frozen_views": 0}
    config = load_config("linear_probe", data_path="photos", **options)
    done = complete(config, Facts(num_train_images=1800, num_classes=10), 1).config
    assert {name: done.value(name) for name in options} == options


def test_a_configuration_of_ones_own_is_not_changed(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(load_config("linear_probe").to_toml())
    config = load_config(str(path))
    assert config.origin is None
    assert adapt(config, 1800, 10, 1) == (config, ())


def test_a_larger_data_set_has_as_many_updates():
    config = load_config("cifar10", data_path="others")  # 60 epochs of 50,000
    done = complete(config, Facts(num_train_images=500_000, num_classes=10), 1)
    assert done.config.schedule.epoch_size == 6
    assert done.layout.global_batch == batch_layout(load_config("cifar10"), 1).global_batch


def test_what_counts_updates_keeps_its_share_of_a_smaller_run():
    config = load_config("vit_finetune", data_path="flowers")  # 20,000 updates of 512, warm-up 500
    done = complete(config, Facts(num_train_images=2040, num_classes=102), 1).config
    epochs = 20_000 * 512 / 1_281_167
    assert done.schedule.total_steps == pytest.approx(epochs * 2040 / 32, abs=1)
    assert done.schedule.warmup_steps == pytest.approx(500 * done.schedule.total_steps / 20_000, 1)


def test_an_average_over_a_shorter_run_is_shorter():
    config = load_config("mae_scratch_b16", data_path="photos")
    done = complete(config, Facts(num_train_images=20_000, num_classes=10), 1)
    before, after = 300 * (1_281_167 // 4096), 300 * (20_000 // done.layout.global_batch)
    window = (1 - 0.9999) * before  # of the run, in windows
    assert (1 - done.config.optimizer.ema_decay) * after == pytest.approx(window, rel=0.02)


def test_fewer_images_than_a_batch_make_it_smaller():
    config = load_config("finetune", data_path="photos")
    assert complete(config, Facts(num_train_images=11), 1).layout.global_batch == 8
    assert complete(config, Facts(num_train_images=11), 2).layout.global_batch == 8
    given = load_config("finetune", data_path="photos", batch_size=16)
    assert complete(given, Facts(num_train_images=11), 1).layout.global_batch == 16


@pytest.mark.parametrize("name", recipe_names())
@settings(max_examples=25)
@given(images=st.integers(64, 3_000_000), ranks=st.sampled_from([1, 2, 4, 8]))
def test_any_number_of_images_has_a_run(name, images, ranks):
    config = load_config(name, data_path="photos", checkpoint_path="weights")
    done = complete(config, Facts(num_train_images=images, num_classes=10), ranks)
    assert done.layout.global_batch <= images
    again = complete(config, Facts(saved=done.config, global_batch=done.layout.global_batch), ranks)
    assert again.config == done.config  # as the run began, without looking at its images


def test_a_run_goes_on_as_it_began_when_images_have_come(photo_config, photo_folder):
    done = complete(
        load_config("linear_probe", data_path="a", checkpoint_path="w"),
        Facts(num_train_images=1800, num_classes=10),
        1,
    )
    config = load_config("linear_probe", data_path="b", checkpoint_path="w")
    facts = Facts(saved=done.config, global_batch=32, num_train_images=5000, num_classes=10)
    assert complete(config, facts, 1).config == done.config.derive(data_path="b")


def test_a_run_of_before_recipes_were_fitted_goes_on_as_it_was():
    first = complete(load_config("imagenet", batch_size=8), Facts(), 1).config
    before = first.derive(data_path="mine", num_classes=10)  # and all else the recipe's
    asked = load_config("imagenet", data_path="mine", batch_size=8)
    facts = Facts(saved=before, global_batch=8, num_train_images=1800, num_classes=10)
    done = complete(asked, facts, 1).config
    assert differences_on_resume(before, done) == []
    assert done.data.val_data_path == "/data/ILSVRC2012_val/"
    assert done.schedule.epoch_size == 160
