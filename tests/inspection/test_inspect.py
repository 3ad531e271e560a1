"""`vitbase inspect` and `vitbase.inspect`: what is written, what is left out, what is refused."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from made_images import bomb, encode, photo
from made_looks import MODELS, build, images_for, write_photos, write_weights
from PIL import Image

import vitbase
from vitbase.errors import ConfigError, DataError, WeightsError
from vitbase.inspection.kinds import KINDS
from vitbase.weights.save import save_weights

OF_WEIGHTS = ["filters", "positions"]
UNASKED = "gradients"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of the models, by name."""
    folder = tmp_path_factory.mktemp("weights")
    return {name: write_weights(folder, name) for name in MODELS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("images") / "photos")


def checked_picture(content: bytes) -> Image.Image:
    """Open a PNG, which is not blank."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    assert min(image.size) >= 150
    assert max(image.size) <= 2500
    assert len(image.getcolors(1 << 24)) > 20
    return image


def test_the_command_writes_figures_arrays_and_a_list(vitbase_command, weights, photos, tmp_path):
    out = tmp_path / "looked"
    image = photos / "1.png"
    code, said, _ = vitbase_command("inspect", weights["registers"], image, "--out", out)
    assert code == 0, said
    listed = json.loads((out / "inspect.json").read_text())
    made = [kind for kind in KINDS if kind != UNASKED]
    assert [*listed["kinds"]] == made
    expected = {"inspect.json", *(f"{kind}.npz" for kind in made)}
    figures = [name for kind in listed["kinds"].values() for name in kind["figures"]]
    assert {"attention-01", "norms-by-block", "gradcam"} <= {*figures}
    expected |= {f"{name}.{form}" for name in figures for form in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == expected
    for path in out.glob("*.png"):
        checked_picture(path.read_bytes())
    for path in out.glob("*.svg"):
        assert path.read_bytes().startswith(b"<?xml")
    for kind, told in listed["kinds"].items():
        with np.load(out / told["arrays"]) as stored:
            shapes = {name: [*stored[name].shape] for name in stored.files}
        assert shapes == told["shapes"], kind
    (told,) = listed["images"]
    assert (told["number"], told["image"]) == (1, str(image))
    assert 0 < told["probability"] < 1
    assert listed["model"]["registers"] == 4
    assert "not made unasked" in said
    assert f"written to {out}" in said


def test_without_images_the_weights_alone(vitbase_command, weights, tmp_path):
    out = tmp_path / "looked"
    code, said, _ = vitbase_command("inspect", weights["hybrid"], "--out", out, "--json")
    assert code == 0
    told = json.loads(said)
    assert [*told["kinds"]] == OF_WEIGHTS
    assert told["kinds"]["filters"]["shapes"] == {"filters": [32, 7, 7, 3]}
    assert told["notes"][0].startswith("not made without images: distance, attention")
    assert {*told["files"]} == {path.name for path in out.iterdir()}


@pytest.mark.parametrize("name", ["rectangular", "gap", "hybrid"])
def test_every_kind_of_every_model_is_drawn(name, weights, photos):
    found = vitbase.inspect(weights[name], photos / "1.png", figures=["all"], theme="dark")
    assert [*found.arrays] == [*KINDS]
    spec = found.spec
    assert found.arrays["gradients"]["attributions"].shape == (1, *spec.image_size, 3)
    for figures in found.figures.values():
        assert figures
    drawn = found.figures["rollout"]["rollout"]
    picture = checked_picture(drawn._repr_png_())
    assert picture.getpixel((0, 0)) == (0x16, 0x18, 0x1C)
    assert found.overlay("rollout", 0, (33, 77)).shape == (33, 77, 3)
    assert found.overlay("attention").shape == (*spec.image_size, 3)


def test_a_loaded_model_is_looked_at_and_left_as_it_was(weights, photos):
    loaded = vitbase.load_model(weights["plain"])
    loaded.model.train()
    found = vitbase.inspect(loaded, photos / "0.png", figures=["gradcam"], target=3)
    assert loaded.model.training
    assert found.arrays["gradcam"]["classes"].tolist() == [3]
    assert [*found.arrays] == ["gradcam"]
    with pytest.raises(ConfigError, match="give them to load_model"):
        vitbase.inspect(loaded, image_size=48)
    again = vitbase.inspect(weights["plain"], photos / "0.png", figures=["gradcam"])
    classes = again.arrays["gradcam"]["classes"]
    with torch.no_grad():
        pixels = torch.from_numpy(again.images[0].pixels)[None]
        mean, std = (
            torch.tensor(value) for value in (loaded.preprocess.mean, loaded.preprocess.std)
        )
        logits = loaded.model.eval()(((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float())
    assert classes.tolist() == logits.argmax(1).tolist()


def test_at_another_size_and_of_another_layer_and_head(vitbase_command, weights, photos, tmp_path):
    words = ("--image_height", 48, "--image_width", 32, "--layer", 1, "--head", 2)
    words += ("--figures", "attention")
    code, said, _ = vitbase_command(
        "inspect", weights["plain"], photos, "--out", tmp_path / "o", *words, "--json"
    )
    assert code == 0
    told = json.loads(said)
    assert (told["layer"], told["head"]) == (1, 2)
    assert told["kinds"]["attention"]["shapes"]["maps"] == [2, 3, 3, 6, 4]


def test_weights_of_another_origin_open(tmp_path, photos):
    model = build("registers", num_classes=0, num_registers=4, image_size=56, patch_size=14)
    model.spec  # noqa: B018
    path = tmp_path / "vit_dinov2.pth"
    save_weights(model, path, dialect="dinov2")
    found = vitbase.inspect(path, photos, num_heads=3, image_size=56)
    assert found.spec.num_registers == 4
    assert found.spec.grid_hw == (4, 4)
    assert "gradcam" not in found.arrays
    assert any("no head: gradcam, gradients" in note for note in found.notes)
    assert found.arrays["norms"]["prefix"].shape == (2, 3, 5)


def test_what_needs_a_head_says_so(vitbase_command, photos, tmp_path):
    path = write_weights(tmp_path, "plain", num_classes=0)
    for words in (("--figures", "gradcam"), ("--target", "cat")):
        code, _, error = vitbase_command("inspect", path, photos, "--out", tmp_path / "o", *words)
        assert code == 2
        assert "has no head" in error
    assert not (tmp_path / "o").exists()
    assert [*vitbase.inspect(path, photos, figures=["all"]).arrays][-1] == "norms"
    with pytest.raises(WeightsError, match="has no head"):
        vitbase.inspect(path, photos, figures=["gradients"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--layer", 4), "There is no layer 4: testing has 3, numbered from 1."),
        (("--layer", 0), "There is no layer 0"),
        (("--head", 9), "There is no head 9: testing has 3, numbered from 1."),
        (("--target", "5"), "There is no class '5': there are 5, numbered from 0."),
        (("--target", "-1"), "There is no class '-1'"),
        (("--target", "9" * 5000), "There is no class"),
        (("--limit", 0), "Option 'limit' should be at least 1."),
        (("--figures", "atention"), "Did you mean 'attention'?"),
        (("--theme", "blue"), "'light' or 'dark'"),
        (("--image_size", 30), "not made of 8x8 patches"),
        (("--hed", 1), "Unknown option '--hed'. Did you mean 'head'?"),
    ],
)
def test_what_there_is_not_is_said(vitbase_command, weights, photos, tmp_path, words, says):
    out = tmp_path / "o"
    code, _, error = vitbase_command("inspect", weights["plain"], photos, "--out", out, *words)
    assert code == 2
    assert says in error
    assert not out.exists()


def test_a_class_is_found_by_name(tmp_path, photos):
    path = tmp_path / "named.safetensors"
    save_weights(build(), path, labels=("cat", "dog", "1", "bird", "horse"))
    found = vitbase.inspect(path, photos, figures=["gradcam"], target="bird")
    assert found.arrays["gradcam"]["classes"].tolist() == [3, 3]
    assert found.images[0].target is not None
    assert found.images[0].target[0] == "bird"
    by_name = vitbase.inspect(path, photos, figures=["gradcam"], target="1")
    assert by_name.arrays["gradcam"]["classes"].tolist() == [2, 2]  # a name goes before a number
    with pytest.raises(ConfigError, match=r"no class 'hose'.*Did you mean 'horse'\?"):
        vitbase.inspect(path, photos, target="hose")


def test_images_that_are_not_there_or_not_readable(vitbase_command, weights, photos, tmp_path):
    out = tmp_path / "o"

    def run(*images):
        return vitbase_command(
            "inspect", weights["plain"], *images, "--out", out, "--figures", "rollout"
        )

    assert run(photos / "missing.png")[0] == 2
    assert "does not exist" in run(photos / "missing.png")[2]
    (tmp_path / "empty").mkdir()
    assert "no images in the folder" in run(tmp_path / "empty")[2]
    bad, large, fifo = tmp_path / "bad.png", tmp_path / "bomb.png", tmp_path / "fifo.png"
    bad.write_bytes(b"no picture")
    large.write_bytes(bomb())
    os.mkfifo(fifo)
    assert "cannot be read" in run(bad)[2]
    assert "None of 3 images can be read" in run(bad, large, fifo)[2]
    assert not out.exists()
    code, _, error = run(bad, photos / "0.png", fifo)
    assert code == 3
    assert "2 of 3 images could not be read." in error
    listed = json.loads((out / "inspect.json").read_text())
    assert [each["image"] for each in listed["unreadable"]] == [str(bad), str(fifo)]
    assert [each["image"] for each in listed["images"]] == [str(photos / "0.png")]


def test_images_beyond_the_limit_are_counted(vitbase_command, weights, photos, tmp_path):
    code, said, _ = vitbase_command(
        "inspect",
        weights["plain"],
        photos,
        photos,
        "--out",
        tmp_path / "o",
        *("--limit", 3, "--figures", "distance"),
    )
    assert code == 0
    assert "1 of 4 images left out: --limit 3" in said
    assert json.loads((tmp_path / "o" / "inspect.json").read_text())["left_out"] == 1


def test_a_folder_with_content_is_left_alone(vitbase_command, weights, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out, says in ((tmp_path, "not empty"), (tmp_path / "mine.txt", "no folder")):
        code, _, error = vitbase_command("inspect", weights["plain"], "--out", out)
        assert code == 2
        assert says in error
    with pytest.raises(DataError, match="not empty"):
        vitbase.inspect(weights["plain"], out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    code, _, error = vitbase_command("inspect", weights["plain"])
    assert code == 2
    assert "--out FOLDER" in error


def test_names_of_images_stay_inside_the_folder_and_move_no_cursor(
    vitbase_command, weights, tmp_path
):
    folder = tmp_path / "in"
    folder.mkdir()
    picture = encode(photo(40, 40), "PNG")
    names = ["%2e%2e%2f..%2fetc.png", "\x1b[2J\n.png", "$x_1$ <script>.png", "é" * 120 + ".png"]
    names.append(os.fsdecode(b"\xff\xfe.png"))
    for name in names:
        (folder / name).write_bytes(picture)
    out = tmp_path / "out"
    code, said, error = vitbase_command(
        "inspect", weights["plain"], folder, "--out", out, "--figures", "attention", "--head", 1
    )
    assert code == 0, error
    assert "\x1b" not in said + error
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "in", "out"}
    numbered = {f"attention-{n:02}.{form}" for n in range(1, 6) for form in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == {
        *numbered,
        "attention.npz",
        "inspect.json",
    }
    for path in out.glob("*.svg"):
        assert b"<script" not in path.read_bytes()
    listed = json.loads((out / "inspect.json").read_text())
    assert len(listed["images"]) == 5


def test_without_matplotlib_the_arrays_are_written(
    vitbase_command, weights, photos, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said, _ = vitbase_command("inspect", weights["plain"], photos, "--out", tmp_path / "o")
    assert code == 0
    assert "pip install 'vitbase[plots]'" in said
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert {"rollout.npz", "inspect.json"} <= names
    assert not any(name.endswith((".png", ".svg")) for name in names)
    found = vitbase.inspect(weights["plain"], photos, figures=["rollout"])
    assert found.overlay("rollout").shape == (32, 32, 3)
    with pytest.raises(ConfigError, match="matplotlib"):
        _ = found.figures


def test_overlays_that_there_are_not(weights, photos):
    found = vitbase.inspect(weights["plain"], photos, figures=["rollout", "norms"])
    with pytest.raises(ConfigError, match="No map 'norms' was made; there are rollout"):
        found.overlay("norms")
    with pytest.raises(ConfigError, match="There is no image 2"):
        found.overlay("rollout", 2)
    with pytest.raises(ConfigError, match="There is no figure 'rolout'"):
        vitbase.inspect(weights["plain"], photos, figures=["rolout"])
    with pytest.raises(ConfigError, match="needs images"):
        vitbase.inspect(weights["plain"], figures=["rollout"])


def test_grey_images_are_drawn(tmp_path, photos):
    path = write_weights(tmp_path, "conv", in_channels=1)
    kinds = ["filters", "gradcam", "attention"]
    found = vitbase.inspect(path, photos / "0.png", figures=kinds, head=1)
    assert found.arrays["filters"]["filters"].shape == (8, 3, 3, 1)
    for name in kinds:
        for drawn in found.figures[name].values():
            checked_picture(drawn.to_png())


def test_images_are_the_same_alone_and_in_company(weights, photos):
    """A batch changes nothing that is told of an image."""
    together = vitbase.inspect(weights["registers"], photos, figures=["attention", "rollout"])
    alone = vitbase.inspect(
        weights["registers"], photos / "1.png", figures=["attention", "rollout"]
    )
    for kind in ("attention", "rollout"):
        np.testing.assert_allclose(
            together.arrays[kind]["maps"][1], alone.arrays[kind]["maps"][0], rtol=1e-4, atol=1e-6
        )
    assert images_for(build()).shape == (2, 3, 32, 32)
