"""Weights files: what they carry, what is refused, and that their bytes depend on nothing else."""

from __future__ import annotations

import stat

import pytest
import torch
from safetensors.torch import save_file

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.runs.checkpoints import list_checkpoints
from vitbase.weights.files.open import open_tensors
from vitbase.weights.find import find_weights, list_weights
from vitbase.weights.save import save_weights

PREPROCESS = Preprocess(height=32, width=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
LABELS = tuple("abcdefg")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=7, image_size=32)
    torch.nn.init.normal_(model.head.weight)
    path = tmp_path / "w.safetensors"
    save_weights(model, path, preprocess=PREPROCESS, labels=LABELS)
    return model.eval(), path


def test_a_file_stands_alone(saved):
    model, path = saved
    loaded = vitbase.load_model(path)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.model.eval()(images), model(images))
    assert (loaded.spec, loaded.preprocess, loaded.labels) == (model.spec, PREPROCESS, LABELS)
    assert set(loaded.report.mapped) == set(model.state_dict())
    assert loaded.report.resized == loaded.report.dropped == loaded.report.initialised == ()


def test_its_bytes_are_a_function_of_the_state_alone(saved, tmp_path):
    model, path = saved
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        other = tmp_path / folder / "other.safetensors"
        save_weights(model, other, preprocess=PREPROCESS, labels=LABELS)
        assert other.read_bytes() == path.read_bytes()


def test_what_stands_in_its_metadata_stays_as_it_is(tmp_path):
    """Files are compared by their bytes: as version 0.1.0 wrote them."""
    model = vitbase.create_model("ViTC-Mini_8", num_classes=2)
    save_weights(model, tmp_path / "w.safetensors", labels=("bag", "boot"))
    assert open_tensors(tmp_path / "w.safetensors").metadata["vitbase"] == (
        '{"labels": ["bag", "boot"], "preprocess": null, "spec": {"class_token": false, '
        '"conv_layers": [[8, 3, 1], [32, 3, 2], [64, 3, 2], [128, 3, 2]], "conv_norm": "group", '
        '"depth": 1, "dropout": 0.0, "gelu": "tanh", "head_bias_init": 0.0, "head_init_std": 0.05, '
        '"image_size": [28, 28], "in_channels": 1, "layer_scale_init": null, "mlp_dim": 256, '
        '"name": "ViTC-Mini_8", "norm_eps": 1e-06, "num_classes": 2, "num_heads": 4, '
        '"num_registers": 0, "patch_size": 8, "pool": "gap", "pos_embed": "learned", '
        '"qkv_bias": true, "representation_size": null, "resnet_form": "jax", '
        '"resnet_layers": [], "resnet_width_factor": 1.0, "stem": "conv", '
        '"stochastic_depth": 0.0, "stochastic_depth_rule": "linear", "width": 128}}'
    )


def test_others_may_read_it_as_the_umask_says(saved, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(saved[1].stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_another_image_size_resamples_the_positions_and_says_so(saved):
    model, path = saved
    loaded = vitbase.load_model(path, image_size=(64, 48))
    assert loaded.spec.image_size == (64, 48)
    assert loaded.report.resized == ("pos_embed",)
    assert loaded.model.pos_embed.shape == (1, 1 + 4 * 3, 10)
    assert torch.equal(loaded.model.pos_embed[:, 0], model.pos_embed[:, 0])
    with torch.inference_mode():
        assert loaded.model(torch.rand(1, 3, 64, 48)).shape == (1, 7)


@pytest.mark.parametrize(
    "task", [{"num_classes": 3}, {"num_classes": 7, "labels": tuple("gfedcba")}]
)
def test_other_classes_get_a_head_of_zeros(saved, task):
    loaded = vitbase.load_model(saved[1], **task)
    assert loaded.report.initialised == ("head.weight", "head.bias")
    assert not loaded.model.head.weight.any()
    assert loaded.labels == task.get("labels")
    assert any("head.weight" in line for line in loaded.report.lines())


def test_the_same_classes_keep_the_head(saved):
    loaded = vitbase.load_model(saved[1], num_classes=7, labels=LABELS)
    assert torch.equal(loaded.model.head.weight, saved[0].head.weight)


def test_every_cut_is_an_error_that_names_the_file(saved, tmp_path):
    data = saved[1].read_bytes()
    for length in (0, 5, 9, 100, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"cut\.safetensors"):
            vitbase.load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just some text, no weights", "no weights file"),
        (b"PK\x03\x04 a zip archive", "damaged archive"),
        (b"\x80\x04\x95 a pickle", "damaged file of torch"),
        (b"\x0a\xff\xff\xff\xff\x7f", "MindSpore"),
    ],
)
def test_what_is_no_weights_file_is_refused_by_content(tmp_path, content, message):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        vitbase.load_model(path)


def test_foreign_tensors_are_named(saved, tmp_path):
    model, path = saved
    foreign = tmp_path / "foreign.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, foreign)
    with pytest.raises(WeightsError, match=r"the first is 'layer.weight'"):
        vitbase.load_model(foreign)
    metadata = open_tensors(path).metadata
    state = dict(model.state_dict())
    del state["norm.bias"]
    save_file(state, foreign, metadata)
    with pytest.raises(WeightsError, match=r"norm\.bias"):
        vitbase.load_model(foreign)
    save_file({**model.state_dict(), "extra": torch.zeros(1)}, foreign, metadata)
    with pytest.raises(WeightsError, match="extra"):
        vitbase.load_model(foreign)
    wrong = {**model.state_dict(), "norm.bias": torch.zeros(11)}
    save_file(wrong, foreign, metadata)
    with pytest.raises(WeightsError, match=r"norm\.bias.*\(11,\).*\(10,\)"):
        vitbase.load_model(foreign)


def test_a_folder_of_weights_files_is_taken_in_order(saved, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("b.safetensors", "a.safetensors"):
        (folder / name).write_bytes(saved[1].read_bytes())
    (folder / "notes.txt").write_text("no weights")
    assert [path.name for path in list_weights(folder)] == ["a.safetensors", "b.safetensors"]
    assert find_weights(folder) == folder / "b.safetensors"


@pytest.mark.parametrize(
    "names",
    [
        ["checkpoint-9.pth", "checkpoint-10.pth", "checkpoint-99.pth", "checkpoint-100.pth"],
        ["vit-2_9.ckpt", "vit-2_10.ckpt", "vit-10_1.ckpt"],
        ["9.pt", "10.pt", "a.pt"],
        ["last.pth.tar", "model_best.pth.tar"],
        ["epoch=9-step=1000.ckpt", "epoch=10-step=200.ckpt"],
        ["w" + "1" * 40 + ".PTH", "w" + "1" * 60 + ".pth"],
    ],
)
def test_numbers_in_names_are_sorted_as_numbers(tmp_path, names):
    for name in sorted(names):
        (tmp_path / name).touch()
    assert [path.name for path in list_weights(tmp_path)] == names
    assert find_weights(tmp_path).name == names[-1]


def test_checkpoints_are_listed_by_place_not_by_name(tmp_path):
    for name in ("train_vit_x-10_5", "train_vit_x-9_5", "train_vit_x-9_50", "other"):
        (tmp_path / name).mkdir()
    places = [(found.epoch, found.step) for found in list_checkpoints(tmp_path)]
    assert places == [(9, 5), (9, 50), (10, 5)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_become_others_are_reported(tmp_path, dtype):
    model = vitbase.create_model("testing", num_classes=3, image_size=32, gelu="erf")
    save_weights(model, tmp_path / "whole.pth", dialect="timm")
    state = torch.load(tmp_path / "whole.pth", weights_only=True)
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "w.pth")
    name = str(dtype).removeprefix("torch.")
    report = vitbase.load_model(tmp_path / "w.pth", num_heads=2).report
    assert report.notes == (f"{name} became float32",)
    assert vitbase.load_model(tmp_path / "whole.pth", num_heads=2).report.notes == ()


def test_other_heads_than_the_file_says_are_reported_or_refused(saved):
    model, path = saved
    heads = model.spec.num_heads
    width = model.spec.width
    assert vitbase.load_model(path, num_heads=heads).report.notes == ()
    notes = vitbase.load_model(path, num_heads=width).report.notes
    assert notes == (f"num_heads {width} as asked, not {heads} as the file says",)
    for impossible in (0, -1, width + 1):
        with pytest.raises(WeightsError, match=rf"{path.name}: num_heads .* does not divide"):
            vitbase.load_model(path, num_heads=impossible)
