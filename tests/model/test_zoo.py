"""The table of variants: sizes, names, overrides."""

from __future__ import annotations

import json

import pytest
import torch

from vitbase.errors import ConfigError
from vitbase.model import VARIANTS, ViTSpec, build_model, create_model, find_variant, variant_spec

# Parameters with 1000 classes at 224 pixels (28, one channel, for the Mini). "timm" is the count
# of the model of that name in timm 1.0.31.
PARAMETERS = {
    "testing": 21_390,  # by hand: 7690 stem, 1970 positions, 10 class, 700 block, 20 + 11000
    "ViT-Ti_16": 5_717_416,  # timm vit_tiny_patch16_224
    "ViT-S_16": 22_050_664,  # timm vit_small_patch16_224
    "ViT-S_32": 22_878_952,  # timm vit_small_patch32_224
    "ViT-B_8": 86_576_872,  # timm vit_base_patch8_224
    "ViT-B_16": 86_567_656,  # timm vit_base_patch16_224; torchvision vit_b_16
    "ViT-B_32": 88_224_232,  # timm vit_base_patch32_224; torchvision vit_b_32
    "ViT-L_16": 304_326_632,  # timm vit_large_patch16_224; torchvision vit_l_16
    "ViT-L_32": 306_535_400,  # timm vit_large_patch32_224; torchvision vit_l_32
    "ViT-H_14": 632_045_800,  # timm vit_huge_patch14_224; torchvision vit_h_14
    "ViT-g_14": 1_012_611_432,  # timm vit_giant_patch14_224
    "R50+ViT-B_16": 98_659_112,  # timm vit_base_r50_s16_224
    "R26+ViT-B_32": 101_383_976,  # timm vit_base_r26_s32_224
    "R26+ViT-S_32": 36_431_912,  # timm vit_small_r26_s32_224
    "R50+ViT-L_32": 328_994_856,  # timm vit_large_r50_s32_224
    "DINOv2-S_14": 22_013_800,  # timm vit_small_patch14_dinov2 with img_size=224
    "DINOv2-B_14": 86_493_928,  # timm vit_base_patch14_dinov2 with img_size=224
    "DINOv2-L_14": 304_252_904,  # timm vit_large_patch14_dinov2 with img_size=224
    # The original keeps the class token's position, which timm's reg4 models fold into the token:
    # one row of the width more than timm.
    "DINOv2-S_14-reg4": 22_014_952 + 384,
    "DINOv2-B_14-reg4": 86_496_232 + 768,
    "DINOv2-L_14-reg4": 304_255_976 + 1024,
    # The paper's table has 4.6 M, 17.8 M and 81.6 M (arXiv 2106.14881, ViT_C-1GF, 4GF, 18GF).
    "ViTC-Ti_16": 4_567_936,
    "ViTC-S_16": 17_754_136,
    "ViTC-B_16": 81_573_160,
    "ViTC-Mini_8": 375_296,  # our own
}


def count_parameters(spec: ViTSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(spec).parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_count_of_every_row(name: str) -> None:
    assert name in PARAMETERS, f"{name} has no number here: count it, and say where it is from"
    assert count_parameters(variant_spec(name)) == PARAMETERS[name]


def test_numbers_belong_to_rows() -> None:
    assert set(PARAMETERS) == set(VARIANTS)


def test_parameter_count_at_dinov2_published_size() -> None:
    # facebookresearch/dinov2: 518 pixels, no head; timm vit_small_patch14_dinov2 with 0 classes.
    assert count_parameters(variant_spec("DINOv2-S_14", image_size=518, num_classes=0)) == (
        22_056_192
    )


@pytest.mark.parametrize(
    ("alias", "name", "size"),
    [
        ("ViT-B_16", "ViT-B_16", None),
        ("B/16", "ViT-B_16", None),
        ("vit_b_16", "ViT-B_16", None),
        ("VIT-b/16", "ViT-B_16", None),
        ("vit_base_patch16_224", "ViT-B_16", 224),
        ("vit_base_patch16_384", "ViT-B_16", 384),
        ("ViT-B_16-224", "ViT-B_16", 224),
        ("ti/16", "ViT-Ti_16", None),
        ("vit_huge_patch14_224", "ViT-H_14", 224),
        ("R50-ViT-B_16", "R50+ViT-B_16", None),
        ("R50_L_32", "R50+ViT-L_32", None),
        ("vit_base_r50_s16_384", "R50+ViT-B_16", 384),
        ("vit_small_r26_s32_224", "R26+ViT-S_32", 224),
        ("dinov2_vits14", "DINOv2-S_14", None),
        ("dinov2_vitl14_reg", "DINOv2-L_14-reg4", None),
        ("vit_base_patch14_reg4_dinov2", "DINOv2-B_14-reg4", None),
        ("vitc-s/16", "ViTC-S_16", None),
        ("Testing", "testing", None),
    ],
)
def test_names(alias: str, name: str, size: int | None) -> None:
    assert find_variant(alias) == (name, size)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_is_found_by_its_own_name(name: str) -> None:
    assert find_variant(name) == (name, None)
    assert find_variant(name.upper()) == (name, None)


@pytest.mark.parametrize(
    ("name", "hint"), [("ViT-B_61", "'ViT-B_16'"), ("vit_lagre_patch16", "'ViT-L_16'")]
)
def test_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown model '{name}'. Did you mean {hint}"):
        create_model(name)


def test_unknown_option_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dropout'"):
        create_model("testing", drop_out=0.1)  # type: ignore[call-arg]


def test_image_size_and_overrides() -> None:
    assert variant_spec("vit_base_patch16_384").image_size == (384, 384)
    assert variant_spec("vit_base_patch16_384", image_size=64).image_size == (64, 64)
    spec = variant_spec("B/16", image_size=(64, 32), num_classes=10, in_channels=1, gelu="erf")
    assert (spec.grid_hw, spec.num_classes, spec.in_channels, spec.gelu) == ((4, 2), 10, 1, "erf")
    mini = variant_spec("ViTC-Mini_8")
    assert (mini.image_size, mini.in_channels, mini.grid_hw) == ((28, 28), 1, (4, 4))


@pytest.mark.parametrize("name", VARIANTS)
def test_spec_survives_json(name: str) -> None:
    spec = variant_spec(name)
    assert ViTSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_from_dict_refuses_unknown_and_missing_keys() -> None:
    values = variant_spec("testing").to_dict()
    with pytest.raises(ConfigError, match=r"'heads'.*Did you mean"):
        ViTSpec.from_dict({**values, "heads": 2})
    del values["width"]
    with pytest.raises(ConfigError, match="width"):
        ViTSpec.from_dict(values)
