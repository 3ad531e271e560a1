"""Every dialect, there and back: random architectures keep every bit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import vitbase
from vitbase.errors import ConfigError, WeightsError
from vitbase.model.hybrid import resnet_stride
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import build_model
from vitbase.weights.files.open import open_tensors
from vitbase.weights.files.tensors import FileTensor
from vitbase.weights.find import find_weights
from vitbase.weights.load import load_model
from vitbase.weights.origins.dialect import Dialect
from vitbase.weights.origins.registry import DIALECT_NAMES, DIALECTS
from vitbase.weights.save import expressible_state, save_weights

# What a table's architectures are drawn from, where it says no more.
CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": ("patch", "resnet"),
    "resnet_form": ("jax", "timm"),
    "resnet_layers": ((1,), (1, 2)),
    "class_token": (True, False),
    "pool": ("token", "gap", "gap_norm", "token_gap"),
    "num_registers": (0, 3),
    "representation_size": (None, 7),
    "layer_scale_init": (None, 1e-5),
    "pos_embed": ("learned", "learned_grid"),
    "gelu": ("tanh", "erf"),
    "qkv_bias": (True, False),
}


@st.composite
def architectures(draw: st.DrawFn, table: Dialect) -> ViTSpec | None:
    """Draw an architecture that a table can express, or None."""
    values = {
        field: draw(st.sampled_from([c for c in choices if c in table.limits.get(field, choices)]))
        for field, choices in CHOICES.items()
        if field != "resnet_layers"
    }
    stride = 1
    if values["stem"] == "resnet":
        units = draw(st.sampled_from(table.limits.get("resnet_layers", CHOICES["resnet_layers"])))
        values |= {"resnet_layers": units, "resnet_width_factor": 0.5 if units else 1.0}
        stride = resnet_stride(units)
    heads, mlp_ratio = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = heads * draw(st.integers(2, 4))
    patch = stride * draw(st.integers(1, 3))
    try:
        spec = ViTSpec(
            name="",
            patch_size=patch,
            image_size=(draw(st.integers(1, 4)) * patch, draw(st.integers(1, 4)) * patch),
            in_channels=draw(st.sampled_from([1, 3])),
            width=width,
            depth=draw(
                st.sampled_from([1, 2, 11])
            ),  # two digits: no order of names is that of text
            num_heads=heads,
            mlp_dim=width * mlp_ratio,
            num_classes=draw(st.sampled_from([0, 1, 5])),
            norm_eps=table.norm_eps,
            **values,
        )
    except ConfigError:
        return None  # what does not go together, such as a class token's pool without the token
    return None if table.problems(spec) else spec


PLACES = [
    pytest.param(table, suffix, id=f"{table.name}-{number}-{suffix or 'folder'}")
    for number, table in enumerate(DIALECTS)
    for suffix in table.suffixes
    if suffix not in (".pt", ".bin")  # are as .pth
]


@pytest.mark.parametrize(("table", "suffix"), PLACES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_weights_go_there_and_back(table: Dialect, suffix: str, data: st.DataObject) -> None:
    spec = data.draw(architectures(table).filter(lambda spec: spec is not None))
    assert spec is not None
    # timm's files alone do not tell an average beside a class token; its folders do.
    assume(
        not (table.name == "timm" and suffix == ".pth" and spec.class_token and spec.pool == "gap")
    )
    # timm has functions for four stems of stages only, and folders name a function.
    assume(not (table.name == "timm" and suffix == "" and spec.resnet_layers))
    model = build_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / f"w{suffix}", Path(folder) / f"again{suffix}"
        save_weights(model, path, dialect=table.name)
        loaded = load_model(path, num_heads=spec.num_heads, trained_size=spec.image_size)
        assert loaded.report.dialect == table.name
        assert as_told_by(table, loaded.spec) == as_told_by(table, spec)
        written, _ = expressible_state(model, table)
        found = loaded.model.state_dict()
        assert found.keys() == written.keys()
        for name, value in found.items():
            assert torch.equal(value, written[name]), name
        save_weights(loaded.model, again, dialect=table.name)
        first, second = tensors_of(path), tensors_of(again)
        assert list(first) == list(second)
        for name, stored in first.items():
            assert torch.equal(stored.read(), second[name].read()), name


def tensors_of(path: Path) -> Mapping[str, FileTensor]:
    return open_tensors(find_weights(path)).tensors


def as_told_by(table: Dialect, spec: ViTSpec) -> ViTSpec:
    """Leave out what no file of the dialect tells, or what computes the same."""
    same: dict[str, Any] = {"name": "", "head_init_std": 0.0}
    if spec.layer_scale_init is not None:
        same["layer_scale_init"] = 1.0
    if spec.stem == "patch":
        same["resnet_form"] = "jax"
    if (table.name == "timm" and spec.num_registers) or not spec.class_token:
        same["pos_embed"] = "learned_grid"  # the class token has none, or has taken it in
    return spec.replace(**same)


@pytest.mark.parametrize("name", DIALECT_NAMES)
def test_what_a_dialect_cannot_express_is_refused_and_nothing_written(name, tmp_path):
    model = vitbase.create_model("ViTC-Mini_8")
    suffix = next(table for table in DIALECTS if table.name == name).suffixes[0]
    path = tmp_path / f"w{suffix}"
    if name == "vitbase":
        save_weights(model, path)
        assert load_model(path).spec == model.spec
        return
    with pytest.raises(WeightsError, match=f"{name} cannot express ViTC-Mini_8 with .*stem 'conv'"):
        save_weights(model, path, dialect=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("mindspore", ".ckpt"),
        ("google", ".npz"),
        ("timm", ".safetensors"),
        ("timm", ""),
        ("torchvision", ".pth"),
        ("hf", ""),
    ],
)
def test_fixed_positions_are_written_as_learned_ones(name, suffix, tmp_path):
    size = (32, 32) if name == "torchvision" else (32, 64)
    gelu = "tanh" if name in ("mindspore", "google") else "erf"
    model = vitbase.create_model(
        "testing",
        width=8,
        num_classes=3,
        image_size=size,
        pos_embed="sincos2d",
        gelu=gelu,
        head_init_std=1.0,
    )
    path = tmp_path / f"w{suffix}"
    save_weights(model, path, dialect=name, allow=["norm_eps"])
    loaded = load_model(path, num_heads=2, image_size=size)
    assert loaded.spec.pos_embed in ("learned", "learned_grid")
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.eval()(images), model.eval()(images))


def test_two_names_of_one_parameter_are_refused(tmp_path):
    source = Path(__file__).parents[1] / "reference" / "google_npz_tiny" / "weights.npz"
    with np.load(source) as file:
        tensors = dict(file)
    new = "Transformer/encoderblock_0/LayerNorm_1/bias"
    tensors[new.replace("_1/", "_2/")] = tensors[new]
    np.savez(tmp_path / "w.npz", **tensors)
    with pytest.raises(WeightsError, match=r"_1/bias' and .*_2/bias' are the same"):
        load_model(tmp_path / "w.npz")


def test_heads_of_published_sizes_are_known(tmp_path):
    """ViT-H's are 80 wide: a width / 64 would compute something else, silently."""
    model = vitbase.create_model(
        "ViT-H_14", depth=1, num_classes=2, image_size=(28, 28), gelu="erf"
    )
    save_weights(model, tmp_path / "w.pth", dialect="torchvision")
    assert load_model(tmp_path / "w.pth").spec.num_heads == 16


@pytest.mark.parametrize("suffix", [".npz", ".ckpt", ".safetensors", ".pth"])
def test_bytes_depend_on_the_contents_alone(suffix, tmp_path):
    names = {".npz": "google", ".ckpt": "mindspore"}
    model = vitbase.create_model("testing", num_classes=7, image_size=32, gelu="tanh")
    for name in ("first", "second/other"):
        path = (tmp_path / name).with_suffix(suffix)
        save_weights(model, path, dialect=names.get(suffix, "timm"), allow=("gelu",))
    assert (tmp_path / "first").with_suffix(suffix).read_bytes() == path.read_bytes()
