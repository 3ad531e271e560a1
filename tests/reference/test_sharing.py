"""A folder that `vitbase push` writes, opened by timm and transformers with nothing but their own.

They read its configuration, build the model, prepare real photographs and name the classes; and
what they say is what `vitbase predict` says. Their resize is Pillow's: within 2 of ours in a pixel.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_looks import MODELS, build, images_for
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    dynamic_module_utils,
    pipeline,
)

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.zoo import variant_spec
from vitbase.shipping.publishing.folder import write_folder
from vitbase.weights.origins import modeling_vitbase

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


# Our own folders, by the program in them

PROGRAM = "modeling_vitbase.py"
DEMO = {"stem": "conv", "conv_layers": ((32, 3, 2), (64, 3, 2), (128, 3, 2)), "width": 128,
        "depth": 1, "num_heads": 4, "mlp_dim": 256, "image_size": 28, "in_channels": 1,
        "class_token": False, "pool": "gap"}  # fmt: skip
"""The network of `make demo`, of five classes."""
OWN = {
    **{name: (name, {}) for name in MODELS if name != "hybrid"},
    "demo": ("plain", DEMO),
    "conv_layer": ("conv", {"conv_norm": "layer", "patch_size": 16, "gelu": "erf"}),
    "sincos_class_token": ("sincos", {"class_token": True, "image_size": (32, 48)}),
    "learned_grid": ("registers", {"pos_embed": "learned_grid", "qkv_bias": False}),
}


@pytest.fixture(autouse=True, scope="module")
def modules_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The place where transformers copies programs to before it runs them."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
        patch.setattr(sys, "path", [*sys.path])
        yield


def share_own(folder: Path, name: str, way: str = "squash") -> tuple[Path, Path]:
    """Return weights, and their folder."""
    model, changes = OWN[name]
    weights = write_weights(folder, model, way, **changes)
    made = write_folder(weights, folder / "shared", dialect="vitbase")
    assert made.opened_by == ("transformers", "vitbase")
    assert (made.opened_in or "").startswith("transformers 5")
    return weights, folder / "shared"


def open_own(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        network, told = AutoModelForImageClassification.from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True, **options
        )
    if not options:
        assert not any(told.values()), told
    return network.eval()


@pytest.mark.parametrize("name", OWN)
def test_transformers_opens_what_it_has_no_network_for(name, tmp_path):
    weights, folder = share_own(tmp_path, name)
    network = open_own(folder)
    assert [network.config.id2label[number] for number in range(5)] == list(LABELS)
    assert [network.config.label2id[label] for label in LABELS] == [0, 1, 2, 3, 4]
    images = images_for(ours := vitbase.load_model(weights).model.eval())
    with torch.inference_mode():
        logits, wanted = network(pixel_values=images).logits, ours(images)
        as_tuple = network(images, return_dict=False)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 1e-3  # something that a mistake would change
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], logits)
    again = vitbase.load_model(folder)
    assert again.spec == ours.spec
    assert again.labels == LABELS
    assert again.preprocess == vitbase.load_model(weights).preprocess
    with pytest.raises(ValueError, match="Images should have the shape"):
        network(images[..., :-1])


@pytest.mark.parametrize(("name", "way"), [("demo", "squash"), ("conv", "center")])
def test_its_pipeline_says_what_predict_says(name, way, photographs, tmp_path):
    """The demo's images are grey, and a pipeline reads colours."""
    weights, folder = share_own(tmp_path, name, way)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert (config.model_type, config.num_labels) == ("vitbase", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        ask = pipeline("image-classification", model=str(folder), trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(folder)
    wanted = expected(weights, photographs)
    for path, of_photograph in zip(photographs, wanted, strict=True):
        found = {each["label"]: each["score"] for each in ask(str(path), top_k=5)}
        assert found == pytest.approx(of_photograph, abs=SHARES)
    for mode in ("RGB", "L") if name == "demo" else ("RGB",):
        images = [Image.open(path).convert(mode) for path in photographs]
        with torch.inference_mode():
            logits = open_own(folder)(**processor(images, return_tensors="pt")).logits
        agree(logits.softmax(-1), list(LABELS), wanted)


def test_it_learns_and_is_saved_with_its_program_for_both_to_open(tmp_path):
    weights, folder = share_own(tmp_path, "demo")
    network = open_own(folder, num_labels=3, ignore_mismatched_sizes=True).train()
    images, labels = torch.randn(6, 1, 28, 28), torch.arange(6) % 3
    rate = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = network(pixel_values=images, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        rate.step()
        rate.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    network.save_pretrained(tmp_path / "tuned")
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "tuned")
    assert (tmp_path / "tuned" / PROGRAM).read_bytes() == (folder / PROGRAM).read_bytes()
    again, ours = open_own(tmp_path / "tuned"), vitbase.load_model(tmp_path / "tuned")
    with torch.inference_mode():
        wanted = network.eval()(images).logits
        assert torch.equal(again(images).logits, wanted)
        torch.testing.assert_close(ours.model.eval()(images), wanted, rtol=0, atol=1e-5)
    assert ours.preprocess == vitbase.load_model(weights).preprocess
    assert ours.labels is None


def test_what_such_a_folder_leaves_out_is_as_in_the_table(tmp_path):
    """In the program, and where vitbase reads what transformers has saved."""
    config = modeling_vitbase.VitbaseConfig()
    row = variant_spec("ViT-B_16").to_dict()
    own = [name for name in modeling_vitbase.VitbaseConfig.__annotations__ if name in row]
    assert len(own) == 18
    assert {name: getattr(config, name) for name in own} == {name: row[name] for name in own}
    changes = {"width": 48, "depth": 1, "num_heads": 3, "mlp_dim": 32}
    torch.manual_seed(0)
    model = vitbase.create_model("ViT-B_16", num_classes=2, **changes)
    vitbase.save_weights(model, tmp_path / "first", dialect="vitbase")
    open_own(tmp_path / "first").save_pretrained(tmp_path / "second")
    path = tmp_path / "second" / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    fewer = {name: value for name, value in written.items() if name not in own or name in changes}
    assert len(fewer) < len(written) - 10
    path.write_text(json.dumps(fewer), encoding="utf-8")
    assert vitbase.load_model(tmp_path / "second").spec == model.spec
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = open_own(tmp_path / "second")(images).logits
    torch.testing.assert_close(logits, model.eval()(images), rtol=0, atol=1e-5)


def test_the_program_needs_nothing_but_torch_and_transformers(tmp_path):
    _, folder = share_own(tmp_path, "demo")
    text = (folder / PROGRAM).read_text(encoding="utf-8")
    assert text == Path(str(modeling_vitbase.__file__)).read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert {name.split(".")[0] for name in imported} == {"torch", "transformers"}
    assert len(text.splitlines()) < 200  # it is read before it is trusted


def test_it_is_not_run_unless_somebody_says_so(tmp_path):
    _, folder = share_own(tmp_path, "demo")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
    (folder / PROGRAM).write_text("raise SystemExit('run')", encoding="utf-8")
    assert vitbase.load_model(folder).labels == LABELS  # which reads, and runs nothing


def test_a_program_that_computes_otherwise_makes_no_folder(tmp_path, monkeypatch):
    weights = write_weights(tmp_path, "conv", "squash")
    network = modeling_vitbase.VitbaseForImageClassification
    right = network.pool
    monkeypatch.setattr(network, "pool", lambda self, x_BND: right(self, x_BND) + 0.01)
    with pytest.raises(WeightsError, match=r"shared was not written: transformers .* otherwise"):
        write_folder(weights, tmp_path / "shared")
    monkeypatch.setattr(modeling_vitbase, "Block", lambda config: torch.nn.Identity())
    with pytest.raises(WeightsError, match=r"shared was not written: .* unexpected keys: .*blocks"):
        write_folder(weights, tmp_path / "shared")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_every_kind_of_model_can_be_shared_somehow(tmp_path):
    for name in MODELS:
        folder = tmp_path / name
        folder.mkdir()
        made = write_folder(
            write_weights(folder, name, "squash"), folder / "shared", dialect="vitbase"
        )
        by_program = ["config.json", PROGRAM, "preprocessor_config.json"]
        names = ["README.md", "model.safetensors", *(by_program if name != "hybrid" else [])]
        assert [file for file, _ in made.files] == sorted(names)
        assert (made.opened_by[0] == "transformers") == (name != "hybrid")


def test_without_a_dialect_it_is_the_first_that_has_the_network(tmp_path):
    """timm, then transformers' own, then ours; and which one it is not is said."""
    for name, changes, dialect in (
        ("plain", {}, "timm"),
        ("registers", {"pool": "token_gap", "mlp_dim": 48}, "hf"),
        ("conv", {}, "vitbase"),
        ("hybrid", {}, "vitbase"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        made = write_folder(write_weights(folder, name, "squash", **changes), folder / "shared")
        notes = [note for note in made.notes if "--dialect" in note]
        assert len(notes) == (dialect != "timm")
        for note in notes:
            assert note.startswith(f"The folder is one of --dialect {dialect}: timm cannot express")


@pytest.mark.parametrize(
    "damage",
    [
        {"id2label": ["a"]},
        {"id2label": {"a": "b"}},
        {"width": "wide"},
        {"depth": 0},
        {"conv_layers": 5},
        {"image_size": [28, -28]},
        {"pool": "max"},
        {"variant": None},
    ],
)
def test_a_configuration_that_says_nonsense_is_named(damage, tmp_path):
    """Where transformers has saved the weights, it is all that tells of the network."""
    _, folder = share_own(tmp_path, "demo")
    open_own(folder).save_pretrained(tmp_path / "again")
    path = tmp_path / "again" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | damage), "utf-8")
    with pytest.raises(WeightsError, match=r"model\.safetensors has damaged config\.json: "):
        vitbase.load_model(tmp_path / "again")
