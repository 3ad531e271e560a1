"""Sums that are divided once, and evaluation that visits every image once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vitbase
from vitbase.data.sources import open_source
from vitbase.evaluation.metrics import ClassificationSums
from vitbase.evaluation.run import describe_sums, evaluate_model
from vitbase.options import Preprocess
from vitbase.runtime import open_runtime


@given(images=st.integers(1, 40), classes=st.integers(2, 12), cut=st.integers(1, 39))
def test_parts_add_up_to_the_whole(images, classes, cut):
    generator = torch.Generator().manual_seed(images * 100 + classes)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    readable = torch.rand(images, generator=generator) < 0.8
    whole = ClassificationSums.of(logits, labels, readable)
    parts = [
        ClassificationSums.of(logits[rows], labels[rows], readable[rows])
        for rows in (slice(0, cut), slice(cut, None))
        if len(labels[rows])
    ]
    total = sum(parts, start=ClassificationSums())
    assert (total.images, total.top1_hits, total.top5_hits, total.unreadable) == (
        whole.images,
        whole.top1_hits,
        whole.top5_hits,
        whole.unreadable,
    )
    assert total.loss_sum == pytest.approx(whole.loss_sum)
    right = (logits.argmax(dim=1) == labels) & readable
    assert whole.top1 == pytest.approx(float(right.double().mean()))
    if readable.any():
        expected = F.cross_entropy(logits[readable], labels[readable]).item()
        assert whole.loss == pytest.approx(expected, rel=1e-5)


def test_the_standard_error_of_imagenet_at_80_percent():
    sums = ClassificationSums(images=50_000, top1_hits=40_000)
    assert sums.top1_standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 50_000))
    assert "50000 of 50000, each once" in describe_sums(sums)


@pytest.mark.parametrize("batch_size", [7, 20, 64])
def test_the_batch_size_changes_no_count(tiny_idx, batch_size):
    source = open_source(str(tiny_idx), "val", "val_data_path")
    preprocess = Preprocess(height=16, width=16, channels=1, mean=(0.3,), std=(0.3,))
    torch.manual_seed(1)
    model = vitbase.create_model("testing", num_classes=10, image_size=16, in_channels=1)
    torch.nn.init.normal_(model.head.weight)
    runtime = open_runtime("CPU")
    sums = evaluate_model(model, source, preprocess, runtime, batch_size=batch_size)
    alone = evaluate_model(model, source, preprocess, runtime, batch_size=1)
    assert sums.images == 20
    assert (sums.top1_hits, sums.top5_hits) == (alone.top1_hits, alone.top5_hits)
    assert sums.loss == pytest.approx(alone.loss, abs=1e-5)


def test_an_unreadable_evaluation_image_is_named_and_counts_as_wrong(photo_config, tmp_path):
    config = photo_config(val_data_path=str(tmp_path / "val"))
    pixels = np.arange(32 * 40 * 3, dtype=np.uint8).reshape(32, 40, 3)
    for name in ("bag", "boot", "coat"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "val" / name / "0.jpg")
    whole = (tmp_path / "val" / "boot" / "0.jpg").read_bytes()
    (tmp_path / "val" / "boot" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    vitbase.train(config)
    (result,) = vitbase.evaluate(config.replace(checkpoint_path=str(tmp_path / "run")))
    assert result.sums.images == 4
    assert result.sums.unreadable == 1
    assert result.sums.top1 * 4 in {0, 1, 2}  # at most the three whole ones, all alike
    assert "1 unreadable counted as wrong" in describe_sums(result.sums)
