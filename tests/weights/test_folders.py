"""Folders of Hugging Face and timm, by their own code: it opens ours, and we open its."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import EvalTransform
from vitbase.data.normalize import normalize
from vitbase.errors import WeightsError
from vitbase.model import VisionTransformer, ViTSpec
from vitbase.model.zoo import VARIANTS

TOLERANCE = 1e-5
LABELS = ("bag", "boot", "coat", "dress", "shirt")


def build(**fields: Any) -> VisionTransformer:
    """A small model, every parameter with a value of its own; erf GELU, as most have."""
    sizes = {"patch_size": 8, "width": 48, "depth": 2, "num_heads": 4, "mlp_dim": 96}
    spec = ViTSpec(
        **{"name": "small", **sizes, "image_size": (32, 32), "num_classes": 5, "gelu": "erf"}
        | fields
    )
    model = VisionTransformer(spec)
    return shake(model)


def shake(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return model.eval()


def prepare(**fields: Any) -> Preprocess:
    """Preprocessing that is nobody's default."""
    values = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "interpolation": "bicubic"}
    return Preprocess(**{"height": 32, "width": 32, "channels": 3, **values} | fields)


def prepare_for(spec: ViTSpec) -> Preprocess:
    height, width = spec.image_size
    if spec.in_channels == 1:
        return prepare(height=height, width=width, channels=1, mean=(0.4,), std=(0.2,))
    return prepare(height=height, width=width)


def draw(spec: ViTSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, spec.in_channels, *spec.image_size, generator=generator)


@torch.inference_mode()
def difference(ours: Any, theirs: Any, images: torch.Tensor, kind: str = "logits") -> float:
    """The largest one of outputs; `kind` says which of Hugging Face's are meant."""
    answer = theirs(images)
    if kind == "class token":
        answer = answer.last_hidden_state[:, 0]
    elif not isinstance(answer, torch.Tensor):
        answer = getattr(answer, kind)
    expected = ours(images)
    assert answer.shape == expected.shape
    return float((answer - expected).abs().max())


_DINO: dict[str, Any] = {"layer_scale_init": 0.1, "pool": "token_gap"}
_HEADLESS: dict[str, Any] = {"num_classes": 0}


# Hugging Face: ours, opened there


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "ViTForImageClassification"),
        ({"gelu": "tanh"}, "ViTForImageClassification"),
        ({"norm_eps": 1e-3}, "ViTForImageClassification"),
        ({"image_size": (32, 48)}, "ViTForImageClassification"),
        ({"in_channels": 1}, "ViTForImageClassification"),
        ({"qkv_bias": False}, "ViTForImageClassification"),
        ({"pos_embed": "sincos2d"}, "ViTForImageClassification"),
        ({"pos_embed": "learned_grid"}, "ViTForImageClassification"),
        (_DINO, "Dinov2ForImageClassification"),
        ({**_DINO, "gelu": "tanh", "qkv_bias": False}, "Dinov2ForImageClassification"),
        ({**_DINO, "num_registers": 3}, "Dinov2WithRegistersForImageClassification"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_transformers_opens_our_classifiers_with_their_labels(
    tmp_path: Path, fields: dict[str, Any], kind: str
) -> None:
    model = build(**fields)
    spec = model.spec
    folder = tmp_path / "folder"
    vitbase.save_weights(model, folder, dialect="hf", preprocess=prepare_for(spec), labels=LABELS)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(theirs).__name__ == kind
    assert difference(model, theirs, draw(spec)) < TOLERANCE
    config = theirs.config
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {name: number for number, name in enumerate(LABELS)}
    size = config.image_size
    assert ((size, size) if isinstance(size, int) else tuple(size)) == spec.image_size
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 4)
    assert config.layer_norm_eps == spec.norm_eps
    assert config.hidden_act == {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[spec.gelu]


@pytest.mark.parametrize(
    ("fields", "kind", "output"),
    [
        (_HEADLESS, "ViTModel", "class token"),
        ({**_HEADLESS, "representation_size": 24}, "ViTModel", "pooler_output"),
        ({**_HEADLESS, "layer_scale_init": 0.1}, "Dinov2Model", "class token"),
        (
            {**_HEADLESS, "layer_scale_init": 0.1, "num_registers": 3},
            "Dinov2WithRegistersModel",
            "class token",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_opens_our_models_without_a_head(
    tmp_path: Path, fields: dict[str, Any], kind: str, output: str
) -> None:
    model = build(**fields)
    vitbase.save_weights(model, tmp_path / "folder", dialect="hf")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "folder").eval()
    assert type(theirs).__name__ == kind
    assert difference(model, theirs, draw(model.spec), output) < TOLERANCE


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (32, 32), (31, 64)])
@pytest.mark.parametrize(
    ("needs", "processor"),
    [
        (prepare(), "BitImageProcessor"),
        # A margin of whole pixels: of half ones, transformers cuts off what torchvision rounds.
        (prepare(crop_ratio=0.8, interpolation="bilinear"), "BitImageProcessor"),
        (prepare(crop_ratio=1.0), "BitImageProcessor"),
        (prepare(channels=1, mean=(0.4,), std=(0.2,)), "BitImageProcessor"),
        (prepare(crop_mode="squash", crop_ratio=1.0), "ViTImageProcessor"),
        (prepare(crop_mode="squash", crop_ratio=1.0, width=48), "ViTImageProcessor"),
        (prepare(crop_mode="squash"), "DeiTImageProcessor"),
        (prepare(crop_mode="squash", width=48), "DeiTImageProcessor"),
    ],
    ids=lambda value: (
        f"{value.crop_mode}-{value.crop_ratio}-{value.width}-{value.channels}"
        if isinstance(value, Preprocess)
        else ""
    ),
)
def test_transformers_prepares_images_as_we_do(
    tmp_path: Path, needs: Preprocess, processor: str, size: tuple[int, int]
) -> None:
    model = build(image_size=(needs.height, needs.width), in_channels=needs.channels, depth=1)
    vitbase.save_weights(model, tmp_path / "folder", dialect="hf", preprocess=needs)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert type(theirs).__name__ == processor
    image = draw_photograph(size, needs.channels)
    prepared = theirs(image, return_tensors="pt")["pixel_values"]
    ours = prepare_here(image, needs)
    assert prepared.shape == ours.shape
    assert float((prepared - ours).abs().max()) < TOLERANCE


def draw_photograph(size: tuple[int, int], channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("L") if channels == 1 else image


def prepare_here(image: Image.Image, needs: Preprocess) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "PNG")
    out = np.zeros((1, needs.height, needs.width, needs.channels), np.uint8)
    EvalTransform(needs)(file.getvalue(), None, out[0])
    return normalize(torch.from_numpy(out), needs)


def test_what_transformers_cannot_say_of_images_makes_its_model_refuse_them(
    tmp_path: Path,
) -> None:
    # It would fill a crop of another shape with black bars; better to be told than to be wrong.
    model = build(image_size=(32, 48))
    needs = prepare(width=48)
    vitbase.save_weights(model, tmp_path / "folder", dialect="hf", preprocess=needs)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folder")
    prepared = processor(draw_photograph((50, 40), 3), return_tensors="pt")["pixel_values"]
    with pytest.raises(ValueError, match="doesn't match model"):
        theirs(prepared)
    assert tuple(processor.image_mean) == needs.mean


# Hugging Face: its own, opened here

_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
}
_VIT: dict[str, Any] = {**_SMALL, "intermediate_size": 96}
_NAMED: dict[str, Any] = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {name: number for number, name in enumerate(LABELS)},
}


@pytest.mark.parametrize(
    ("family", "options", "fields"),
    [
        ("ViT", _VIT, {"norm_eps": 1e-12, "gelu": "erf", "pool": "token"}),
        ("ViT", {**_VIT, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
        ("ViT", {**_VIT, "hidden_act": "gelu_pytorch_tanh"}, {"gelu": "tanh"}),
        ("ViT", {**_VIT, "image_size": [32, 48]}, {"image_size": (32, 48)}),
        ("ViT", {**_VIT, "num_channels": 1}, {"in_channels": 1}),
        ("ViT", {**_VIT, "qkv_bias": False}, {"qkv_bias": False}),
        ("Dinov2", {**_SMALL, "mlp_ratio": 2}, {"pool": "token_gap", "mlp_dim": 96}),
        (
            "Dinov2WithRegisters",
            {**_SMALL, "num_register_tokens": 3},
            {"num_registers": 3, "pool": "token_gap"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("shards", ["10GB", "40kB"])
def test_folders_of_transformers_open_here(
    tmp_path: Path, family: str, options: dict[str, Any], fields: dict[str, Any], shards: str
) -> None:
    config = getattr(transformers, f"{family}Config")(**options, **_NAMED)
    theirs = shake(getattr(transformers, f"{family}ForImageClassification")(config))
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards != "10GB")
    loaded = vitbase.load_model(tmp_path)
    assert difference(loaded.model.eval(), theirs, draw(loaded.spec)) < TOLERANCE
    assert loaded.labels == LABELS
    assert loaded.spec.num_heads == 4
    spec = loaded.spec.to_dict()
    assert {name: spec[name] for name in fields} == fields


def test_a_processor_of_transformers_says_what_images_become(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**_VIT, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    usual = vitbase.load_model(tmp_path).preprocess
    assert (usual.mean, usual.crop_mode, usual.interpolation) == ((0.5,) * 3, "squash", "bilinear")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, **statistics
    ).save_pretrained(tmp_path)
    told = vitbase.load_model(tmp_path).preprocess
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (told.crop_mode, told.crop_ratio, told.interpolation) == ("center", 0.8, "bicubic")
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, resample=2, **statistics
    ).save_pretrained(tmp_path)
    told = vitbase.load_model(tmp_path).preprocess
    assert (told.crop_mode, told.crop_ratio, told.interpolation) == ("squash", 1.0, "bilinear")


def test_names_that_transformers_makes_up_are_no_labels(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**_VIT, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["4"] == "LABEL_4"
    assert vitbase.load_model(tmp_path).labels is None


# timm: ours, opened there


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gelu": "tanh"},
        {"image_size": (32, 48)},
        {"in_channels": 1},
        {"in_channels": 4},
        {"qkv_bias": False},
        # 31 / 39 is rounded down, and timm would cut 39 times that off to 30.
        {"width": 39, "num_heads": 3, "mlp_dim": 31},
        {"layer_scale_init": 0.1},
        {"layer_scale_init": 0.1, "num_registers": 3, "num_classes": 0},
        {"num_registers": 3},
        {"pos_embed": "sincos2d"},
        {"pos_embed": "learned_grid"},
        {"pool": "gap"},
        {"pool": "gap", "class_token": False},
        {"pool": "gap_norm"},
        {"pool": "gap_norm", "class_token": False, "num_classes": 0},
        # timm's function of this stem has patches of 32 pixels; it would resample these to that.
        {"stem": "resnet", "patch_size": 16, "resnet_form": "timm", "image_size": (64, 96)},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_timm_opens_our_folders(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = build(**fields)
    spec = model.spec
    labels = LABELS if spec.num_classes else None
    needs = prepare_for(spec) if spec.in_channels != 4 else None
    vitbase.save_weights(
        model, tmp_path / "folder", dialect="timm", preprocess=needs, labels=labels
    )
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert difference(model, theirs, draw(spec)) < TOLERANCE
    assert theirs.pretrained_cfg.get("label_names") == (list(LABELS) if labels else None)
    assert theirs.num_classes == spec.num_classes
    if needs is not None:
        assert timm.data.resolve_data_config(theirs.pretrained_cfg) == {
            "input_size": (spec.in_channels, *spec.image_size),
            "interpolation": "bicubic",
            "mean": needs.mean,
            "std": needs.std,
            "crop_pct": needs.crop_ratio,
            "crop_mode": "center",
        }


@pytest.mark.parametrize(
    ("variant", "fields", "name"),
    [
        ("DINOv2-S_14", {}, "vit_small_patch14_dinov2"),
        ("DINOv2-B_14-reg4", {}, "vit_base_patch14_reg4_dinov2"),
        ("ViT-S_16", {"patch_size": 14}, "vit_small_patch16_224"),
        ("ViT-Ti_16", {}, "vit_tiny_patch16_224"),
        ("ViT-S_32", {}, "vit_small_patch32_224"),
        ("ViT-B_8", {}, "vit_base_patch8_224"),
        ("ViT-L_32", {}, "vit_large_patch32_224"),
        ("ViT-H_14", {}, "vit_huge_patch14_224"),
        ("ViT-g_14", {}, "vit_giant_patch14_224"),
        ("testing", {}, "vit_tiny_patch16_224"),
    ],
)
def test_timm_folders_have_the_name_of_their_own_model(
    tmp_path: Path, variant: str, fields: dict[str, Any], name: str
) -> None:
    torch.manual_seed(0)
    size = 4 * fields.get("patch_size", VARIANTS[variant].patch_size)
    fields = {"depth": 1, "num_classes": 3, "image_size": size, "gelu": "erf", **fields}
    model = vitbase.create_model(variant, **fields).eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    vitbase.save_weights(model, tmp_path / "folder", dialect="timm")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architecture"] == name
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert difference(model, theirs, draw(model.spec)) < TOLERANCE
    assert vitbase.load_model(tmp_path / "folder").spec.num_heads == model.spec.num_heads


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_timm_prepares_images_as_we_do(tmp_path: Path, mode: str) -> None:
    needs = prepare(crop_mode=mode)
    vitbase.save_weights(build(depth=1), tmp_path / "folder", dialect="timm", preprocess=needs)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(theirs.pretrained_cfg))
    image = draw_photograph((64, 96), 3)
    levels = (transform(image) - prepare_here(image, needs)[0]).abs() * 255
    levels *= torch.tensor(needs.std)[:, None, None]
    assert float(levels.max()) < 2  # PIL rounds between its two passes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resnet_layers": (1, 2)}, r"resnet_layers \(1, 2\)"),
        ({"resnet_width_factor": 0.5}, "resnet_width_factor 0.5"),
    ],
)
def test_stems_that_timm_has_no_model_of_are_not_written_as_its_folder(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    stem = {"stem": "resnet", "resnet_form": "timm", "patch_size": 32, "image_size": (64, 64)}
    with pytest.raises(WeightsError, match=message):
        vitbase.save_weights(build(**stem | fields), tmp_path / "folder", dialect="timm")
    assert list(tmp_path.iterdir()) == []


# timm: its own, opened here


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"gelu": "erf", "pool": "token", "num_heads": 4}),
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"img_size": [32, 48]}, {"image_size": (32, 48)}),
        ({"init_values": 0.1, "reg_tokens": 3, "no_embed_class": True}, {"num_registers": 3}),
        ({"global_pool": "avg", "fc_norm": False}, {"pool": "gap"}),
        ({"global_pool": "avg"}, {"pool": "gap_norm"}),
        ({"in_chans": 1}, {"in_channels": 1}),
    ],
    ids="-".join,
)
def test_folders_of_timm_open_here(
    tmp_path: Path, options: dict[str, Any], fields: dict[str, Any], safe: bool
) -> None:
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "patch_size": 8}
    given = {**sizes, "img_size": 32, "num_classes": 5, **options}
    theirs = shake(timm.create_model("vit_tiny_patch16_224", **given))
    channels = options.get("in_chans", 3)
    statistics = {"mean": [0.1, 0.2, 0.3][:channels], "std": [0.4, 0.5, 0.6][:channels]}
    trained = {**theirs.pretrained_cfg, **statistics, "crop_pct": 0.8, "crop_mode": "squash"}
    timm.models.save_for_hf(
        theirs,
        tmp_path,
        model_config={"label_names": list(LABELS), "pretrained_cfg": trained},
        model_args=given,
        safe_serialization=safe,
    )
    loaded = vitbase.load_model(tmp_path)
    assert difference(loaded.model.eval(), theirs, draw(loaded.spec)) < TOLERANCE
    assert loaded.labels == LABELS
    spec = loaded.spec.to_dict()
    assert {name: spec[name] for name in fields} == fields
    told = loaded.preprocess
    assert list(told.mean) == statistics["mean"]
    assert list(told.std) == statistics["std"]
    assert (told.crop_mode, told.crop_ratio, told.interpolation) == ("squash", 0.8, "bicubic")


# Both


@pytest.mark.parametrize("dialect", ["hf", "timm"])
@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"gelu": "tanh"}, prepare(crop_ratio=1.0)),
        ({"image_size": (32, 48)}, prepare(width=48, crop_mode="squash", crop_ratio=1.0)),
        ({"in_channels": 1}, prepare(channels=1, mean=(0.4,), std=(0.2,), crop_ratio=1.0)),
        ({"num_classes": 0}, prepare(crop_ratio=1.0, interpolation="bilinear")),
    ],
    ids=["tanh", "wide", "grey", "headless"],
)
def test_our_folders_come_back_as_they_were(
    tmp_path: Path, dialect: str, fields: dict[str, Any], needs: Preprocess
) -> None:
    model = build(**fields)
    labels = ("größe", "鸟", "a/b", "", "bag") if model.spec.num_classes else None
    vitbase.save_weights(
        model, tmp_path / "folder", dialect=dialect, preprocess=needs, labels=labels
    )
    loaded = vitbase.load_model(tmp_path / "folder")
    # Of a stem without a ResNet, its form says nothing.
    expected = model.spec.replace(name=loaded.spec.name, resnet_form=loaded.spec.resnet_form)
    assert loaded.spec == expected
    assert loaded.labels == labels
    assert loaded.preprocess == needs
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name


@pytest.mark.parametrize("dialect", ["hf", "timm"])
def test_two_classes_of_one_name_stay_two(tmp_path: Path, dialect: str) -> None:
    # ImageNet has two cranes, and two maillots.
    labels = ("crane", "maillot", "crane", "maillot", "coat")
    model = build()
    vitbase.save_weights(model, tmp_path / "folder", dialect=dialect, labels=labels)
    assert vitbase.load_model(tmp_path / "folder").labels == labels
    if dialect == "hf":
        opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folder")
        assert opened.config.num_labels == 5
        assert difference(model, opened.eval(), draw(model.spec)) < TOLERANCE


@pytest.mark.parametrize("dialect", ["hf", "timm"])
def test_more_labels_than_classes_are_refused(tmp_path: Path, dialect: str) -> None:
    with pytest.raises(WeightsError, match="6 labels for 5 classes"):
        vitbase.save_weights(
            build(), tmp_path / "folder", dialect=dialect, labels=(*LABELS, "sixth")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_and_for_others_to_read(tmp_path: Path) -> None:
    vitbase.save_weights(
        build(), tmp_path / "folder", dialect="hf", preprocess=prepare(), labels=LABELS
    )
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == names
    modes = {path.stat().st_mode for path in (tmp_path / "folder").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode}
    (tmp_path / "plain").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# What a config.json claims


@pytest.mark.parametrize(
    ("name", "heads", "gelu"),
    [
        ("vit_base_patch16_gap_224", 16, "erf"),
        ("vit_base_patch32_siglip_gap_256", 12, "tanh"),
        ("vit_large_patch16_siglip_gap_512", 16, "tanh"),
        ("vit_so400m_patch14_siglip_gap_224", 16, "erf"),
        ("vit_so400m_patch16_siglip_gap_256", 16, "tanh"),
        ("vit_gigantic_patch14_224", 16, "erf"),
        ("test_vit", 2, "erf"),
    ],
)
def test_what_the_name_of_a_model_of_timm_implies_is_known(
    tmp_path: Path, name: str, heads: int, gelu: str
) -> None:
    patch = timm.create_model(name, depth=0, num_classes=0).patch_embed.patch_size[0]
    arguments = {"depth": 1, "num_classes": 3, "img_size": 2 * patch}
    theirs = timm.create_model(name, **arguments).eval()
    with torch.no_grad():  # so that no part of it is as good as absent
        for value in theirs.parameters():
            value.add_(torch.randn(value.shape) * 0.02)
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    loaded = vitbase.load_model(tmp_path)
    assert (loaded.spec.num_heads, loaded.spec.gelu) == (heads, gelu)
    assert difference(loaded.model.eval(), theirs, draw(loaded.spec)) < TOLERANCE


def test_a_model_of_timm_that_only_has_our_names_is_refused(tmp_path: Path) -> None:
    arguments = {"depth": 1, "num_classes": 3, "img_size": 32}
    theirs = timm.create_model("vit_base_patch16_rpn_224", **arguments)
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    with pytest.raises(WeightsError, match=r"model\.safetensors: it is of timm's vit_base_.*_rpn_"):
        vitbase.load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", "x"),
        ("num_attention_heads", 0),
        ("num_attention_heads", True),
        ("image_size", "x"),
        ("image_size", ["a", "b"]),
        ("image_size", [32]),
        ("image_size", -32),
        ("layer_norm_eps", "x"),
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", 10**400),
        ("hidden_act", "relu"),
        ("hidden_act", ["gelu"]),
        ("pooler_act", "relu"),
        ("id2label", [1]),
        ("id2label", {"x": "y"}),
    ],
)
def test_what_cannot_be_in_a_config_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    vitbase.save_weights(build(num_classes=0), tmp_path / "hf", dialect="hf")
    place = tmp_path / "hf" / "config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps({**config, key: value}))
    with pytest.raises(WeightsError, match=r"hf/model\.safetensors.*config\.json"):
        vitbase.load_model(tmp_path / "hf")
