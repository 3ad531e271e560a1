"""Each protocol against the package that it is named for, pixel by pixel; and who wins over it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.transforms as tv
from made_images import encode, photo
from PIL import Image
from torchvision.models import ViT_B_16_Weights, ViT_L_32_Weights

import vitbase
from vitbase.config.config import Config, load_config
from vitbase.config.evaluating import EvaluationSection, ProtocolName, ViewsName
from vitbase.config.preprocess import Preprocess, default_preprocess
from vitbase.data.normalize import normalize
from vitbase.data.resize import sample_window
from vitbase.errors import ConfigError
from vitbase.evaluation.protocols import PROTOCOLS, prepare
from vitbase.evaluation.views import VIEWS

SIZES = [(375, 500), (500, 334), (224, 224), (90, 131)]
HALF = Preprocess(
    height=224, width=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_ratio=0.7
)


def tensorflow_resize(image: Image.Image, size: int) -> torch.Tensor:
    """Resize by the definition: each pixel a mean of four, by how near their centres are.

    Written apart from the package, in another arithmetic: a matrix for each axis, in float64.
    """

    def matrix(size_in: int) -> np.ndarray:
        weights = np.zeros((size, size_in))
        for place in range(size):
            centre = (place + 0.5) * size_in / size - 0.5
            low = int(np.floor(centre))
            for pixel, weight in ((low, 1 - (centre - low)), (low + 1, centre - low)):
                weights[place, min(max(pixel, 0), size_in - 1)] += weight
        return weights

    pixels = np.asarray(image.convert("RGB"), np.float64)
    rows = np.tensordot(matrix(pixels.shape[0]), pixels, (1, 0))
    return torch.from_numpy(np.tensordot(matrix(pixels.shape[1]), rows, (1, 1))).transpose(0, 1)


def to_half(levels_HWC: torch.Tensor) -> torch.Tensor:
    return ((levels_HWC - 127.5) / 127.5).permute(2, 0, 1)


def deits(size: int) -> Callable[[Image.Image], Any]:
    return tv.Compose(
        [
            tv.Resize(int(size / 0.875), interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(size),
            tv.ToTensor(),
            tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def timms(name: str) -> Callable[[Image.Image], Any]:
    settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**settings, is_training=False)


THEIRS: list[tuple[str, int, Callable[[Image.Image], Any]]] = [
    ("vit_paper", 224, lambda image: to_half(tensorflow_resize(image, 224))),
    ("vit_paper", 384, lambda image: to_half(tensorflow_resize(image, 384))),
    # A number that is whole but for rounding errors must not fall by a level.
    ("google_jax", 224, lambda i: to_half(torch.floor(tensorflow_resize(i, 224) + 1e-4))),
    ("timm", 224, timms("vit_base_patch16_224.augreg_in21k_ft_in1k")),
    ("timm", 384, timms("vit_base_patch16_384.augreg_in21k_ft_in1k")),
    ("deit", 224, deits(224)),
    ("deit", 384, deits(384)),
    ("torchvision", 224, ViT_B_16_Weights.IMAGENET1K_V1.transforms()),
    ("torchvision", 224, ViT_L_32_Weights.IMAGENET1K_V1.transforms()),
]


@pytest.mark.parametrize(("name", "side", "theirs"), THEIRS)
def test_pixels_are_the_packages_own(name, side, theirs):
    """Within the row's tolerance, in levels of 255, after everything up to the model's input."""
    config = Config().replace(protocol=name)
    weights = HALF.model_copy(update={"height": side, "width": side})
    preparation = prepare(config, weights, "w")
    preprocess = preparation.preprocess
    std = torch.tensor(preprocess.std)[:, None, None]
    most = 0.0
    for seed, size in enumerate(SIZES):
        raw = encode(photo(*size, seed=seed), quality=90)
        out = np.empty((side, side, 3), np.uint8)
        preparation.transform(raw, None, out)
        ours = normalize(torch.from_numpy(out)[None], preprocess)[0]
        difference = (ours - theirs(Image.open(io.BytesIO(raw)))).abs() * std * 255
        most = max(most, float(difference.max()))
    assert most <= PROTOCOLS[name].tolerance + 1e-3


def test_every_protocol_is_tested_and_can_be_asked_for():
    assert {name for name, _, _ in THEIRS} == {*PROTOCOLS} - {"weights"}
    assert set(get_args(ProtocolName)) == {*PROTOCOLS}
    assert set(get_args(ViewsName)) == {*VIEWS}
    assert EvaluationSection().protocol == "weights"


def test_timms_models_of_384_pixels_see_the_whole_image():
    """The rule of the row, against timm's own table of Vision Transformers on ImageNet-1k."""
    names = timm.list_pretrained("vit_*_patch*.augreg*_in1k")
    told = {}
    for name in names:
        settings = timm.get_pretrained_cfg(name)
        side = settings.input_size[-1]
        told.setdefault((side, settings.crop_pct, settings.interpolation), name)
    expected = {(side, PROTOCOLS["timm"].at((side, side))["crop_ratio"]) for side in (224, 384)}
    assert {(side, ratio) for side, ratio, _ in told} == expected
    assert {interpolation for *_, interpolation in told} == {"bicubic"}


@pytest.mark.parametrize("size", [(5, 7), (224, 3), (40, 60)])
def test_a_window_is_cut_from_the_whole_and_torch_agrees(size):
    pixels = photo(31, 47, seed=2)
    whole = sample_window(pixels, size, (0, 0, *size), "nearest")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    torchs = F.interpolate(image, size=size, mode="bilinear", antialias=False)[0].permute(1, 2, 0)
    assert np.abs(whole - torchs.numpy()).max() <= 0.501
    top, left, height, width = size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2
    part = sample_window(pixels, size, (top, left, height, width), "nearest")
    np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_given_options_win_and_the_note_says_what_is_set():
    config = Config().replace(protocol="deit", crop_ratio=0.95)
    preparation = prepare(config, HALF, "w")
    assert preparation.preprocess.crop_ratio == 0.95
    assert preparation.preprocess.interpolation == "bicubic"
    assert preparation.preprocess.mean == (0.485, 0.456, 0.406)
    (note,) = preparation.notes
    assert note.startswith("Protocol deit at 224x224 sets crop_mode center, interpolation bicubic")
    assert "given options win: crop_ratio 0.95 (deit/datasets.py" in note


def test_a_protocol_wins_over_a_recipe_and_a_runs_file(tmp_path):
    saved = Config().with_preprocess(HALF.model_copy(update={"interpolation": "bilinear"}))
    (tmp_path / "run.toml").write_text(saved.to_toml())
    told = prepare(load_config(str(tmp_path / "run.toml"), protocol="timm"), HALF, "w").preprocess
    assert (told.interpolation, told.crop_ratio) == ("bicubic", 0.9)
    # In a file that somebody wrote with a protocol in it, what stands beside it wins.
    (tmp_path / "own.toml").write_text('[data]\ncrop_ratio = 0.8\n[evaluation]\nprotocol = "deit"')
    told = prepare(load_config(str(tmp_path / "own.toml")), HALF, "w").preprocess
    assert (told.interpolation, told.crop_ratio) == ("bicubic", 0.8)
    # By default a run's file is what it was; asked for, the weights' own win over it.
    path = str(tmp_path / "run.toml")
    other = HALF.model_copy(update={"crop_ratio": 1.0})
    assert prepare(load_config(path), other, "w").preprocess.crop_ratio == 0.7
    asked = load_config(path, protocol="weights")
    assert prepare(asked, other, "w").preprocess.crop_ratio == 1.0


def test_what_a_protocol_cannot_do_is_refused():
    grey = default_preprocess(28, 28, 1)
    with pytest.raises(ConfigError, match="Protocol 'deit' is for images of 3 channels, but w "):
        prepare(Config().replace(protocol="deit"), grey, "w")
    assert prepare(Config().replace(protocol="timm"), grey, "w").preprocess.channels == 1
    crops = Config().replace(protocol="google_jax", test_time_augmentation="five_crop")
    with pytest.raises(ConfigError, match="all crops of test_time_augmentation five_crop"):
        prepare(crops, HALF, "w")


def test_training_has_no_use_for_it(tiny_config, vitbase_command):
    with pytest.raises(ConfigError, match="are of `vitbase eval`"):
        vitbase.train(tiny_config(protocol="timm"))
    code, _, err = vitbase_command("train", "fashion", "--protocol", "timm")
    assert (code, "Unknown option '--protocol'. It is an option of `vitbase eval`." in err) == (
        2,
        True,
    )
