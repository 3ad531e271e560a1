"""Sums that are divided once, and evaluation that visits every image once."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.evaluation.metrics import (
    ClassificationSums,
    MultiLabelSums,
    RecallSums,
    average_precision,
)
from vitbase.evaluation.run import evaluate_model
from vitbase.runtime import local_runtime
from vitbase.sources.open import open_source


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
    assert "50000 of 50000, each once" in sums.describe()


def test_rows_hold_fractions_and_counts():
    sums = ClassificationSums(images=8, top1_hits=4, top5_hits=6, loss_sum=3.5, unreadable=1)
    assert sums.to_row() == {
        "eval_top1": 0.5,
        "eval_top5": 0.75,
        "eval_loss": 0.5,
        "eval_images": 8,
        "eval_unreadable": 1,
    }


def test_balanced_accuracy_gives_each_class_the_same_say():
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3])
    said = torch.tensor([0, 0, 0, 0, 0, 3, 1, 0, 0])
    readable = torch.ones(9, dtype=torch.bool)
    readable[0] = False
    hits = (said == labels) & readable
    sums = RecallSums.of(hits, labels, 5)
    assert sums.hits_per_class.tolist() == [4, 1, 0, 0, 0]
    assert sums.images_per_class.tolist() == [6, 2, 0, 1, 0]
    assert np.isnan(sums.recall_per_class[[2, 4]]).all()
    assert sums.balanced_accuracy == pytest.approx((4 / 6 + 1 / 2 + 0) / 3)
    parts = [RecallSums.of(hits[i::2], labels[i::2], 5) for i in range(2)]
    total = sum(pickle.loads(pickle.dumps(parts)), start=RecallSums())
    assert total.to_row() == sums.to_row() == {"eval_balanced_accuracy": sums.balanced_accuracy}
    assert "over 3 classes, least 0.00% of class 3" in sums.describe()
    assert "least 0.00% of class 'fox'" in sums.describe(("cat", "dog", "emu", "fox", "gnu"))
    assert math.isnan(RecallSums().balanced_accuracy)
    assert RecallSums().describe() == "no image of any class"


def precision_by_definition(scores: list[float], answers: list[bool]) -> float:
    """Go through the thresholds from the highest: precision times the recall each adds."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [answer for s, answer in zip(scores, answers, strict=True) if s >= threshold]
        recall = sum(chosen) / sum(answers)
        area += sum(chosen) / len(chosen) * (recall - recall_before)
        recall_before = recall
    return area


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_by_definition(pairs):
    scores, answers = [float(score) for score, _ in pairs], [answer for _, answer in pairs]
    got = average_precision(np.array(scores, dtype=np.float32), np.array(answers))
    if any(answers):
        assert got == pytest.approx(precision_by_definition(scores, answers))
    else:
        assert math.isnan(got)


def test_average_precision_of_a_known_case():
    # The example in scikit-learn's documentation, and what it prints there.
    scores, answers = [0.1, 0.4, 0.35, 0.8], [False, False, True, True]
    got = average_precision(np.array(scores, dtype=np.float32), np.array(answers))
    assert got == pytest.approx(0.8333, abs=1e-4)


@given(images=st.integers(1, 30), cut=st.integers(1, 29))
def test_several_labels_by_definition_and_in_parts(images, cut):
    generator = torch.Generator().manual_seed(images)
    logits = torch.randn(images, 4, generator=generator)
    labels = (torch.rand(images, 4, generator=generator) < 0.3).long()
    labels[:, 3] = 0  # a class that no image has
    readable = torch.rand(images, generator=generator) < 0.8
    whole = MultiLabelSums.of(logits, labels, readable)
    scores = torch.where(readable[:, None], logits, -torch.inf).T.tolist()
    said = (logits > 0) & readable[:, None]
    precisions, f1s, right, all_said = [], [], 0, 0
    for c in range(4):
        if labels[:, c].any():
            precisions.append(precision_by_definition(scores[c], labels[:, c].bool().tolist()))
        hits = int((said[:, c] & labels[:, c].bool()).sum())
        said_or_there = int(said[:, c].sum()) + int(labels[:, c].sum())
        right, all_said = right + hits, all_said + said_or_there
        if said_or_there:
            f1s.append(2 * hits / said_or_there)
    row = whole.to_row()
    assert (row["eval_images"], row["eval_unreadable"]) == (images, int((~readable).sum()))
    expected = {
        "eval_map": float(np.mean(precisions)) if precisions else math.nan,
        "eval_f1_macro": float(np.mean(f1s)) if f1s else math.nan,
        "eval_f1_micro": 2 * right / all_said if all_said else math.nan,
        "eval_loss": math.nan,
    }
    if readable.any():
        expected["eval_loss"] = F.binary_cross_entropy_with_logits(
            logits[readable], labels[readable].float()
        ).item()
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
    parts = [
        MultiLabelSums.of(logits[rows], labels[rows], readable[rows])
        for rows in (slice(cut, None), slice(0, cut))  # in another order, too
    ]
    total = sum(pickle.loads(pickle.dumps(parts)), start=MultiLabelSums())
    for name, value in row.items():
        assert total.to_row()[name] == pytest.approx(value, nan_ok=True), name


def test_several_labels_in_words():
    logits, labels = torch.tensor([[2.0, -1.0], [-2.0, -1.0]]), torch.tensor([[1, 0], [0, 1]])
    sums = MultiLabelSums.of(logits.bfloat16(), labels, torch.tensor([True, False]))
    assert sums.describe() == (
        "evaluated 2 of 2, each once, 1 unreadable counted as wrong: mAP 75.00% over 2 classes, "
        "least 50.00% of class 1  F1 micro 66.67% macro 50.00%  loss 0.2201"
    )


@pytest.mark.parametrize("batch_size", [7, 20, 64])
def test_the_batch_size_changes_no_count(tiny_idx, batch_size):
    source = open_source(str(tiny_idx), "val", "val_data_path")
    preprocess = Preprocess(height=16, width=16, channels=1, mean=(0.3,), std=(0.3,))
    torch.manual_seed(1)
    model = vitbase.create_model("testing", num_classes=10, image_size=16, in_channels=1)
    torch.nn.init.normal_(model.head.weight)
    runtime = local_runtime("CPU")
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
    assert "1 unreadable counted as wrong" in result.sums.describe()
