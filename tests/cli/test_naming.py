"""Errors name what somebody gave; of anything else they tell whose it is."""

from __future__ import annotations

import pytest
from commands import run_command
from made_runs import TINY

import vitbase

NOT_THERE = "there is no such folder. Give the folder that holds the images"
WEIGHTS = "does not exist. Give a run folder, one of its checkpoints, or a weights file."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval imagenet --checkpoint_path x", f"checkpoint_path x {WEIGHTS}"),
        ("weights show x", f"x {WEIGHTS}"),
        ("weights convert x y.npz --dialect google", f"x {WEIGHTS}"),
        ("data check x", f"x: {NOT_THERE}."),
        (
            "data check embedded --val_data_path x",
            f"--val_data_path x: {NOT_THERE}: --val_data_path FOLDER.",
        ),
        ("data pack x y", f"x: {NOT_THERE}."),
        (
            "train imagenet",
            f"--data_path /data/ILSVRC2012_train/ (of recipe imagenet): {NOT_THERE}: --data_path "
            "FOLDER.",
        ),
        ("train imagenet --data_path x", f"--data_path x: {NOT_THERE}: --data_path FOLDER."),
        (
            "explain --warmup_epochs 30",
            "Options do not fit together: warmup_epochs 30 should be less than epoch_size 20 (of "
            "recipe fashion, as none was named).",
        ),
        (
            "train deit3_b16 --loss softmax",
            "Options do not fit together: binary_targets True (of recipe deit3_b16) belongs to "
            "loss sigmoid.",
        ),
    ],
)
def test_an_error_names_what_was_given_or_whose_it_is(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command(capsys, *words.split())
    assert (code, err.splitlines()[-1]) == (2, f"vitbase: error: {said}")


def test_a_path_of_the_run_that_is_evaluated_is_told_as_such(tiny_config, capsys):
    config = tiny_config(num_train_images=None, num_val_images=None)
    vitbase.train(config)
    saved = config.output_dir / "config.toml"
    saved.write_text(saved.read_text().replace(config.data.data_path, "/gone"))
    capsys.readouterr()
    code, _, err = run_command(capsys, "eval", "--checkpoint_path", config.output_dir)
    assert code == 2
    assert err == (
        f"vitbase: error: --data_path /gone (of {saved}): {NOT_THERE}: --data_path FOLDER.\n"
    )


def test_of_two_options_that_differ_the_one_of_the_recipe_is_told(tiny_config, capsys):
    config = tiny_config(weight_decay=0.1)
    vitbase.train(config)
    capsys.readouterr()
    given = {**TINY, "seed": 3, "data_path": config.data.data_path, "output_dir": config.output_dir}
    words = [f"--{option}={value}" for option, value in given.items()]
    code, _, err = run_command(capsys, "train", "fashion", *words)
    assert code == 2
    assert "  seed: the run has 0, asked for 3\n" in err
    assert "  weight_decay: the run has 0.1, asked for 0.05 (of recipe fashion)\n" in err
