"""Decoding where the model computes: the same windows and order, on a CPU the same pixels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_images import encode, photo
from made_runs import losses_of
from ranks import train_on

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import TrainTransform
from vitbase.data.device_decode import DeviceDecoder, DeviceTrainLoader
from vitbase.data.loader import IGNORED_LABEL, TrainLoader
from vitbase.errors import ConfigError
from vitbase.runtime import Runtime, local_runtime
from vitbase.sources.folders import read_folder
from vitbase.sources.source import Source

needs_library = pytest.mark.skipif(sys.platform != "linux", reason="nvImageCodec is for Linux")
FOUND = torch.accelerator.current_accelerator(check_available=True)
PREPROCESS = default_preprocess(64, 64, 3)  # larger than half a window: the host shrinks none


CPU = Runtime(torch.device("cpu"), "fp32")


def both_loaders(source: Source, runtime: Runtime = CPU) -> tuple[TrainLoader, TrainLoader]:
    options: dict[str, Any] = {"seed": 3, "batch_size": 8, "num_workers": 2}
    transform = TrainTransform(PREPROCESS, AugmentSection())
    decoder = DeviceDecoder(runtime, PREPROCESS)
    return (
        TrainLoader(source, transform, **options),
        DeviceTrainLoader(decoder, source, transform, **options),
    )


@needs_library
def test_batches_are_those_of_the_host(photos):
    host, device = both_loaders(read_folder(photos, "train"))
    for epoch, first in ((0, 0), (1, 1)):
        pairs = zip(host.epoch(epoch, first), device.epoch(epoch, first), strict=True)
        for number, (one, other) in enumerate(pairs):
            assert other.step == one.step == first + number
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.labels, other.labels)
            apart = (one.images.int() - other.images.int()).abs()
            assert apart.max() <= 1
            assert apart.float().mean() < 0.01
            assert other.readable.all()


@pytest.mark.gpu
@pytest.mark.skipif(FOUND is None, reason="torch finds no accelerator here")
def test_batches_of_a_card_are_nearly_those_of_the_host(photos):
    """Its decoder rounds in another way, and resizes in float32."""
    runtime = local_runtime("auto", precision="fp32")
    if runtime.codec_stream() is None:
        pytest.skip(f"nvImageCodec knows no {FOUND}")
    host, device = both_loaders(read_folder(photos, "train"), runtime)
    for one, other in zip(host.epoch(0), device.epoch(0), strict=True):
        assert other.images.device == runtime.device
        assert torch.equal(one.positions, other.positions)
        apart = (one.images.int() - other.images.cpu().int()).abs().float()
        assert apart.mean() < 1
        assert apart.quantile(0.99) <= 4
        assert other.readable.all()


@needs_library
def test_what_the_device_cannot_decode_takes_the_ordinary_way(tmp_path):
    """Other formats, grey and damaged JPEGs: the same pixels, and the same words."""
    good = encode(photo(80, 100, seed=1))
    files = {
        "a.jpg": good,
        "b.png": encode(photo(70, 90, seed=2), "PNG"),
        "c.jpg": encode(photo(70, 90, seed=3)[..., 0]),
        "d.jpg": good[:-200],
        "e.jpg": good[:-200] + good[-2:],  # the end is there, what comes before it is not
        "f.jpg": good[:30] + bytes(500) + b"\xff\xd9",
        "g.jpg": b"no image",
        "h.jpg": good,
    }
    (tmp_path / "one").mkdir()
    for name, data in files.items():
        (tmp_path / "one" / name).write_bytes(data)
    host, device = both_loaders(read_folder(tmp_path, "train"))
    (one,), (other,) = host.epoch(0), device.epoch(0)
    assert set(other.bad) == set(one.bad)
    assert len(one.bad) >= 3
    assert torch.equal(one.readable, other.readable)
    assert torch.equal(one.labels, other.labels)
    assert (other.labels[~other.readable] == IGNORED_LABEL).all()
    apart = (one.images.int() - other.images.int()).abs().amax((1, 2, 3))
    assert (apart[one.readable] <= 1).all()
    assert (other.images[~other.readable] == 0).all()


@needs_library
def test_leaving_an_epoch_early_leaves_no_thread(photos):
    import threading

    before = threading.active_count()
    _, device = both_loaders(read_folder(photos, "train"))
    batches = device.epoch(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@needs_library
def test_a_run_decodes_on_its_device(photos, tmp_path):
    options: dict[str, Any] = {
        **{"data_path": str(photos), "model": "testing", "image_height": 64, "image_width": 64},
        **{"pool": "gap", "device_target": "CPU", "precision": "fp32", "pre_trained": False},
        **{"policy": "none", "global_batch": 8, "batch_size": 4, "epoch_size": 1, "seed": 1},
        **{"log_every_steps": 1, "warmup_epochs": 0},
    }
    for name, decoder, ranks in (("host", "host", 1), ("one", "device", 1), ("two", "device", 2)):
        train_on(tmp_path / name / "run", ranks, "finetune", decoder=decoder, **options)
    host, one, two = (losses_of(tmp_path / name / "run") for name in ("host", "one", "two"))
    assert one == pytest.approx(host, abs=1e-3)
    assert two == pytest.approx(one, abs=1e-5)
    assert len(one) >= 2


def test_what_makes_no_sense_is_refused(config):
    for options in (
        {"policy": "randaugment_timm"},
        {"color_jitter": 0.3},
        {"erase_probability": 0.2},
        {"train_crop": "pad"},
        {"image_channels": 1},
        {"freeze_backbone": True},
    ):
        with pytest.raises(ConfigError, match="needs the host: leave out --decoder"):
            config(decoder="device", **options)
    config(decoder="device", mixup_alpha=0.8, cutmix_alpha=1.0)


def test_a_missing_library_is_named(tiny_idx, tmp_path, vitbase_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    words = ["train", "finetune", "--pre_trained", "False", "--data_path", tiny_idx]
    more = ["--output_dir", tmp_path / "run", "--batch_size", 4, "--decoder", "device"]
    code, _, err = vitbase_command(*words, *more, "--policy", "none", "--image_channels", 3)
    assert code == 2
    assert "pip install 'vitbase[gpu-decode]'" in err
    assert not (Path(tmp_path) / "run").exists()


def test_a_crop_is_drawn_as_it_always_was():
    """The random numbers of an image are used in one order, whoever decodes it."""
    transform = TrainTransform(PREPROCESS, AugmentSection())
    raw = encode(photo(80, 100, seed=1))
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    out = np.empty((64, 64, 3), np.uint8)
    transform(raw, one, out)
    transform.draw_crop(raw, other)
    assert one.random() == other.random()
