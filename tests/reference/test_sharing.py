"""A folder that `vitbase push` writes, opened by timm and transformers with nothing but their own.

They read its configuration, build the model, prepare real photographs and name the classes; and
what they say is what `vitbase predict` says. Their resize is Pillow's: within 2 of ours in a pixel.
"""

from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_looks import MODELS, build, images_for
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, AutoModelForImageClassification

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.shipping.publishing.folder import write_folder

LABELS = ("cat", "dog, big", "a|b`c*d", "</details>\x1b[2J", "猫")
SHARES = 0.01
"""Difference of probabilities that the resize may make."""

WAYS = {
    "squash": {"crop_mode": "squash", "crop_ratio": 1.0, "interpolation": "bilinear"},
    # 36 pixels, of which 2 are cut off on each side: of an odd number transformers cuts otherwise.
    "center": {"crop_mode": "center", "crop_ratio": 32 / 36, "interpolation": "bicubic"},
}


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    """Two photographs, of 427 x 640 pixels, that scikit-learn brings along."""
    folder = Path(str(files("sklearn.datasets"))) / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


def write_weights(folder: Path, name: str, way: str, **changes: Any) -> Path:
    model = build(name, **changes)
    height, width = model.spec.image_size
    grey = model.spec.in_channels == 1
    preprocess = Preprocess(
        height=height,
        width=width,
        channels=1 if grey else 3,
        mean=(0.3,) if grey else (0.4, 0.45, 0.5),
        std=(0.2,) if grey else (0.2, 0.25, 0.3),
        **WAYS[way],
    )
    vitbase.save_weights(model, folder / "w.safetensors", preprocess=preprocess, labels=LABELS)
    return folder / "w.safetensors"


def expected(weights: Path, photographs: list[Path]) -> list[dict[str, float]]:
    return [dict(found.classes) for found in vitbase.predict(photographs, weights)]


def agree(found: torch.Tensor, names: list[str], expected: list[dict[str, float]]) -> None:
    for shares, wanted in zip(found.tolist(), expected, strict=True):
        assert dict(zip(names, shares, strict=True)) == pytest.approx(wanted, abs=SHARES)
        # The classes are told apart, so that an order of others would be seen.
        assert max(wanted.values()) - min(wanted.values()) > 2 * SHARES


def ask_timm(folder: Path, photographs: list[Path], mode: str) -> tuple[Any, torch.Tensor]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = torch.stack([transform(Image.open(path).convert(mode)) for path in photographs])
    with torch.inference_mode():
        return model, model(images).softmax(-1)


def ask_transformers(folder: Path, photographs: list[Path], mode: str) -> tuple[Any, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(path).convert(mode) for path in photographs]
    with torch.inference_mode():
        return model, model(**processor(images, return_tensors="pt")).logits.softmax(-1)


TIMM = (
    *(("plain", way, {}) for way in WAYS),
    ("gap", "center", {"gelu": "erf"}),
    ("gap_norm", "squash", {}),
    ("no_bias", "center", {}),
    ("registers", "center", {}),
    ("rectangular", "squash", {}),
    ("rectangular", "center", {}),
    ("sincos", "center", {"representation_size": None}),
    ("plain", "center", {"in_channels": 1}),
    ("hybrid", "center", {"resnet_layers": (3, 4, 9), "resnet_width_factor": 1.0, "depth": 1,
                          "resnet_form": "timm"}),
)  # fmt: skip

SLOW = ("gap", "gap_norm", "no_bias", "sincos", "hybrid")
"""Of these; every kind is opened by timm in test_agreement.py, too."""


@pytest.mark.parametrize(
    ("name", "way", "changes"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in SLOW)) for case in TIMM],
)
def test_timm_opens_it_and_so_does_transformers_by_timm(name, way, changes, photographs, tmp_path):
    weights = write_weights(tmp_path, name, way, **changes)
    made = write_folder(weights, tmp_path / "shared")
    assert made.opened_by == ("timm", "transformers", "vitbase")
    wanted = expected(weights, photographs)
    mode = "L" if changes.get("in_channels") == 1 else "RGB"
    model, shares = ask_timm(tmp_path / "shared", photographs, mode)
    names = list(model.pretrained_cfg["label_names"])
    assert names == list(LABELS)
    agree(shares, names, wanted)
    images = images_for(ours := vitbase.load_model(weights).model.eval())
    with torch.inference_mode():
        torch.testing.assert_close(model(images), ours(images), rtol=0, atol=1e-5)
    wrapped, shares = ask_transformers(tmp_path / "shared", photographs, mode)
    agree(shares, [wrapped.config.id2label[number] for number in range(5)], wanted)


TRANSFORMERS = (
    *(("plain", way, {}) for way in WAYS),
    ("rectangular", "squash", {}),
    ("registers", "center", {"mlp_dim": 48, "pool": "token_gap"}),
    ("no_bias", "squash", {}),
    ("plain", "squash", {"in_channels": 1}),
)


@pytest.mark.parametrize(("name", "way", "changes"), TRANSFORMERS)
def test_transformers_opens_its_own(name, way, changes, photographs, tmp_path):
    weights = write_weights(tmp_path, name, way, **changes)
    made = write_folder(weights, tmp_path / "shared", dialect="transformers")
    assert made.opened_by == ("transformers", "vitbase")
    mode = "L" if changes.get("in_channels") == 1 else "RGB"
    model, shares = ask_transformers(tmp_path / "shared", photographs, mode)
    assert not model.config.model_type.startswith("timm")
    names = [model.config.id2label[number] for number in range(5)]
    assert names == list(LABELS)
    assert [model.config.label2id[label] for label in LABELS] == [0, 1, 2, 3, 4]
    agree(shares, names, expected(weights, photographs))
    images = images_for(ours := vitbase.load_model(weights).model.eval())
    with torch.inference_mode():
        torch.testing.assert_close(
            model(pixel_values=images).logits, ours(images), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("dialect", ["timm", "transformers", "vitbase"])
def test_vitbase_opens_it_again(dialect, photographs, tmp_path):
    weights = write_weights(tmp_path, "plain", "squash")
    write_folder(weights, tmp_path / "shared", dialect=dialect)
    assert expected(tmp_path / "shared", photographs) == [
        pytest.approx(wanted, abs=1e-6) for wanted in expected(weights, photographs)
    ]
    assert vitbase.load_model(tmp_path / "shared").labels == LABELS


@pytest.mark.parametrize(
    ("dialect", "name", "what", "other"),
    [
        ("transformers", "gap", "hf cannot express testing with", "timm or vitbase"),
        ("transformers", "registers", "layer_scale_init None", "timm or vitbase"),
        ("timm", "conv", "timm cannot express testing with stem 'conv'", "vitbase"),
        ("timm", "token_gap", "pool 'token_gap'", "vitbase"),
    ],
)
def test_what_cannot_be_expressed_is_refused_and_who_can_is_named(
    dialect, name, what, other, tmp_path
):
    changes = {"layer_scale_init": None} if dialect == "transformers" else {}
    weights = write_weights(tmp_path, name, "squash", **changes)
    with pytest.raises(WeightsError) as caught:
        write_folder(weights, tmp_path / "shared", dialect=dialect)
    assert what in str(caught.value)
    assert str(caught.value).endswith(f"It can be shared with --dialect {other}.")
    assert not (tmp_path / "shared").exists()


def test_every_kind_of_model_can_be_shared_somehow(tmp_path):
    for name in MODELS:
        folder = tmp_path / name
        folder.mkdir()
        made = write_folder(
            write_weights(folder, name, "squash"), folder / "shared", dialect="vitbase"
        )
        assert [file for file, _ in made.files] == ["README.md", "model.safetensors"]
