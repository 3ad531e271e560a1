"""What somebody gave, and what is only a recipe's: commands tell the two apart."""

from __future__ import annotations

import pytest
from commands import run_command

from vitbase.config.config import load_config
from vitbase.config.shipped import recipe_names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "imagenet"],
            "--data_path /data/ILSVRC2012_train/ (of recipe imagenet): there is no",
        ),
        (["eval"], "156_10009.ckpt (of recipe imagenet, as none was named) does not exist"),
        (["train", "imagenet", "--pre_trained", "True"], ".ckpt (of recipe imagenet) does not"),
    ],
)
def test_an_error_about_a_recipes_own_value_says_whose_it_is(
    capsys, cache, tmp_path, monkeypatch, words, told
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert told in err


def test_an_error_about_a_given_value_speaks_of_no_recipe(capsys, tmp_path):
    code, _, err = run_command(capsys, "train", "imagenet", "--data_path", tmp_path / "no")
    assert code == 2
    assert f"--data_path {tmp_path / 'no'}: there is no such folder" in err
    assert "of recipe" not in err.splitlines()[-1]


def test_a_recipe_that_starts_from_weights_asks_for_them(capsys, photo_folder):
    code, _, err = run_command(capsys, "train", "linear_probe", "--data_path", photo_folder)
    assert code == 2
    assert "Recipe linear_probe starts from weights: give --checkpoint_path" in err
    assert "pre_trained is True" not in err


def test_a_recipes_evaluation_images_are_not_those_of_another_folder(capsys, photo_folder):
    config = load_config("imagenet", data_path=str(photo_folder))
    assert config.data.val_data_path is None
    assert capsys.readouterr().err.count("val_data_path /data/ILSVRC2012_val/ of recipe") == 1
    given = load_config("imagenet", data_path=str(photo_folder), val_data_path="mine")
    assert given.data.val_data_path == "mine"
    assert capsys.readouterr().err == ""


OWN = {"model": "ViT-Ti_16", "image_size": 32, "pre_trained": False, "num_classes": 3}


@pytest.mark.parametrize("recipe", recipe_names())
def test_explain_counts_the_folder_it_is_given(recipe, capsys, photo_folder):
    options = [word for name, value in OWN.items() for word in (f"--{name}", value)]
    code, out, _ = run_command(
        capsys, "explain", recipe, "--on", "none", "--data_path", photo_folder, *options
    )
    assert code == 0
    assert f"counted in {photo_folder}" in out


def test_explain_knows_a_recipes_images_where_the_given_folder_is_elsewhere(capsys):
    code, out, _ = run_command(
        capsys, "explain", "imagenet", "--on=none", "--data_path", "/cluster/train"
    )
    assert code == 0
    assert "1,281,167" in out
    assert "those of the recipe, as /cluster/train is not here" in out
