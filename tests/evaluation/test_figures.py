"""Figures beside those of torchmetrics, and their intervals beside what they should hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional import classification as oracle

from vitbase.data.loader import BadImage, Batch
from vitbase.evaluation import calibration, figures
from vitbase.evaluation.answers import Keep, Keeper
from vitbase.evaluation.calibration import Calibration, Reliability, Sharpness
from vitbase.evaluation.figures import Answered, Figure, ManyAnswered, PerClass, wilson
from vitbase.evaluation.metrics import average_precision, rank_classes
from vitbase.files import json_line
from vitbase.runtime import local_runtime

IMAGES, CLASSES = 400, 8


def made_logits(images: int = IMAGES, classes: int = CLASSES, sharp: float = 2.0):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(classes - 1, (images,), generator=generator)  # the last has none
    logits = torch.randn(images, classes, generator=generator) * sharp
    logits[torch.arange(images), labels] += sharp * (torch.arange(images) % 3)
    return logits, labels


def answers_to(logits, labels, readable=None, batch_size=64):
    readable = torch.ones(len(labels), dtype=torch.bool) if readable is None else readable
    keeper = Keeper(Keep(temperatures=True))
    for rows in torch.arange(len(labels)).split(batch_size):
        bad = tuple(BadImage(f"image {row}", "torn") for row in rows[~readable[rows]].tolist())
        batch = Batch(logits[rows], labels[rows], rows, readable[rows], 0, bad)
        keeper.add(batch, logits[rows])
    return keeper.gather(local_runtime("CPU"))


class Labelled:
    def __init__(self, labels):
        self.labels = labels.numpy()


@pytest.fixture(scope="module")
def answered() -> Answered:
    logits, labels = made_logits()
    return answers_to(logits, labels).answered(Labelled(labels))


def test_figures_are_those_of_torchmetrics(answered):
    logits, labels = made_logits()
    found = {name: figure.value for name, figure in answered.figures().items()}
    of = {"num_classes": CLASSES}
    probabilities = logits.softmax(dim=1)
    expected = {
        "top1": oracle.multiclass_accuracy(logits, labels, average="micro", **of),
        "top5": oracle.multiclass_accuracy(logits, labels, average="micro", top_k=5, **of),
        "precision_macro": oracle.multiclass_precision(logits, labels, average="macro", **of),
        "f1_macro": oracle.multiclass_f1_score(logits, labels, average="macro", **of),
        "ece": oracle.multiclass_calibration_error(probabilities, labels, n_bins=15, **of),
        "loss": F.cross_entropy(logits, labels),
    }
    recalls = oracle.multiclass_recall(logits, labels, average="none", **of)
    expected["balanced_accuracy"] = recalls[:-1].mean()
    assert found == {
        name: pytest.approx(float(value), abs=1e-6) for name, value in expected.items()
    }
    counts = answered.per_class()
    for name in ("recall", "precision", "f1_score"):
        theirs = getattr(oracle, f"multiclass_{name}")(logits, labels, average="none", **of)
        ours = np.nan_to_num(getattr(counts, name.removesuffix("_score")))
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=name)
    pairs, times = answered.confusion()
    dense = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    dense[pairs[:, 0], pairs[:, 1]] = times
    np.testing.assert_array_equal(dense, oracle.multiclass_confusion_matrix(logits, labels, **of))


def test_several_labels_are_those_of_torchmetrics():
    logits, _ = made_logits()
    labels = (torch.rand(IMAGES, CLASSES, generator=torch.Generator().manual_seed(1)) < 0.3).long()
    losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
    many = ManyAnswered(logits.numpy(), labels.numpy() > 0, losses.numpy())
    found, precisions = many.figures()
    p, of = logits.sigmoid(), {"num_labels": CLASSES}
    theirs = oracle.multilabel_average_precision(p, labels, average="none", **of)
    np.testing.assert_allclose(precisions, theirs, atol=1e-6)
    expected = {
        "map": oracle.multilabel_average_precision(p, labels, average="macro", **of),
        "f1_micro": oracle.multilabel_f1_score(p, labels, average="micro", **of),
        "f1_macro": oracle.multilabel_f1_score(p, labels, average="macro", **of),
        "loss": F.binary_cross_entropy_with_logits(logits, labels.float()),
    }
    values = {name: figure.value for name, figure in found.items()}
    assert values == {name: pytest.approx(float(v), abs=1e-6) for name, v in expected.items()}
    # The first-order intervals are about as wide as those of a bootstrap.
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {"map": [], "f1_micro": [], "f1_macro": []}
    for _ in range(150):
        rows = rng.integers(0, IMAGES, IMAGES)
        part = ManyAnswered(many.scores_NC[rows], many.answers_NC[rows], many.loss[rows])
        counts = part.per_class()
        sizes = counts.images + counts.predicted
        drawn["map"].append(float(np.mean(part.average_precision()[0])))
        drawn["f1_micro"].append(float(2 * counts.hits.sum() / sizes.sum()))
        drawn["f1_macro"].append(float(counts.f1.mean()))
    for name, values_drawn in drawn.items():
        half = (found[name].high - found[name].low) / 2
        assert half == pytest.approx(1.96 * np.std(values_drawn), rel=0.2), name


def test_average_precision_has_equal_scores_and_unreadable_images():
    scores = np.array([2, 1, 1, 0, -np.inf, 1], dtype=np.float32)
    there = np.array([True, False, True, False, True, True])
    value, influence = figures._average_precision(scores, there)
    assert value == pytest.approx(average_precision(scores, there))
    for row in range(6):  # an image more of the same kind, by a hundredth of one
        weighted = [
            np.repeat(column, [100 + (n == row) for n in range(6)]) for column in (scores, there)
        ]
        moved = (average_precision(*weighted) - value) * 100
        assert influence[row] == pytest.approx(moved, abs=0.02)


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    # R's prop.test(x, n, correct = FALSE)
    [(0, 10, 0.0, 0.2775328), (8, 10, 0.4901625, 0.9433178), (10, 10, 0.7224672, 1.0)],
)
def test_wilson_of_known_cases(hits, images, low, high):
    found = wilson(hits, images)
    assert found == (hits / images, pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert all(map(math.isnan, wilson(0, 0)))


def test_a_bootstrap_holds_its_value_and_narrows(answered):
    for name, figure in answered.figures().items():
        assert figure.low <= figure.value <= figure.high, name
        assert figure.high - figure.low > 0, name
    # Of a mean, it is that of the central limit theorem.
    loss = answered.figures()["loss"]
    half = 1.96 * answered.loss.std() / math.sqrt(IMAGES)
    assert (loss.high - loss.low) / 2 == pytest.approx(half, rel=0.1)


def test_unreadable_images_count_as_wrong_and_predict_nothing():
    logits, labels = made_logits(60)
    readable = torch.arange(60) % 6 > 0
    answers = answers_to(logits, labels, readable, batch_size=7)
    found = answers.answered(Labelled(labels))
    assert answers.causes == dict.fromkeys(range(0, 60, 6), "torn")
    right = (logits.argmax(dim=1) == labels) & readable
    assert found.figures()["top1"].value == pytest.approx(float(right.double().mean()))
    assert found.figures()["loss"].value == pytest.approx(
        F.cross_entropy(logits[readable], labels[readable]).item(), abs=1e-6
    )
    assert found.confusion()[1].sum() == 50
    assert found.per_class().images.sum() == 60
    none = answers_to(logits, labels, torch.zeros(60, dtype=torch.bool))
    assert none.calibration(Labelled(labels)) is None
    values = none.answered(Labelled(labels)).figures()
    assert values["top1"].value == values["balanced_accuracy"].value == 0
    assert math.isnan(values["loss"].value)
    assert json_line(figures.plain_figures(values)).count("null") == 6


@pytest.mark.parametrize("sharp", [0.2, 1.0, 4.0])
def test_the_temperature_is_that_of_least_loss(sharp):
    logits, labels = made_logits(sharp=1.5)
    logits = logits * sharp
    answers = answers_to(logits, labels)
    fit = answers.calibration(Labelled(labels))
    assert fit is not None
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def loss_of():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(loss_of)
    temperature = log_t.detach().exp().item()
    assert fit.temperature == pytest.approx(temperature, rel=1e-4)
    assert fit.loss_before == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
    assert fit.loss_after == pytest.approx(loss_of().detach().item(), abs=1e-5)
    after = (logits / fit.temperature).softmax(dim=1)
    theirs = oracle.multiclass_calibration_error(after, labels, n_bins=15, num_classes=CLASSES)
    assert fit.after.ece == pytest.approx(float(theirs), abs=1e-4)
    assert sum(row["count"] for row in fit.to_dict()["bins_after"]) == IMAGES


def test_any_temperature_may_be_applied():
    logits, labels = made_logits(sharp=4.0)
    columns = answers_to(logits, labels).columns
    sharpness = Sharpness(columns["values"], columns["slopes"], columns["margin"])
    for temperature in (0.1, 0.77, 1.0, 1.3, 10.0):
        expected = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
        np.testing.assert_allclose(sharpness.confidence(temperature), expected, rtol=1e-4)
        loss = F.cross_entropy(logits.double() / temperature, labels).item()
        assert sharpness.loss(temperature) == pytest.approx(loss, rel=1e-4)


def test_a_temperature_has_bounds():
    labels = torch.arange(6) % 3
    for sign, expected in ((1, math.exp(-2.4)), (-1, math.exp(2.4))):
        fit = answers_to(sign * F.one_hot(labels, 3).float(), labels).calibration(Labelled(labels))
        assert fit.temperature == pytest.approx(expected)


def test_reliability_of_sure_answers():
    bins = Reliability.of(np.array([1, 1, 0.05, 0.5], np.float32), np.array([1, 0, 0, 1]) > 0)
    assert bins.counts.tolist() == [1, *[0] * 6, 1, *[0] * 6, 2]
    assert bins.ece == pytest.approx((2 * 0.5 + 0.05 + 0.5) / 4)
    assert bins.to_rows()[1]["confidence"] is None


def test_batches_change_nothing_but_their_number():
    logits, labels = made_logits(50)
    parts = [answers_to(logits, labels, batch_size=size) for size in (1, 7, 50)]
    for other in parts[1:]:
        for name, column in parts[0].columns.items():
            np.testing.assert_array_equal(column, other.columns[name], name)


def test_equal_classes_stand_in_the_model_s_order():
    logits = torch.tensor([[1.0, 3, 3, 0, 3, 3], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    assert rank_classes(logits, 2).tolist() == [[1, 2], [0, 1], [0, 1]]
    assert rank_classes(logits, 9).tolist()[0] == [1, 2, 4, 5, 0, 3]
    logits[2, 3] = torch.nan
    assert rank_classes(logits, 1).tolist()[2] == [3]


def test_a_temperature_beside_its_weights(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    assert calibration.read_temperature(weights) is None
    bins = Reliability.of(np.array([0.5], np.float32), np.array([True]))
    place = calibration.write_calibration(weights, Calibration(1.25, bins, bins, 1, 1, 1), "d")
    assert place.name == "w.safetensors.calibration.json"
    assert calibration.read_temperature(weights) == 1.25
    told = json.loads(place.read_text())
    for change, words in (
        ({"temperature": "1"}, "its temperature is '1'"),
        ({"temperature": 0}, "its temperature is 0"),
        ({"weights_sha256": "0"}, "is of other weights"),
    ):
        place.write_text(json.dumps({**told, **change}))
        with pytest.raises(calibration.DataError, match=words):
            calibration.read_temperature(weights)
    place.write_text("{")
    with pytest.raises(calibration.DataError, match="Cannot read"):
        calibration.read_temperature(weights)


def test_figures_of_classes_without_anything():
    empty = PerClass(*(np.zeros(3) for _ in range(3)))
    assert all(map(math.isnan, empty.means().values()))
    assert Figure(0.5, 0.25, 0.75).describe() == "50.00% [25.00%, 75.00%]"
