"""`vitbase weights`, and other systems' weights in `predict`, `eval` and `train`, as users see it.

What is asserted is what is printed, the exit code, and what is left on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import run_command
from PIL import Image

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model import VisionTransformer, ViTSpec

REFERENCE = Path(__file__).parents[1] / "reference"
GOOGLE = REFERENCE / "google_npz_tiny" / "weights.npz"
MINDSPORE = REFERENCE / "mindspore_tiny" / "train.ckpt"
LABELS = ("bag", "boot", "coat")
PREPROCESS = Preprocess(
    height=32,
    width=32,
    channels=3,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    crop_ratio=0.8,
    interpolation="bicubic",
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command: exit code, output, errors."""
    return partial(run_command, capsys)


def save_timm(path: Path, **options: Any) -> Path:
    """A small ViT of timm's, as its users save one."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, "patch_size": 16, "img_size": 32}
    model = timm.models.VisionTransformer(**{**sizes, "num_classes": 3, **options})
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    torch.save(model.state_dict(), path)
    return path


def save_folder(path: Path, dialect: str = "hf", **fields: Any) -> Path:
    """A small ViT as a folder of Hugging Face's or timm's, with labels and preprocessing."""
    sizes = {"patch_size": 8, "width": 48, "depth": 2, "num_heads": 4, "mlp_dim": 96}
    shape = {"image_size": (32, 32), "num_classes": 3, "gelu": "erf", "head_init_std": 0.1}
    torch.manual_seed(0)
    model = VisionTransformer(ViTSpec(**{"name": "small", **sizes, **shape, **fields}))
    vitbase.save_weights(model, path, dialect=dialect, preprocess=PREPROCESS, labels=LABELS)
    return path


def facts_of(out: str) -> dict[str, str]:
    """The lines of `weights show`, which are names and values in two columns."""
    lines = out.split("\n\n", maxsplit=1)[0].splitlines()
    assert all(line[:14].strip() and line[13] == " " and line[14] != " " for line in lines)
    return {line[:14].strip(): line[14:] for line in lines}


# weights show


def test_show_says_what_a_file_of_timm_is_and_what_it_does_not_tell(
    run: Run, tmp_path: Path
) -> None:
    path = save_timm(tmp_path / "w.pth")
    code, out, err = run("weights", "show", path)
    assert (code, err) == (0, "")
    numbers = sum(value.numel() for value in torch.load(path, weights_only=True).values())
    assert facts_of(out) == {
        "file": str(path),
        "format": f"torch, {path.stat().st_size / 1e6:.1f} MB, 32 tensors of float32",
        "dialect": "timm",
        "architecture": f"ViT-64x2_16 (no variant of the zoo), {numbers:,} parameters",
        "input": "32x32 px, 2x2 patches of 16",
        "blocks": "2 of width 64, 1 head, MLP 256, erf GELU, epsilon 1e-06",
        "tokens": "class token, patches; positions learned",
        "head": "token, 3 classes",
        "preprocess": (
            "short side to 35 px, crop 32x32, bicubic; mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5"
        ),
        "labels": "none in the file",
        "assumed": "num_heads, gelu, image_size, preprocess: not in the file, as usual for timm",
    }


def test_show_says_what_a_folder_tells(run: Run, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf", gelu="tanh", norm_eps=1e-12)
    facts = facts_of(run("weights", "show", folder)[1])
    assert facts["dialect"] == "hf"
    assert facts["blocks"] == "2 of width 48, 4 heads, MLP 96, tanh GELU, epsilon 1e-12"
    assert facts["preprocess"] == (
        "short side to 40 px, crop 32x32, bicubic; mean 0.1, 0.2, 0.3; std 0.4, 0.5, 0.6"
    )
    assert facts["labels"] == "3: bag, boot, coat"
    assert "assumed" not in facts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_mode": "squash", "crop_ratio": 1.0}, "squash to 32x32 px, bicubic; "),
        ({"crop_mode": "squash"}, "squash to 40x40 px, crop 32x32, bicubic; "),
        ({"crop_ratio": 1.0}, "short side to 32 px, crop 32x32, bicubic; "),
        ({"width": 48}, "cover 40x60 px, crop 32x48, bicubic; "),
    ],
)
def test_show_tells_the_preprocessing_in_pixels(
    run: Run, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    needs = PREPROCESS.model_copy(update=changes)
    model = vitbase.create_model("testing", image_size=(needs.height, needs.width), patch_size=16)
    vitbase.save_weights(model, tmp_path / "w.safetensors", preprocess=needs)
    assert facts_of(run("weights", "show", tmp_path / "w.safetensors")[1])["preprocess"].startswith(
        expected
    )


def test_show_knows_the_parts_of_other_models(run: Run, tmp_path: Path) -> None:
    dino = {"layer_scale_init": 0.1, "num_registers": 1, "pool": "token_gap", "qkv_bias": False}
    facts = facts_of(run("weights", "show", save_folder(tmp_path / "dino", **dino))[1])
    assert facts["blocks"].endswith(", LayerScale, no query, key and value bias")
    assert facts["tokens"] == "class token, 1 register, patches; positions learned"
    assert facts["head"] == "token_gap, 3 classes"
    assert facts["left out"] == "1 tensor: dinov2_with_registers.embeddings.mask_token"
    hybrid = REFERENCE / "google_npz_tiny_hybrid" / "weights.npz"
    facts = facts_of(run("weights", "show", hybrid)[1])
    assert facts["input"] == "64x64 px, resnet stem of 1+2 units (jax form), 8x8 patches of 8"
    assert facts["assumed"] == "image_size, preprocess: not in the file, as usual for google"
    gap = facts_of(run("weights", "show", REFERENCE / "google_npz_tiny_gap" / "weights.npz")[1])
    assert (gap["tokens"], gap["head"]) == ("patches; positions learned", "gap, 10 classes")
    grey = save_timm(tmp_path / "grey.pth", in_chans=1, num_classes=0)
    facts = facts_of(run("weights", "show", grey)[1])
    assert facts["input"] == "32x32 px, 1 channel, 2x2 patches of 16"
    assert facts["head"] == "token, no head: gives features"
    facts = facts_of(run("weights", "show", MINDSPORE, "--num_heads", 3)[1])
    assert facts["left out"].startswith("43 tensors: global_step, momentum, moments.")
    assert facts["left out"].endswith(", …")


def test_show_counts_the_bytes_of_all_shards(run: Run, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf")
    whole = folder / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = list(load_file(whole).items())
    parts = {"a.safetensors": dict(tensors[::2]), "b.safetensors": dict(tensors[1::2])}
    for name, part in parts.items():
        save_file(part, folder / name)
    whole.unlink()
    shard_of = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    row = json.loads(run("weights", "show", folder, "--json")[1])
    assert row["bytes"] == sum((folder / name).stat().st_size for name in parts)
    assert row["notes"] == ["2 shards"]
    assert "; 2 shards" in facts_of(run("weights", "show", folder)[1])["format"]


def test_show_says_which_of_several_files_it_shows(run: Run, tmp_path: Path) -> None:
    for name in ("b.pth", "a.pth"):
        save_timm(tmp_path / name)
    facts = facts_of(run("weights", "show", tmp_path)[1])
    assert facts["file"] == str(tmp_path / "b.pth")
    assert facts["format"].endswith(f"; the last of 2 in {tmp_path}")


def test_show_lists_tensors_in_columns_with_our_names(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("weights", "show", save_folder(tmp_path / "hf"), "--tensors")
    assert code == 0
    lines = out.split("\n\n")[1].splitlines()
    assert len(lines) == 40
    rows = [[line[: line.index("  ")], *line.split("float32")[1:]] for line in lines]
    ours = {name: rest.strip() for name, rest in rows}
    assert ours["classifier.weight"] == "head.weight"
    for part in ("query", "key", "value"):
        name = f"vit.encoder.layer.1.attention.attention.{part}.bias"
        assert ours[name] == "blocks.1.attn.qkv.bias"
    assert len({line.index("float32") for line in lines}) == 1
    (projection,) = [line for line in lines if "projection.weight" in line]
    assert "  48 x 3 x 8 x 8  float32   stem.proj.weight" in projection


def test_show_as_json_says_the_same(run: Run, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf")
    code, out, err = run("weights", "show", folder, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    row = json.loads(out)
    loaded = vitbase.load_model(folder)
    assert set(row) == {
        *("file", "format", "bytes", "notes", "error", "dialect", "parameters", "spec"),
        *("preprocess", "labels", "assumed", "tensors"),
    }
    assert row["file"] == str(folder / "model.safetensors")
    assert (row["format"], row["dialect"], row["notes"]) == ("safetensors", "hf", [])
    assert (row["error"], row["assumed"]) == (None, [])
    assert row["parameters"] == sum(value.numel() for value in loaded.model.parameters())
    assert ViTSpec.from_dict(row["spec"]) == loaded.spec
    assert Preprocess.model_validate(row["preprocess"]) == PREPROCESS
    assert row["labels"] == list(LABELS)
    assert {
        "theirs": "classifier.bias",
        "ours": "head.bias",
        "shape": [3],
        "dtype": "float32",
    } in row["tensors"]


@pytest.mark.parametrize("as_json", [False, True])
def test_show_of_other_tensors_lists_them_and_says_why_they_are_no_model(
    run: Run, tmp_path: Path, as_json: bool
) -> None:
    torch.save({"layer.weight": torch.zeros(3, 2), "n": torch.zeros(())}, tmp_path / "w.pth")
    code, out, err = run("weights", "show", tmp_path / "w.pth", *(["--json"] if as_json else []))
    assert code == 2
    assert "are not those of a Vision Transformer of vitbase, mindspore, google" in err
    assert err.count("\n") == 1
    if as_json:
        row = json.loads(out)
        assert (row["error"], row["spec"]) == (err[len("vitbase: error: ") : -1], None)
        assert [tensor["shape"] for tensor in row["tensors"]] == [[3, 2], []]
    else:
        assert out.splitlines()[2:] == [
            "",
            "layer.weight   3 x 2  float32   -",
            "n             scalar  float32   -",
        ]


def test_show_finds_what_loading_would_miss(run: Run, tmp_path: Path) -> None:
    path = save_timm(tmp_path / "w.pth")
    state = torch.load(path, weights_only=True)
    del state["norm.bias"]
    torch.save(state, path)
    code, out, err = run("weights", "show", path)
    assert code == 2
    assert err == f"vitbase: error: {path}: tensor 'norm.bias' is missing.\n"
    assert facts_of(out)["dialect"] == "timm"
    assert json.loads(run("weights", "show", path, "--json")[1])["error"].endswith("is missing.")
    torch.save({**state, "norm.bias": torch.zeros(65)}, path)
    assert "tensor 'norm.bias' has shape (65,), but" in run("weights", "show", path)[2]


def test_a_label_cannot_move_the_cursor(run: Run, tmp_path: Path) -> None:
    labels = ("a\x1b[2Jb", "c\nd", "鸟")
    model = vitbase.create_model("testing", num_classes=3, image_size=32)
    vitbase.save_weights(model, tmp_path / "w.safetensors", labels=labels)
    facts = facts_of(run("weights", "show", tmp_path / "w.safetensors")[1])
    assert facts["labels"] == r"3: a\x1b[2Jb, c\nd, 鸟"


# weights convert


def test_convert_says_what_it_did(run: Run, tmp_path: Path) -> None:
    source = save_folder(tmp_path / "hf")
    code, out, err = run(
        "weights", "convert", source, tmp_path / "w.pth", "--dialect", "torchvision"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"Weights from {source}/model.safetensors (hf): 32 tensors",
        f"Written to {tmp_path}/w.pth (torchvision): 32 tensors",
        "Opened again: outputs on 4 random images differ by at most 0 (equal bit for bit).",
    ]
    assert "Tell torchvision when it builds the model: num_heads 4." in out.splitlines()[3:]
    assert next(iter(torch.load(tmp_path / "w.pth", weights_only=True))) == "class_token"


def test_convert_with_permission_says_what_changed(run: Run, tmp_path: Path) -> None:
    source, path = save_folder(tmp_path / "hf"), tmp_path / "w.ckpt"
    code, out, err = run("weights", "convert", source, path, "--dialect", "mindspore")
    assert (code, out) == (2, "")
    assert "mindspore cannot express" in err
    assert "allow gelu" in err
    assert not path.exists()
    code, out, err = run(
        "weights", "convert", source, path, "--dialect", "mindspore", "--allow", "gelu"
    )
    assert (code, err) == (0, "")
    assert "Note: mindspore computes with gelu tanh, the original with erf.\n" in out
    assert "equal bit for bit" not in out
    assert vitbase.load_model(path, num_heads=4).spec.gelu == "tanh"


def test_convert_takes_the_newest_checkpoint_of_a_run(
    run: Run, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    vitbase.train(tiny_config(epoch_size=2))
    code, out, _ = run(
        "weights", "convert", tmp_path / "run", tmp_path / "timm", "--dialect", "timm"
    )
    assert code == 0
    assert "train_vit_fashion-2_6/weights.safetensors (vitbase)" in out
    loaded = vitbase.load_model(tmp_path / "timm")
    assert loaded.labels is not None
    assert loaded.labels == vitbase.load_model(tmp_path / "run").labels
    assert loaded.preprocess.channels == 1
    facts = facts_of(run("weights", "show", tmp_path / "run")[1])
    assert facts["file"].endswith("train_vit_fashion-2_6/weights.safetensors")
    assert facts["format"].endswith(f"; the last of 2 in {tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights"], "Usage: vitbase weights show FILE"),
        (["weights", "shwo", "in"], "Unknown action 'shwo'"),
        (["weights", "show"], "got nothing"),
        (["weights", "show", "in", "in"], "got in in"),
        (["weights", "show", "nowhere"], "nowhere does not exist"),
        (["weights", "show", "empty"], "empty holds no checkpoint and no weights file"),
        (["weights", "show", "text.pth"], "text.pth is no weights file"),
        (["weights", "show", "in", "--num_heads", "x"], "'num_heads' should be a valid integer"),
        (["weights", "show", "in", "--num_heads", "5"], "num_heads 5 does not divide"),
        (["weights", "show", "in", "--tensor"], "Unknown option '--tensor'"),
        (["weights", "convert", "in", "out.pth"], "Give --dialect, one of vitbase, mindspore"),
        (["weights", "convert", "in", "--dialect", "timm"], "got in"),
        (["weights", "convert", "in", "out.pth", "--dialect", "tim"], "Did you mean 'timm'?"),
        (["weights", "convert", "in", "out.npz", "--dialect", "timm"], "not as '.npz'"),
        (["weights", "convert", "in", "text.pth", "--dialect", "timm"], "text.pth exists already"),
        (["weights", "convert", "in", "empty", "--dialect", "timm"], "empty exists already"),
        (["weights", "convert", "nowhere", "out.pth", "--dialect", "timm"], "nowhere does not"),
        (["weights", "convert", "text.pth", "out.pth", "--dialect", "timm"], "no weights file"),
        (["weights", "convert", "in", "out.npz", "--dialect", "google", "--allow", "x"], "'x' can"),
        (["weights", "convert", "in", "out.npz", "--dialct", "google"], "Did you mean 'dialect'?"),
        (["predict", "image.png", "--checkpoint_path", "text.pth"], "text.pth is no weights file"),
        (["eval", "--checkpoint_path", "in"], "in lies in no run folder"),
        (["train", "finetune", "--data_path", "empty", "--checkpoint_path", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


# Weights of other systems at work


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("dialect", ["hf", "timm"])
def test_predict_takes_names_and_preprocessing_from_a_folder(
    run: Run, tmp_path: Path, photo: Path, dialect: str
) -> None:
    folder = save_folder(tmp_path / "folder", dialect)
    code, out, err = run("predict", photo, "--checkpoint_path", folder, "--json")
    assert (code, err) == (0, "")
    told = {found["class"]: found["probability"] for found in json.loads(out)["classes"]}
    assert set(told) == set(LABELS)
    # The same as by hand, from what the folder says.
    from vitbase.data.augment import EvalTransform
    from vitbase.data.normalize import normalize

    row = np.zeros((1, 32, 32, 3), np.uint8)
    EvalTransform(PREPROCESS)(photo.read_bytes(), None, row[0])
    with torch.inference_mode():
        model = vitbase.load_model(folder).model.eval()
        expected = model(normalize(torch.from_numpy(row), PREPROCESS)).softmax(dim=1)[0]
    assert [told[name] for name in LABELS] == pytest.approx(expected.tolist(), abs=1e-6)


def test_predict_without_names_counts_the_classes(run: Run, tmp_path: Path, photo: Path) -> None:
    path = save_timm(tmp_path / "w.pth")
    code, out, _ = run("predict", photo, "--checkpoint_path", path, "--top", 3)
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == [f"Weights: {path}", str(photo)]
    assert {line.split()[0] for line in lines[2:]} == {"0", "1", "2"}


@pytest.fixture
def photos(photo_folder: Path) -> list[object]:
    """Options of a command on class folders of real photographs: bag, boot, coat."""
    return ["--val_data_path", photo_folder, "--device_target", "cpu"]


def test_eval_takes_the_preprocessing_of_the_weights(
    run: Run, tmp_path: Path, photos: list[object]
) -> None:
    folder = save_folder(tmp_path / "hf")
    code, out, err = run("eval", "finetune", "--checkpoint_path", folder, *photos)
    assert (code, err) == (0, "")
    assert "model.safetensors: evaluated 24 of 24, each once: top-1 " in out


def test_eval_warns_of_other_preprocessing_and_names_what_differs(
    run: Run, tmp_path: Path, photos: list[object]
) -> None:
    folder = save_folder(tmp_path / "hf")
    words = ["--crop_ratio", "0.5", "--mean", "0.5", "0.5", "0.5"]
    code, _, err = run("eval", "finetune", "--checkpoint_path", folder, *photos, *words)
    assert code == 0
    assert "mean (0.5, 0.5, 0.5) instead of (0.1, 0.2, 0.3)" in err
    assert "crop_ratio 0.5 instead of 0.8" in err
    assert "std" not in err.split("trained on: ")[1]


def test_eval_at_another_image_size_resamples_the_positions(
    run: Run, tmp_path: Path, photos: list[object]
) -> None:
    path = save_timm(tmp_path / "w.pth")
    sizes = ["--image_height", "64", "--image_width", "48"]
    code, out, err = run("eval", "finetune", "--checkpoint_path", path, *photos, *sizes, "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)
    assert (row["checkpoint"], row["eval_images"]) == (str(path), 24)


def test_eval_refuses_classes_that_the_weights_do_not_have(
    run: Run, tmp_path: Path, photos: list[object]
) -> None:
    path = save_timm(tmp_path / "w.pth", num_classes=2)
    code, _, err = run("eval", "finetune", "--checkpoint_path", path, *photos)
    assert code == 2
    assert "3 classes" in err
    assert "tells 2 apart" in err


@pytest.fixture
def train(run: Run, photo_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Train a moment on three classes; return the log."""

    def train(*words: object) -> list[str]:
        code, out, err = run(
            *("train", "finetune", "--data_path", photo_folder, "--output_dir", tmp_path / "run"),
            *("--batch_size", 8, "--epoch_size", 1, "--warmup_epochs", 0, "--device_target", "cpu"),
            *words,
        )
        assert (code, err) == (0, "")
        return out.splitlines()

    return train


def test_train_starts_from_a_folder_with_its_head_and_its_preprocessing(
    train: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = save_folder(tmp_path / "hf")
    log = train("--pre_trained", "True", "--checkpoint_path", folder)
    assert f"Weights from {folder}/model.safetensors (hf): 32 tensors" in log
    assert not [line for line in log if line.startswith(("Warning", "Set to zero", "Resized"))]
    trained = vitbase.load_model(tmp_path / "run")
    assert (trained.preprocess, trained.labels) == (PREPROCESS, LABELS)
    assert trained.spec.gelu == "erf"


def test_train_on_other_classes_and_sizes_says_what_is_new(
    train: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = save_timm(tmp_path / "w.pth", num_classes=9)
    sizes = ["--image_height", 64, "--image_width", 48]
    log = train("--checkpoint_path", path, *sizes, "--std", 0.2, 0.2, 0.2, "--crop_ratio", 0.5)
    assert f"Weights from {path} (timm): 30 tensors" in log
    assert "Set to zero, to be learned anew: head.weight, head.bias" in log
    assert "Resized to this image size: pos_embed" in log
    (warning,) = [line for line in log if line.startswith("Warning")]
    assert "std (0.2, 0.2, 0.2) instead of (0.5, 0.5, 0.5)" in warning
    assert "crop_ratio 0.5 instead of 0.9" in warning
    assert "Leave out --std and --crop_ratio to do as the weights." in warning
    trained = vitbase.load_model(tmp_path / "run")
    assert trained.spec.image_size == (64, 48)
    assert trained.spec.num_classes == 3
    assert trained.labels == LABELS


def test_train_gives_a_model_without_a_head_one(
    train: Callable[..., list[str]], tmp_path: Path
) -> None:
    log = train("--checkpoint_path", save_timm(tmp_path / "w.pth", num_classes=0))
    assert "Set to zero, to be learned anew: head.weight, head.bias" in log
    assert vitbase.load_model(tmp_path / "run").spec.num_classes == 3


def test_train_takes_heads_from_the_user_where_the_file_does_not_tell(
    train: Callable[..., list[str]], run: Run, tmp_path: Path, photo_folder: Path
) -> None:
    words = ["train", "finetune", "--data_path", photo_folder, "--checkpoint_path", MINDSPORE]
    code, _, err = run(*words, "--output_dir", tmp_path / "run")
    assert code == 2
    assert "num_heads" in err
    assert not (tmp_path / "run").exists()
    log = train("--checkpoint_path", MINDSPORE, "--num_heads", 3)
    assert any("Not of the network, left out: 43 tensors" in line for line in log)
    assert vitbase.load_model(tmp_path / "run").spec.num_heads == 3


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_predict_with_weights_without_a_head_says_what_to_do(
    run: Run, tmp_path: Path, photo: Path, words: list[str]
) -> None:
    model = vitbase.create_model("testing", num_classes=0, image_size=32)
    path = tmp_path / "features.safetensors"
    vitbase.save_weights(model, path)
    code, out, err = run("predict", photo, "--checkpoint_path", path, *words)
    assert (code, out.count("[]")) == (2, 0)
    assert f"{path} has no head" in err
    assert "vitbase train finetune" in err
    assert "vitbase train linear_probe" in err
    with pytest.raises(WeightsError, match="has no head"):
        vitbase.predict([photo], path)


def test_evaluation_of_weights_without_a_head_says_so(
    run: Run, tmp_path: Path, photo_folder: Path
) -> None:
    vitbase.save_weights(
        vitbase.create_model("testing", num_classes=0, image_size=32), tmp_path / "w.safetensors"
    )
    words = ("--checkpoint_path", tmp_path / "w.safetensors", "--val_data_path", photo_folder)
    code, _, err = run("eval", "finetune", *words, "--device_target", "CPU")
    assert code == 2
    assert "has no head" in err


def test_the_network_that_is_asked_for_is_shown_converted_evaluated_and_trained_on(
    run: Run, tmp_path: Path, photo_folder: Path
) -> None:
    model = vitbase.create_model("testing", num_classes=3, image_size=32, gelu="erf")
    vitbase.save_weights(model, tmp_path / "w.pth", dialect="timm")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    both = tmp_path / "both.pth"
    torch.save({"student": state, "teacher": dict(state)}, both)
    _, out, _ = run("weights", "show", both, "--num_heads", 2)
    assert "taken from its entry 'teacher'" in out
    words = ("--num_heads", 2, "--prefix", "student")
    _, out, _ = run("weights", "show", both, *words)
    assert "taken from its entry 'student'" in out
    code, out, _ = run("weights", "convert", both, tmp_path / "o.pth", "--dialect", "timm", *words)
    assert code == 0
    assert "taken from its entry 'student'" in out
    words = ("--checkpoint_path", both, "--num_heads", 2, "--device_target", "CPU")
    wrong = ("--weights_prefix", "nobody")
    code, _, err = run("eval", "finetune", "--val_data_path", photo_folder, *words, *wrong)
    assert (code, "'student.'" in err) == (2, True)
    code, _, err = run("train", "finetune", "--data_path", photo_folder, *words, *wrong)
    assert (code, "'student.'" in err) == (2, True)


def test_a_run_that_began_with_a_part_of_a_file_is_evaluated_whole(
    run: Run, train: Callable[..., list[str]], tmp_path: Path, photo_folder: Path
) -> None:
    model = vitbase.create_model("testing", num_classes=3, image_size=32, gelu="erf")
    vitbase.save_weights(model, tmp_path / "w.pth", dialect="timm")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    torch.save({"student": state, "teacher": dict(state)}, tmp_path / "both.pth")
    words = ("--checkpoint_path", tmp_path / "both.pth", "--num_heads", 2)
    log = train(*words, "--weights_prefix", "student", "--ignore_weights", "head.*")
    assert any("taken from its entry 'student'" in line for line in log)
    code, out, _ = run("eval", "--checkpoint_path", tmp_path / "run", "--device_target", "CPU")
    assert code == 0
    assert "evaluated" in out
