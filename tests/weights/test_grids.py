"""Position embeddings tell how many patches there were, and not always in which grid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from commands import run_command

import vitbase
from vitbase.errors import WeightsError
from vitbase.model import VisionTransformer, ViTSpec
from vitbase.weights.load import read_preprocess

SIZES = {"patch_size": 8, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "num_classes": 3}
FILES = {"mindspore": "w.ckpt", "google": "w.npz", "timm": "w.pth"}
every_dialect = pytest.mark.parametrize("dialect", FILES)


def save(folder: Path, dialect: str, image_size: tuple[int, int]) -> tuple[VisionTransformer, Path]:
    gelu = "erf" if dialect == "timm" else "tanh"
    model = VisionTransformer(ViTSpec(name="", **SIZES, image_size=image_size, gelu=gelu))
    path = folder / FILES[dialect]
    vitbase.save_weights(model, path, dialect=dialect)
    return model, path


@every_dialect
def test_a_grid_that_is_no_square_is_that_of_the_image(tmp_path: Path, dialect: str) -> None:
    model, path = save(tmp_path, dialect, (16, 40))  # 2 x 5 patches
    with pytest.raises(WeightsError, match=r"11 positions, which make no grid.*--image_height"):
        vitbase.load_model(path, num_heads=2)
    loaded = vitbase.load_model(path, num_heads=2, image_size=(16, 40))
    assert torch.equal(loaded.model.pos_embed, model.pos_embed)
    assert loaded.report.resized == ()
    assert read_preprocess(path, num_heads=2, image_size=(16, 40)).width == 40


@pytest.mark.parametrize("dialect", ["mindspore", "google"])
def test_a_class_token_has_a_position_where_the_origin_gives_it_one(
    tmp_path: Path, dialect: str
) -> None:
    model, path = save(tmp_path, dialect, (24, 40))  # with the class token as many as 4 x 4
    with pytest.raises(WeightsError, match="16 positions, which make no grid"):
        vitbase.load_model(path, num_heads=2)
    loaded = vitbase.load_model(path, num_heads=2, image_size=(24, 40))
    assert loaded.spec == model.spec or loaded.spec.pos_embed == "learned"
    assert torch.equal(loaded.model.pos_embed, model.pos_embed)


@every_dialect
def test_of_two_grids_of_as_many_patches_none_is_guessed(tmp_path: Path, dialect: str) -> None:
    model, path = save(tmp_path, dialect, (32, 32))
    with pytest.raises(WeightsError, match=r"grid of 4x4 or of 2x8 patches.*trained_size"):
        vitbase.load_model(path, num_heads=2, image_size=(16, 64))
    loaded = vitbase.load_model(path, num_heads=2, image_size=(16, 64), trained_size=(32, 32))
    assert loaded.report.resized == ("pos_embed",)
    loaded = vitbase.load_model(path, num_heads=2, trained_size=(16, 64))
    assert loaded.spec.image_size == (16, 64)
    assert torch.equal(loaded.model.pos_embed, model.pos_embed)
    with pytest.raises(WeightsError, match="no grid of patches of that size"):
        vitbase.load_model(path, num_heads=2, trained_size=(48, 48))


def test_of_timm_a_square_of_patches_alone_is_asked_about(tmp_path: Path) -> None:
    _, path = save(tmp_path, "timm", (24, 40))
    assert vitbase.load_model(path, num_heads=2).spec.pos_embed == "learned_grid"
    with pytest.raises(WeightsError, match="of 4x4 or of 3x5 patches"):
        vitbase.load_model(path, num_heads=2, image_size=(24, 40))


def test_preprocessing_is_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    _, path = save(tmp_path, "timm", (32, 32))
    loaded = vitbase.load_model(path, num_heads=2, image_size=(40, 48))
    assert (loaded.preprocess.height, loaded.preprocess.width) == (40, 48)


def test_commands_are_told_the_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_folder: Path
) -> None:
    run = partial(run_command, capsys)
    model, path = save(tmp_path, "timm", (24, 40))
    size = ("--image_height", 24, "--image_width", 40)
    out = tmp_path / "w.safetensors"
    code, shown, _ = run("weights", "show", path, "--num_heads", 2, *size)
    assert code == 0
    assert "24x40 px, 3x5 patches of 8" in shown
    words = ("weights", "convert", path, out, "--dialect", "vitbase", "--num_heads", 2)
    for given, message in (
        (("--image_height", 24), "Give --image_width too."),
        (("--image_height", 0, "--image_width", 40), "'image_height' should be at least 1"),
    ):
        code, _, err = run(*words, *given)
        assert code == 2
        assert message in err
    assert run(*words, *size)[0] == 0
    loaded = vitbase.load_model(out)
    assert loaded.spec.image_size == (24, 40)
    assert torch.equal(loaded.model.pos_embed, model.pos_embed)
    image = next(photo_folder.rglob("*.*"))
    words = ("predict", image, "--checkpoint_path", out, "--image_height", 32)
    assert run(*words, "--image_width", 48)[0] == 0
    assert run(*words)[0] == 2


def test_a_run_starts_from_weights_of_a_grid_that_is_no_square(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = partial(run_command, capsys)
    _, path = save(tmp_path, "mindspore", (16, 40))
    weights = ("--checkpoint_path", path, "--num_heads", 2, "--device_target", "cpu")
    size = ("--image_height", 16, "--image_width", 40)
    train = ("--data_path", photo_folder, "--output_dir", tmp_path / "run", "--epoch_size", 1)
    few = ("--batch_size", 8, "--warmup_epochs", 0)
    code, _, err = run("train", "finetune", *weights, *train, *few)
    assert code == 2
    assert "make no grid of patches" in err
    assert run("train", "finetune", *weights, *train, *few, *size)[0] == 0
    assert run("eval", "finetune", *weights, "--val_data_path", photo_folder, *size)[0] == 0
