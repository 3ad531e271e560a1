"""A window of a resized image is what the whole would show, at the cost of the window."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import encode, photo

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess, default_preprocess
from vitbase.data import resize as resize_module
from vitbase.data.augment import EvalTransform, TrainTransform, centre_window, eval_size
from vitbase.data.decode import cut
from vitbase.data.order import sample_generator
from vitbase.data.policies.policies import cut_reflected, draw_simple_window
from vitbase.data.resize import Interpolation, resize, resize_window


def needs(interpolation: Interpolation, **options: object) -> Preprocess:
    changed = {"interpolation": interpolation, **options}
    return default_preprocess(48, 48, 3).model_copy(update=changed)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_window_of_any_size_has_the_pixels_of_the_whole(monkeypatch, interpolation, channels):
    monkeypatch.setattr(resize_module, "_FEW", 0)
    monkeypatch.setattr(resize_module, "_MOST_WASTE", 0)  # the window's way, for every image
    rng = np.random.default_rng(channels)
    for block in (1 << 22, 400) * 25:
        monkeypatch.setattr(resize_module, "_BLOCK", block)
        height, width, *size = (int(rng.integers(1, most)) for most in (60, 250, 150, 400))
        pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
        top, left = (int(rng.integers(side)) for side in size)
        window = (
            top,
            left,
            int(rng.integers(1, min(size[0] - top, 40) + 1)),
            int(rng.integers(1, min(size[1] - left, 40) + 1)),
        )
        expected = cut(resize(pixels, *size, interpolation), window)
        found = resize_window(pixels, tuple(size), window, interpolation)
        assert np.array_equal(found, expected), (pixels.shape, size, window)


NARROW = [(1, 700), (700, 1), (3, 401), (401, 7), (30, 900), (900, 30), (60, 1500), (2000, 50)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", NARROW)
def test_narrow_images_are_cut_as_the_whole_would_be(monkeypatch, size, interpolation):
    monkeypatch.setattr(resize_module, "_FEW", 0)
    pixels = photo(*size)
    out = np.empty((48, 48, 3), np.uint8)
    for options in ({}, {"crop_ratio": 1.0}, {"crop_mode": "squash"}):
        preprocess = needs(interpolation, **options)
        resized = eval_size(size, preprocess)
        whole = resize(pixels, *resized, interpolation)
        EvalTransform(preprocess)(pixels, None, out)
        assert np.array_equal(out, cut(whole, centre_window(resized, 48, 48)))
    fitted = eval_size(size, needs(interpolation, crop_ratio=1.0))
    whole = resize(pixels, *fitted, interpolation)
    simple = AugmentSection(train_crop="simple", crop_pad=4, flip=False)
    for position in range(3):
        generator = sample_generator(0, 0, position)
        generator.random()  # the flip's
        corner = draw_simple_window(fitted, 48, 48, 4, generator)
        transform = TrainTransform(needs(interpolation), simple)
        transform(pixels, sample_generator(0, 0, position), out)
        expected = cut_reflected(lambda window: cut(whole, window), fitted, (*corner, 48, 48))
        assert np.array_equal(out, expected)


PEAK = """
import json, resource, sys
import numpy as np
from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.order import sample_generator

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

preprocess = default_preprocess(224, 224, 3)
squash = preprocess.model_copy(update={"crop_mode": "squash"})
ways = {"evaluation": EvalTransform(preprocess), "squash": EvalTransform(squash)}
for crop in ("random_resized", "simple", "pad", "center"):
    ways[crop] = TrainTransform(preprocess, AugmentSection(train_crop=crop))
out = np.empty((224, 224, 3), np.uint8)
for way in ways.values():
    way(np.zeros((300, 300, 3), np.uint8), sample_generator(0, 0, 0), out)
found = {}
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    for name, way in ways.items():
        if name == "squash" and "1000000" in path:
            continue  # a second for all its pixels
        before = peak()
        way(data, sample_generator(0, 0, 0), out)
        found[f"{name} {path}"] = peak() - before
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of a process's peak differs")
def test_an_image_of_one_row_or_column_costs_little_memory(tmp_path: Path):
    """Some hundred bytes of PNG were resized to 256 x 3,072,000 pixels: 2.4 GB, or an end."""
    paths = []
    for length in (12_000, 1_000_000):
        row = np.zeros((1, length, 3), np.uint8)
        for name, pixels in (("row", row), ("column", row.reshape(-1, 1, 3))):
            paths.append(tmp_path / f"{name}{length}.png")
            paths[-1].write_bytes(encode(pixels, "PNG"))
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    megabytes = json.loads(done.stdout)
    assert len(megabytes) == 22
    assert all(cost < 150 for cost in megabytes.values()), megabytes


def test_what_is_resized_is_bounded_by_image_and_window(monkeypatch):
    """Memory follows from what torch is asked for, so that is looked at, for many shapes."""
    asked = []
    original = torch.nn.functional.interpolate

    def spy(image, size, **options):
        asked.append((image.shape[2] + size[0]) * size[1])
        return original(image, size=size, **options)

    monkeypatch.setattr(resize_module.F, "interpolate", spy)
    monkeypatch.setattr(resize_module, "_FEW", 0)
    out = np.empty((48, 48, 3), np.uint8)
    for short in (1, 2, 9, 40, 100):
        for long in (100, 800, 3000):
            for shape in ((short, long, 3), (long, short, 3)):
                asked.clear()
                EvalTransform(needs("bilinear"))(np.zeros(shape, np.uint8), None, out)
                assert max(asked, default=0) <= 4 * (48 * 48 + short * long)
