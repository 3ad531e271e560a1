"""Names with something before them, and files with several networks: one rule for all formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_weights import State, read_state, write_bare, write_whole_network
from safetensors.torch import save_file

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import WeightsError
from vitbase.weights.files.npz import write_npz
from vitbase.weights.files.open import open_tensors
from vitbase.weights.save import save_weights
from vitbase.weights.show import show_weights


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A whole network, by timm's names."""
    return read_state(write_whole_network(tmp_path_factory.mktemp("whole") / "w.safetensors"))


def write_shards(path: Path, state: State) -> None:
    weight_map = {}
    for number in (0, 1):
        part = {name: state[name] for name in list(state)[number::2]}
        save_file(part, path.with_name(f"part-{number}.safetensors"))
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    path.write_text(json.dumps({"weight_map": weight_map}))


FORMATS: dict[str, Callable[[Path, State], None]] = {
    "w.safetensors": lambda path, state: save_file(state, path),
    "model.safetensors.index.json": write_shards,
    "w.npz": write_npz,
    "w.pth": lambda path, state: torch.save(state, path),
    "w.pt": write_bare,
}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value.clone() for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def headless(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def assert_loads(path: Path, state: State, **options) -> tuple[str, ...]:
    """Load a file, and compare the weights with those by timm's names. Returns: the notes."""
    loaded = vitbase.load_model(path, **options)
    found = loaded.model.state_dict()
    assert torch.equal(found["norm.weight"], state["norm.weight"])
    assert torch.equal(found["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert ("head.weight" in found) == ("head.weight" in state)
    return loaded.report.notes


# ---------------------------------------------------------------------------------- prefixes


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "model._orig_mod.") for name in FORMATS),
        *(
            ("w.safetensors", f"{prefix}.")
            for prefix in [
                "module",
                "model",
                "_orig_mod",
                "backbone",
                "encoder",
                "vit",
                "net",
                "student",
                "a.b",
            ]
        ),
    ],
)
def test_a_prefix_is_removed_in_every_format(state, tmp_path, name, prefix):
    FORMATS[name](tmp_path / name, under(prefix, state))
    assert f"prefix '{prefix}' removed" in assert_loads(tmp_path / name, state)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        *((name, "_orig_mod.") for name in FORMATS),
        ("w.safetensors", "_checkpoint_wrapped_module."),
        ("w.safetensors", "_fsdp_wrapped_module."),
        ("w.safetensors", "module."),
    ],
)
def test_wrappers_inside_names_are_removed_in_every_format(state, tmp_path, name, wrapper):
    start = "blocks.0."
    inside = {n.replace(start, start + wrapper): value for n, value in state.items()}
    FORMATS[name](tmp_path / name, under("model.", inside))
    notes = assert_loads(tmp_path / name, state)
    assert "prefix 'model.' removed" in notes
    assert f"'{wrapper}' removed inside names" in notes


@pytest.mark.parametrize("dialect", ["hf", "torchvision", "dinov2"])
@pytest.mark.parametrize("prefix", ["", "module.", "net._orig_mod."])
def test_prefixes_that_belong_to_an_origin_stay(tmp_path, dialect, prefix):
    fields = {"gelu": "erf", "norm_eps": 1e-12 if dialect == "hf" else 1e-6}
    classes = 0 if dialect == "dinov2" else 7
    model = vitbase.create_model("testing", num_classes=classes, image_size=32, **fields)
    place = tmp_path / ("whole" if dialect == "hf" else "whole.safetensors")
    save_weights(model, place, dialect=dialect)
    file = place / "model.safetensors" if dialect == "hf" else place
    theirs = {n: tensor.read() for n, tensor in open_tensors(file).tensors.items()}
    save_file(under(prefix, theirs), tmp_path / "w.safetensors")
    loaded = vitbase.load_model(tmp_path / "w.safetensors", num_heads=2)
    assert loaded.report.dialect == dialect
    assert loaded.report.notes == ((f"prefix '{prefix}' removed",) if prefix else ())
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key


def test_two_names_of_one_parameter_are_refused(state, tmp_path):
    both = {**state, "module.norm.bias": state["norm.bias"].clone()}
    save_file(both, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"'module\.norm\.bias' are the same|same parameter"):
        vitbase.load_model(tmp_path / "w.safetensors")


# -------------------------------------------------------------------------- several networks


def linear(*names: str) -> State:
    return {name: torch.ones(10, 10) for name in names}


def dino(state: State) -> tuple[State, State]:
    """Teacher and student as facebookresearch/dino's main_dino.py saves them, each an entry."""
    head = linear("head.mlp.0.weight", "head.mlp.0.bias", "head.last_layer.weight_g")
    encoder = headless(state)
    return (
        {**under("backbone.", encoder), **head},
        {**under("module.backbone.", other(encoder)), **under("module.", head)},
    )


@pytest.mark.parametrize("kind", ["entries", "flat"])
def test_of_dino_the_teachers_encoder_is_taken(state, tmp_path, kind):
    teacher, student = dino(state)
    path = tmp_path / "w.safetensors"
    if kind == "flat":
        save_file({**under("student.", student), **under("teacher.", teacher)}, path)
    else:
        path = tmp_path / "checkpoint.pth"
        loss = {"center": torch.zeros(1, 9)}
        content = {"student": student, "teacher": teacher, "epoch": 3, "dino_loss": loss}
        torch.save(content, path)
    notes = assert_loads(path, headless(state))
    assert any(
        "of several networks that under 'teacher.backbone.'" in note
        and "--prefix" in note
        and "'student." in note
        for note in notes
    )
    assert_loads(path, headless(other(state)), prefix="student")
    dropped = vitbase.load_model(path).report.dropped
    assert {"teacher.head.mlp.0.weight", "teacher.head.last_layer.weight_g"} < set(dropped)
    assert any(name.startswith("student.") for name in dropped)
    # They were not trained on images as those of most others by timm's names.
    assert vitbase.load_model(path).preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("kind", ["entries", "flat"])
def test_of_moco_the_base_encoder_is_taken(state, tmp_path, kind):
    head = linear("head.0.weight", "head.1.running_mean", "head.1.weight", "head.3.weight")
    names = {
        **under("module.base_encoder.", {**headless(state), **head}),
        **under("module.momentum_encoder.", {**headless(other(state)), **head}),
        **under("module.", linear("predictor.0.weight", "predictor.1.running_mean")),
    }
    path = tmp_path / ("w.safetensors" if kind == "flat" else "vit.pth.tar")
    if kind == "flat":
        save_file(names, path)
    else:
        torch.save({"epoch": 300, "arch": "vit_small", "state_dict": names}, path)
    notes = assert_loads(path, headless(state))
    assert any("'base_encoder.'" in note or ".base_encoder.'" in note for note in notes)
    assert_loads(path, headless(other(state)), prefix="module.momentum_encoder")
    dropped = vitbase.load_model(path).report.dropped
    assert any(name.endswith("predictor.0.weight") for name in dropped)
    assert any(
        name.endswith("base_encoder.head.0.weight") or name == "head.0.weight" for name in dropped
    )


def test_small_encoders_of_moco_have_its_heads(tmp_path):
    model = vitbase.create_model("ViT-S_16", depth=1, num_classes=0, image_size=32, gelu="erf")
    save_weights(model, tmp_path / "w.pth", dialect="timm")
    encoder = torch.load(tmp_path / "w.pth", weights_only=True)
    save_file(under("module.base_encoder.", encoder), tmp_path / "w.safetensors")
    assert vitbase.load_model(tmp_path / "w.safetensors").spec.num_heads == 12
    assert vitbase.load_model(tmp_path / "w.safetensors", num_heads=6).spec.num_heads == 6
    assert vitbase.load_model(tmp_path / "w.pth").spec.num_heads == 6


@pytest.mark.parametrize("student", [True, False])
def test_training_checkpoints_of_dinov2_open(tmp_path, student):
    model = vitbase.create_model(
        "testing", num_classes=0, image_size=32, gelu="erf", layer_scale_init=0.1
    )
    save_weights(model, tmp_path / "w.pth", dialect="dinov2")
    encoder = torch.load(tmp_path / "w.pth", weights_only=True)
    heads = linear("dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v")
    content = {"teacher": {**under("backbone.", encoder), **heads}}
    if student:
        content = {
            "model": {
                f"{who}.{n}": v
                for who in ("student", "teacher")
                for n, v in content["teacher"].items()
            }
        }
    torch.save(content, tmp_path / "teacher_checkpoint.pth")
    loaded = vitbase.load_model(tmp_path / "teacher_checkpoint.pth", num_heads=2)
    assert loaded.report.dialect == "dinov2"
    assert torch.equal(loaded.model.norm.weight, model.norm.weight)
    assert any("dino_head" in name for name in loaded.report.dropped)


DECODER = linear("decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight", "decoder_pos_embed")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_the_decoder_of_a_masked_autoencoder_is_left_out_by_name(state, tmp_path, name):
    whole = {**headless(state), "mask_token": torch.ones(1, 1, 10), **DECODER}
    FORMATS[name](tmp_path / name, whole)
    assert_loads(tmp_path / name, headless(state))
    report = vitbase.load_model(tmp_path / name).report
    assert set(report.dropped) == {"mask_token", *DECODER}
    assert any("Not of the network, left out: 4 tensors" in line for line in report.lines())


@pytest.mark.parametrize("ema", ["model_ema", "ema", "state_dict_ema", "ema_model", "model_swa"])
def test_of_a_model_and_its_average_the_average_is_taken_and_said(state, tmp_path, ema):
    torch.save({"model": other(state), ema: state}, tmp_path / "w.pth")
    notes = assert_loads(tmp_path / "w.pth", state)
    assert f"taken from its entry '{ema}'" in notes
    assert any("'model.'" in note and "--prefix" in note for note in notes)
    assert_loads(tmp_path / "w.pth", other(state), prefix="model")
    flat = {**other(state), **under(f"{ema}.", state)}
    save_file(flat, tmp_path / "w.safetensors")
    assert any(f"'{ema}.'" in note for note in assert_loads(tmp_path / "w.safetensors", state))


def test_where_nothing_tells_which_network_it_is_asked_for(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**under("left.", state), **under("right.", other(state))}, path)
    with pytest.raises(
        WeightsError, match=r"w\.safetensors: .*several.*--prefix.*'left\.', 'right\.'"
    ):
        vitbase.load_model(path)
    with pytest.raises(WeightsError, match=r"begin with 'up\.'.*'left\.', 'right\.'"):
        vitbase.load_model(path, prefix="up")
    assert_loads(path, state, prefix="left")
    assert_loads(path, other(state), prefix="right.")


def test_what_stands_beside_a_network_is_not_passed_over(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**under("trunk.", state), "neck.weight": torch.ones(3)}, path)
    with pytest.raises(WeightsError, match=r"'neck\.weight'.*prefix \(--prefix\): 'trunk\.'"):
        vitbase.load_model(path)
    assert_loads(path, state, prefix="trunk")
    assert_loads(path, state, ignore=["neck.*"])


def test_a_network_without_a_prefix_can_be_asked_for(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**other(state), **under("ema.", state)}, path)
    assert_loads(path, other(state), prefix="")
    save_file(state, path)
    with pytest.raises(WeightsError, match="one network has no prefix; leave out 'student'"):
        vitbase.load_model(path, prefix="student")


@pytest.mark.parametrize(
    "anchor", ["patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"]
)
def test_more_networks_than_anybody_keeps_in_a_file_are_not_looked_into(tmp_path, anchor):
    names = {f"n{number}.{anchor}": torch.ones(1) for number in range(3000)}
    save_file(names, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="more than 16 networks"):
        vitbase.load_model(tmp_path / "w.safetensors")


def test_a_checkpoint_of_lightning_opens(state, tmp_path):
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": under("model.", state),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }
    torch.save(content, tmp_path / "w.ckpt")
    assert "prefix 'model.' removed" in assert_loads(tmp_path / "w.ckpt", state)


def test_entries_that_hold_each_other_end(state, tmp_path):
    inner: dict[str, object] = {"model": state}
    inner["self"] = inner
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    torch.save({"x": inner, "model": state}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", state)


def test_show_and_convert_take_a_prefix(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**under("model.", other(state)), **under("ema.", state)}, path)
    shown = show_weights(path)
    assert shown.error is None
    assert len(shown.tensors) == len(state)
    assert any("'ema.'" in note for note in shown.notes)
    assert any("'model.'" in note for note in show_weights(path, prefix="model").notes)
    done = vitbase.convert_weights(path, tmp_path / "o.pth", dialect="timm", prefix="model")
    assert_loads(done.path, other(state))


def test_options_of_a_run_take_a_prefix():
    config = load_config("finetune", weights_prefix="student", checkpoint_path="w.pth")
    assert config.model.weights_prefix == "student"


# -------------------------------------------------------------------------------------- heads


HEADS: dict[str, State] = {
    "mae's probe": linear("head.0.running_mean", "head.1.weight", "head.1.bias"),
    "two layers": linear("head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"),
    "swin's": linear("head.fc.weight", "head.fc.bias"),
    "outside": linear("classifier.weight", "classifier.bias"),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_another_shape_makes_way_for_a_new_one_or_is_explained(state, tmp_path, head):
    encoder = under("backbone." if head == "outside" else "", headless(state))
    path = tmp_path / "w.safetensors"
    save_file({**encoder, **HEADS[head]}, path)
    loaded = vitbase.load_model(path, num_classes=3)
    assert not loaded.model.head.weight.any()
    assert set(loaded.report.dropped) == set(HEADS[head])
    assert loaded.report.initialised == ("head.weight", "head.bias")
    pattern = f"{next(iter(HEADS[head])).partition('.')[0]}.*"
    with pytest.raises(WeightsError, match="head that is not one linear layer") as caught:
        vitbase.load_model(path)
    assert f"ignore '{pattern}'" in str(caught.value)
    assert vitbase.load_model(path, ignore=[pattern]).spec.num_classes == 0
