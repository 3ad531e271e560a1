"""What training makes of an image; the same pixels however the work is dealt out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_images import encode, photo, write_folder
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.data.order import sample_generator
from vitbase.data.policies.policies import RandomErasing, apply_steps
from vitbase.data.policies.randaugment import RandAugment
from vitbase.sources.folders import read_folder

PREPROCESS = default_preprocess(48, 48, 3)
CROP = {"train_crop": "center", "flip": False}


def transformed(raw: Any, position: int = 0, **options: Any) -> np.ndarray:
    out = np.empty((48, 48, 3), np.uint8)
    transform = TrainTransform(PREPROCESS, AugmentSection(**options))
    transform(raw, sample_generator(0, 0, position), out)
    return out


@pytest.mark.parametrize(
    ("policy", "kind", "magnitude", "std"),
    [
        ("randaugment_timm", "timm", 9.0, 0.5),
        ("randaugment_torchvision", "torchvision", 9.0, 0.0),
        ("randaugment_big_vision", "big_vision", 15.0, 0.0),
    ],
)
def test_randaugment_comes_after_crop_and_flip(policy, kind, magnitude, std):
    raw = encode(photo(60, 80), "PNG")
    for position in range(12):
        options = {
            **CROP,
            "policy": policy,
            "randaugment_magnitude": magnitude,
            "randaugment_magnitude_std": std,
        }
        generator = sample_generator(0, 0, position)
        generator.random()  # the flip's
        between = "nearest" if kind == "big_vision" else PREPROCESS.interpolation
        randaugment = RandAugment(
            kind, 2, magnitude, std, interpolation=between, preprocess=PREPROCESS
        )
        expected = randaugment(transformed(raw, position, **CROP), generator)
        assert np.array_equal(transformed(raw, position, **options), expected)


def test_jitter_and_3_augment_change_colours_only():
    flat = np.full((60, 80, 3), (200, 100, 50), np.uint8)
    for position in range(30):
        jittered = transformed(flat, position, **CROP, color_jitter=0.4)
        assert (jittered == jittered[0, 0]).all()
        one_of_three = transformed(flat, position, **CROP, policy="3-augment")
        assert (one_of_three == one_of_three[0, 0]).all()
        colour = tuple(one_of_three[0, 0].tolist())
        # Grey by the usual weights, inverted above 128, or blurred: of a flat image, itself.
        assert colour in {(124, 124, 124), (55, 100, 50), (200, 100, 50)}
    colours = {
        tuple(transformed(flat, p, **CROP, policy="3-augment", color_jitter=0.3)[0, 0].tolist())
        for p in range(30)
    }
    assert len(colours) > 20


def test_erasing_comes_last_and_only_where_it_is_drawn():
    flat = np.full((60, 80, 3), 77, np.uint8)
    erased = [
        (transformed(flat, position, **CROP, erase_probability=0.25) != 77).any()
        for position in range(400)
    ]
    assert 70 < sum(erased) < 130
    always = transformed(flat, 3, **CROP, erase_probability=1.0, erase_mode="const")
    generator = sample_generator(0, 0, 3)
    generator.random()
    expected = np.full((48, 48, 3), 77, np.uint8)
    RandomErasing(1.0, "const", PREPROCESS)(expected, generator)
    assert (always != 77).any()
    assert np.array_equal(always, expected)


@pytest.mark.parametrize("size", [(60, 80), (90, 50), (48, 48)])
def test_the_simple_crop_is_deit_3s(size):
    """Resize the short side, pad by 4 with a mirror image, crop: as torchvision does it."""
    pixels = photo(*size)
    raw = encode(pixels, "PNG")
    image = tv.pil_to_tensor(Image.fromarray(pixels))
    resized = tv.resize(image, [48], InterpolationMode.BILINEAR, antialias=True)
    padded = tv.pad(resized, [4], padding_mode="reflect").permute(1, 2, 0).numpy().astype(int)
    for position in range(25):
        found = transformed(raw, position, train_crop="simple", flip=False).astype(int)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (48, 48, 3))[:, :, 0]
        differences = np.abs(windows - found).max(axis=(2, 3, 4))
        assert differences.min() <= 2
    flipped = transformed(raw, 0, train_crop="simple")
    straight = transformed(raw, 0, train_crop="simple", flip=False)
    assert np.array_equal(flipped, straight) or np.array_equal(flipped, straight[:, ::-1])


@pytest.mark.parametrize("policy", ["randaugment_timm", "randaugment_torchvision", "3-augment"])
def test_grey_images_go_through_every_policy(policy):
    preprocess = default_preprocess(28, 28, 1)
    options = AugmentSection(
        train_crop="pad", policy=policy, color_jitter=0.3, erase_probability=1.0
    )
    transform = TrainTransform(preprocess, options)
    grey = photo(28, 28)[..., :1]
    for position in range(40):
        out = np.zeros((28, 28, 1), np.uint8)
        transform(grey, sample_generator(1, 0, position), out)
        assert out.std() > 0


EVERYTHING: dict[str, Any] = {
    "policy": "randaugment_timm",
    "randaugment_magnitude_std": 0.5,
    "color_jitter": 0.3,
    "erase_probability": 0.5,
    "repeated_augmentation": 3,
}


def stream_digest(source: Any, *, workers: int, ranks: int = 1) -> str:
    """Hash two epochs of images and labels, in the order of their positions."""
    options = AugmentSection(**EVERYTHING)
    digest = hashlib.sha256()
    for epoch in range(2):
        parts = [
            TrainLoader(
                source,
                TrainTransform(PREPROCESS, options),
                seed=5,
                batch_size=8 // ranks,
                num_workers=workers,
                repeats=options.repeated_augmentation,
                rank=rank,
                num_ranks=ranks,
            ).epoch(epoch)
            for rank in range(ranks)
        ]
        for batches in zip(*parts, strict=True):
            for name in ("images", "labels", "positions"):
                values = torch.cat([getattr(batch, name) for batch in batches])
                digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def test_the_stream_depends_on_no_number_of_workers_or_ranks(tmp_path: Path):
    source = read_folder(write_folder(tmp_path, {"a": 14, "b": 13}), "data_path")
    first = stream_digest(source, workers=1)
    assert first == stream_digest(source, workers=2)
    assert first == stream_digest(source, workers=8)
    assert first == stream_digest(source, workers=2, ranks=2)
    assert first == stream_digest(source, workers=1, ranks=4)


def test_steps_are_applied_to_copies():
    pixels = photo(20, 20)
    before = pixels.copy()
    policy = RandAugment("timm", 2, 9, 0.5, preprocess=PREPROCESS)
    for position in range(30):
        apply_steps(pixels, policy.draw(sample_generator(0, 0, position)), (0, 0, 0))
    assert np.array_equal(pixels, before)
