"""Conversion: what is written equals what was read, or nothing is written."""

from __future__ import annotations

import copy
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.errors import CheckpointError, WeightsError
from vitbase.model import VisionTransformer, ViTSpec
from vitbase.weights import convert
from vitbase.weights.files.open import open_tensors
from vitbase.weights.save import save_weights

REFERENCE = Path(__file__).parents[1] / "reference"
LABELS = ("bag", "boot", "coat", "dress", "shirt")
PREPROCESS = Preprocess(
    height=32,
    width=32,
    channels=3,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    crop_ratio=1.0,
    interpolation="bicubic",
)
TANH = {
    "mindspore": "w.ckpt",
    "google": "w.npz",
    "hf": "w",
    "timm": "w",
    "vitbase": "w.safetensors",
}
ERF = {"torchvision": "w.pth", "timm": "w.pth", "hf": "w", "vitbase": "w.safetensors"}


def build(**fields: Any) -> VisionTransformer:
    """A small model, every parameter with a value of its own."""
    sizes = {"patch_size": 8, "width": 48, "depth": 2, "num_heads": 4, "mlp_dim": 96}
    shape = {"image_size": (32, 32), "num_classes": 5}
    model = VisionTransformer(ViTSpec(**{"name": "small", **sizes, **shape, **fields}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the weights of a small model, with labels and preprocessing, in a place of its own."""

    def write(**fields: Any) -> Path:
        path = tmp_path / "source" / "source.safetensors"
        model = build(**fields)
        labels = LABELS if model.spec.num_classes else None
        vitbase.save_weights(model, path, preprocess=PREPROCESS, labels=labels)
        return path

    return write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder to write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written


@pytest.mark.parametrize(
    ("gelu", "dialect", "name"),
    [("tanh", *item) for item in TANH.items()] + [("erf", *item) for item in ERF.items()],
)
def test_there_and_back_changes_no_bit(
    write: Callable[..., Path], out: Path, gelu: str, dialect: str, name: str
) -> None:
    source = write(gelu=gelu)
    done = vitbase.convert_weights(source, out / name, dialect=dialect)
    assert (done.path, done.dialect, done.difference, done.changed) == (out / name, dialect, 0, ())
    assert names_in(out) == [name]
    place = out / name / "model.safetensors" if name == "w" else out / name
    assert done.tensors == len(open_tensors(place).tensors)
    back = vitbase.convert_weights(
        out / name, out / "back.safetensors", dialect="vitbase", num_heads=4
    )
    assert back.difference == 0
    before, after = (vitbase.load_model(p).model.state_dict() for p in (source, back.path))
    assert list(before) == list(after)
    for tensor, value in before.items():
        assert torch.equal(after[tensor], value), tensor


def test_a_dinov2_with_registers_goes_to_hugging_face_and_back(
    write: Callable[..., Path], out: Path
) -> None:
    fields = {"layer_scale_init": 0.1, "num_registers": 3, "pool": "token_gap", "gelu": "erf"}
    source = write(**fields)
    to_hf = vitbase.convert_weights(source, out / "hf", dialect="hf")
    to_dinov2 = vitbase.convert_weights(to_hf.path, out / "w.pth", dialect="dinov2")
    # Both have a mask token, which no classifier reads.
    assert to_dinov2.loaded.report.dropped == ("dinov2_with_registers.embeddings.mask_token",)
    back = vitbase.load_model(to_dinov2.path, num_heads=4)
    assert back.report.dropped == ("mask_token",)
    for name, value in vitbase.load_model(source).model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("dialect", "name"),
    [("vitbase", "w.safetensors"), ("hf", "w"), ("timm", "w"), ("timm", "w.safetensors")],
)
def test_labels_and_preprocessing_go_along_where_they_can(
    write: Callable[..., Path], out: Path, dialect: str, name: str
) -> None:
    vitbase.convert_weights(write(), out / name, dialect=dialect)
    loaded = vitbase.load_model(out / name)
    assert (loaded.labels, loaded.preprocess) == (LABELS, PREPROCESS)
    assert (loaded.spec.gelu, loaded.spec.num_heads) == ("tanh", 4)


def test_what_a_source_does_not_tell_can_be_told(out: Path) -> None:
    source = REFERENCE / "mindspore_tiny" / "train.ckpt"
    with pytest.raises(WeightsError, match="num_heads"):
        vitbase.convert_weights(source, out / "w.npz", dialect="google")
    assert names_in(out) == []
    done = vitbase.convert_weights(source, out / "w.npz", dialect="google", num_heads=3)
    assert done.difference == 0
    assert vitbase.load_model(done.path).spec.num_heads == 3
    # The optimizer's tensors stay behind.
    assert len(done.loaded.report.dropped) == 43
    assert len(done.loaded.report.mapped) == 32


def test_tensors_that_are_ignored_stay_behind(write: Callable[..., Path], out: Path) -> None:
    path = vitbase.convert_weights(write(gelu="erf"), out / "w.pth", dialect="timm").path
    state = torch.load(path, weights_only=True)
    torch.save({**state, "aux_head.weight": torch.zeros(3)}, out / "aux.pth")
    with pytest.raises(WeightsError, match=r"aux_head\.weight.*ignore it by name"):
        vitbase.convert_weights(out / "aux.pth", out / "b.pth", dialect="timm", num_heads=4)
    assert not (out / "b.pth").exists()
    done = vitbase.convert_weights(
        out / "aux.pth", out / "b.pth", dialect="timm", num_heads=4, ignore=["aux_*"]
    )
    assert done.loaded.report.dropped == ("aux_head.weight",)
    assert set(torch.load(out / "b.pth", weights_only=True)) == set(state)


# What the other system must be told


@pytest.mark.parametrize(
    ("fields", "dialect", "name", "told"),
    [
        ({}, "mindspore", "w.ckpt", "num_heads 4"),
        ({}, "timm", "w.safetensors", "num_heads 4, act_layer='gelu_tanh'"),
        ({"gelu": "erf"}, "timm", "w.pth", "num_heads 4"),
        ({"gelu": "erf"}, "torchvision", "w.pth", "num_heads 4"),
        (
            {"gelu": "erf", "pool": "gap", "class_token": False},
            "timm",
            "w.pth",
            "num_heads 4, global_pool='avg', fc_norm=False",
        ),
        (
            {"gelu": "erf", "pool": "gap_norm", "width": 128, "num_heads": 2},
            "timm",
            "w.pth",
            "global_pool='avg', fc_norm=True",
        ),
        ({"gelu": "erf", "num_heads": 2, "width": 128}, "timm", "w.pth", None),
        ({}, "google", "w.npz", None),
        ({}, "hf", "w", None),
        ({}, "timm", "w", None),
        ({}, "vitbase", "w.safetensors", None),
    ],
)
def test_what_a_file_does_not_tell_is_told_to_the_user(
    write: Callable[..., Path],
    out: Path,
    fields: dict[str, Any],
    dialect: str,
    name: str,
    told: str | None,
) -> None:
    done = vitbase.convert_weights(write(**fields), out / name, dialect=dialect)
    expected = f"Tell {dialect} when it builds the model: {told}."
    assert [note for note in done.notes if note.startswith("Tell")] == ([expected] if told else [])


# What may change


@pytest.mark.parametrize(
    ("fields", "dialect", "name", "change"),
    [
        ({"gelu": "erf"}, "mindspore", "w.ckpt", ("gelu", "erf", "tanh")),
        ({"gelu": "erf"}, "google", "w.npz", ("gelu", "erf", "tanh")),
        ({"gelu": "tanh"}, "timm", "w.pth", ("gelu", "tanh", "erf")),
        ({"gelu": "tanh"}, "torchvision", "w.pth", ("gelu", "tanh", "erf")),
        ({"norm_eps": 1e-3}, "mindspore", "w.ckpt", ("norm_eps", 1e-3, 1e-6)),
        (
            {"stem": "resnet", "resnet_form": "timm", "patch_size": 32, "image_size": (64, 64)},
            "google",
            "w.npz",
            ("resnet_form", "timm", "jax"),
        ),
    ],
)
def test_what_the_other_system_computes_otherwise_must_be_allowed(
    write: Callable[..., Path],
    out: Path,
    fields: dict[str, Any],
    dialect: str,
    name: str,
    change: tuple[str, object, object],
) -> None:
    source = write(**fields)
    with pytest.raises(WeightsError, match=change[0]):
        vitbase.convert_weights(source, out / "new" / name, dialect=dialect)
    assert not (out / "new" / name).exists()
    done = vitbase.convert_weights(source, out / name, dialect=dialect, allow=[change[0]])
    assert done.changed == (change,)
    assert 0 < done.difference < 0.5
    assert names_in(out) in ([name], ["new", name])


def test_a_difference_of_rounding_size_needs_no_permission(
    write: Callable[..., Path], out: Path
) -> None:
    done = vitbase.convert_weights(write(norm_eps=1.001e-6), out / "w.ckpt", dialect="mindspore")
    assert done.changed == (("norm_eps", 1.001e-6, 1e-6),)
    assert done.difference <= convert.TOLERANCE


def test_nothing_else_can_be_allowed(write: Callable[..., Path], out: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"'pool' cannot be allowed.*gelu, resnet_form, norm_eps"
    ):
        vitbase.convert_weights(write(), out / "w.pth", dialect="timm", allow=["gelu", "pool"])
    assert names_in(out) == []


@pytest.mark.parametrize(
    ("fields", "dialect", "name", "message"),
    [
        ({"pool": "gap"}, "mindspore", "w.ckpt", "mindspore cannot express small with pool 'gap'"),
        ({"num_registers": 2}, "hf", "w", "hf cannot express small with layer_scale_init None"),
        ({"num_classes": 0}, "torchvision", "w.pth", "gelu 'tanh', no classes"),
        ({"representation_size": 9}, "timm", "w", "representation_size 9"),
        ({"gelu": "erf", "image_size": (32, 48)}, "torchvision", "w.pth", "32x48 .* no square"),
        ({}, "timm", "w.npz", r"Weights of timm are written as .*not as '\.npz'"),
        ({}, "google", "w", r"Weights of google are written as \.npz; not as a folder"),
        ({}, "timmm", "w.pth", "Unknown dialect 'timmm'. Did you mean 'timm'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    write: Callable[..., Path],
    out: Path,
    fields: dict[str, Any],
    dialect: str,
    name: str,
    message: str,
) -> None:
    with pytest.raises(WeightsError, match=message):
        vitbase.convert_weights(write(**fields), out / "new" / name, dialect=dialect)
    assert names_in(out) == []


# Nothing is left of what failed

Writer = Callable[..., None]


def spoil(monkeypatch: pytest.MonkeyPatch, spoiling: Callable[[VisionTransformer], None]) -> None:
    """Let what is written be that of another model."""

    def save(model: VisionTransformer, path: Path, **options: Any) -> None:
        other = copy.deepcopy(model)
        with torch.no_grad():
            spoiling(other)
        save_weights(other, path, **options)

    monkeypatch.setattr(convert, "save_weights", save)


@pytest.mark.parametrize("name", ["w.safetensors", "folder"])
@pytest.mark.parametrize(
    ("parameter", "message"), [("head.bias", "differ by up to 1 "), ("norm.bias", "differ by up")]
)
def test_nothing_is_left_if_the_outputs_differ(
    write: Callable[..., Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    parameter: str,
    message: str,
) -> None:
    spoil(monkeypatch, lambda model: model.get_parameter(parameter).add_(1))
    (out / "beside").write_text("stays")
    dialect = "timm" if name == "folder" else "vitbase"
    with pytest.raises(WeightsError, match=rf"{name} was not written: .*{message}"):
        vitbase.convert_weights(write(), out / name, dialect=dialect)
    assert names_in(out) == ["beside"]


def test_features_are_compared_where_a_head_of_zeros_hides_them(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    torch.nn.init.zeros_(model.head.weight)
    vitbase.save_weights(model, tmp_path / "w.safetensors")
    spoil(monkeypatch, lambda model: model.norm.bias.add_(0.01))
    with pytest.raises(WeightsError, match=r"differ by up to 0\.01"):
        vitbase.convert_weights(tmp_path / "w.safetensors", out / "w.npz", dialect="google")
    assert names_in(out) == []


def test_a_difference_of_one_part_in_a_hundred_thousand_is_the_bound(
    write: Callable[..., Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write()
    with torch.inference_mode():
        images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        scale = float(vitbase.load_model(source).model(images).abs().max())
    spoil(monkeypatch, lambda model: model.head.bias.add_(0.1 * convert.TOLERANCE))
    done = vitbase.convert_weights(source, out / "w.npz", dialect="google")
    assert 0 < done.difference < convert.TOLERANCE
    spoil(monkeypatch, lambda model: model.head.bias.add_(10 * scale * convert.TOLERANCE))
    with pytest.raises(WeightsError, match="was not written"):
        vitbase.convert_weights(source, out / "x.npz", dialect="google")


def test_numbers_that_are_none_are_not_written(
    write: Callable[..., Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda model: model.head.bias.fill_(float("nan")))
    with pytest.raises(WeightsError, match="'head/bias' holds values that are not finite"):
        vitbase.convert_weights(write(), out / "w.npz", dialect="google")
    assert names_in(out) == []


@pytest.mark.parametrize("name", ["w.safetensors", "folder"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_nothing_is_left_if_writing_breaks_off(
    write: Callable[..., Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failure: BaseException,
) -> None:
    def save(model: VisionTransformer, path: Path, **options: Any) -> None:
        save_weights(model, path, **options)
        assert path.exists()
        raise failure

    source = write()
    monkeypatch.setattr(convert, "save_weights", save)
    expected = WeightsError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        vitbase.convert_weights(
            source, out / name, dialect="timm" if name == "folder" else "vitbase"
        )
    if expected is WeightsError:
        assert str(caught.value) == f"Cannot write {out / name}: No space left on device."
    assert names_in(out) == []


def test_what_an_interrupted_run_left_is_no_obstacle(write: Callable[..., Path], out: Path) -> None:
    (out / ".writing-0123abcd-w").mkdir()
    (out / ".writing-0123abcd-w" / "half").write_text("x")
    source = write()
    vitbase.convert_weights(source, out / "w", dialect="hf")
    vitbase.convert_weights(source, out / "w.npz", dialect="google")
    assert names_in(out) == [".writing-0123abcd-w", "w", "w.npz"]
    assert names_in(out / "w") == ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
def test_nothing_is_overwritten(write: Callable[..., Path], out: Path, kind: str) -> None:
    place = out / ("w.npz" if kind == "file" else "w")
    if kind == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        if kind == "folder":
            (place / "mine").write_text("precious")
    dialect = "google" if kind == "file" else "hf"
    with pytest.raises(WeightsError, match=rf"{place.name} exists already"):
        vitbase.convert_weights(write(), place, dialect=dialect)
    assert names_in(out) == [place.name]
    kept = {path.read_text() for path in out.rglob("*") if path.is_file()}
    assert kept == (set() if kind == "empty folder" else {"precious"})


def test_a_source_can_be_no_target_of_itself(write: Callable[..., Path]) -> None:
    source = write()
    before = source.read_bytes()
    with pytest.raises(WeightsError, match="exists already"):
        vitbase.convert_weights(source, source, dialect="vitbase")
    assert source.read_bytes() == before
    assert names_in(source.parent) == ["source.safetensors"]


def test_a_source_that_cannot_be_read_leaves_nothing(out: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        vitbase.convert_weights(tmp_path / "nowhere", out / "w.npz", dialect="google")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match=r"text\.pth is no weights file"):
        vitbase.convert_weights(tmp_path / "text.pth", out / "w.npz", dialect="google")
    assert names_in(out) == []


def test_missing_folders_are_made_and_others_may_read_what_is_in_them(
    write: Callable[..., Path], out: Path
) -> None:
    source = write()
    (out / "plain").touch()
    for dialect, name in TANH.items():
        place = out / dialect / "deep" / name
        vitbase.convert_weights(source, place, dialect=dialect)
        files = [place] if place.is_file() else list(place.iterdir())
        assert {path.stat().st_mode for path in files} == {(out / "plain").stat().st_mode}


# Places that cannot be written


@pytest.mark.parametrize(
    "name", ["file/w.safetensors", f"{'n' * 300}.safetensors", f"{'n' * 240}.safetensors"]
)
def test_an_impossible_place_is_one_message(
    write: Callable[..., Path], out: Path, name: str
) -> None:
    (out / "file").touch()
    with pytest.raises(WeightsError) as caught:
        vitbase.convert_weights(write(), out / name, dialect="vitbase")
    assert str(caught.value).startswith(f"Cannot write {out / name}: ")
    assert names_in(out) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
@pytest.mark.parametrize(
    ("dialect", "name"),
    [*TANH.items(), ("timm", "w.safetensors"), ("timm", "w.pth")],
)
def test_a_disk_that_is_full_is_one_message_that_names_the_place(
    write: Callable[..., Path], out: Path, dialect: str, name: str
) -> None:
    import resource

    source = write(gelu="erf" if name == "w.pth" else "tanh")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes; fails as a full disk does
    try:
        with pytest.raises(WeightsError) as caught:
            vitbase.convert_weights(source, out / name, dialect=dialect)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"Cannot write {out / name}: File too large."
    assert names_in(out) == []


# What the user is told


def test_another_epsilon_is_refused_with_the_way_to_accept_it(
    write: Callable[..., Path], out: Path
) -> None:
    source = write(gelu="erf", norm_eps=1e-3)
    with pytest.raises(WeightsError, match=r"became 1e-06\)\. Accept it with --allow norm_eps\."):
        vitbase.convert_weights(source, out / "w.pth", dialect="timm")
    done = vitbase.convert_weights(source, out / "w.pth", dialect="timm", allow=["norm_eps"])
    assert done.changed == (("norm_eps", 1e-3, 1e-6),)


@pytest.mark.parametrize(("dialect", "name"), TANH.items())
def test_what_a_file_has_no_place_for_is_said(
    write: Callable[..., Path], out: Path, dialect: str, name: str
) -> None:
    done = vitbase.convert_weights(write(), out / name, dialect=dialect)
    lost = [note for note in done.notes if "has no place for" in note]
    if name in ("w.ckpt", "w.npz"):
        assert "5 labels, mean (0.1, 0.2, 0.3) (read back as (0." in lost[0]
    else:
        assert lost == []
