"""What people in a hurry type, and should not have to think about."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import run_command
from made_runs import TINY

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import ConfigError


def words_of(**options: object) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def test_a_shorter_run_has_a_shorter_warm_up_and_says_so(capsys):
    config = load_config("fashion", epoch_size=1)  # the recipe: 2.4 of 24 epochs
    assert config.schedule.warmup_epochs == 0.1
    assert "warmup_epochs 2.4 of the recipe becomes 0.1" in capsys.readouterr().err
    code, out, err = run_command(capsys, "explain", "fashion", "--epoch_size", 1)
    assert code == 0
    assert "warm-up 0.1 epochs" in out
    assert err.count("becomes 0.1, in proportion") == 1


@pytest.mark.parametrize(
    ("recipe", "options", "steps"),
    [
        ("plain_vit_s16", {"epoch_size": 3}, 333),  # 10,000 of 90 epochs would outlast the run
        ("vit_finetune", {"total_steps": 400}, 10),  # 500 of 20,000
        ("plain_vit_s16", {"total_steps": 5000}, 500),
        ("plain_vit_s16", {"epoch_size": 60}, 10_000),  # it fits
    ],
)
def test_a_warm_up_in_updates_is_shortened_only_where_it_does_not_fit(recipe, options, steps):
    assert load_config(recipe, **options).schedule.warmup_steps == steps


def test_two_options_that_were_given_may_contradict_each_other():
    with pytest.raises(ConfigError, match=r"warmup_epochs 2\.4 should be less than epoch_size 1"):
        load_config("fashion", epoch_size=1, warmup_epochs=2.4)


def test_a_mistake_in_the_length_is_named_as_such():
    with pytest.raises(ConfigError, match="epoch_size"):
        load_config("fashion", epoch_size="soon")


def test_one_side_stands_for_both(capsys):
    config = load_config("imagenet", image_size=112)
    assert config.data.image_size == (112, 112)
    assert load_config("imagenet", image_size=112, image_width=224).data.image_size == (112, 224)
    code, out, _ = run_command(capsys, "explain", "imagenet", "--image_size", 112)
    assert code == 0
    assert "112x112x3 px" in out


def test_a_run_that_never_reached_a_checkpoint_does_not_block_its_folder(tiny_config, monkeypatch):
    from vitbase.training.step import Learner

    def fail(*_, **__):
        raise KeyboardInterrupt

    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", fail)
        with pytest.raises(KeyboardInterrupt):
            vitbase.train(config)
    assert (config.output_dir / "config.toml").is_file()
    other = config.replace(seed=5, num_classes=None)
    assert vitbase.train(other).updates == 12
    with pytest.raises(ConfigError, match="holds a run with other options"):
        vitbase.train(config)


def test_training_goes_on_when_nobody_reads_any_more(tiny_idx, tmp_path):
    run = tmp_path / "run"
    options = {**TINY, "log_every_steps": 1, "data_path": tiny_idx, "output_dir": run}
    command = [sys.executable, "-m", "vitbase", "train", "fashion", *words_of(**options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        assert process.wait(timeout=120) == 0, process.stderr.read()
        assert process.stderr.read() == b""
    assert (run / "checkpoints" / "train_vit_fashion-2_6").is_dir()


def test_help_of_weights_is_help(capsys):
    for words in (["weights", "--help"], ["weights", "-h"]):
        code, out, err = run_command(capsys, *words)
        assert (code, err) == (0, "")
        assert "vitbase weights convert IN OUT" in out


def test_the_five_best_of_few_classes_say_nothing(photo_config, capsys):
    vitbase.train(photo_config())  # of three classes
    out = capsys.readouterr().out
    assert "top-1" in out
    assert "top-5" not in out
