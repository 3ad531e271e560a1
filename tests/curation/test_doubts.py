"""What a model makes doubtful in its data, against cleanlab and where the truth is known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from made_predictions import predicted

from vitbase.curation.doubting.doubt import Item, find_doubts
from vitbase.curation.doubting.labels import find_label_errors
from vitbase.curation.doubting.neighbours import find_neighbours, find_outliers, group_duplicates
from vitbase.curation.doubting.sheets import COLUMNS, SIDE, Cell, draw_sheet
from vitbase.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    from cleanlab.filter import find_label_issues
    from cleanlab.outlier import OutOfDistribution
    from cleanlab.rank import get_normalized_margin_for_each_label


def noisy(classes: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 [N, C] of a biased model, and labels, some drawn."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * rng.uniform(0.3, 4)
    drawn = rng.integers(0, classes, images)
    labels = np.where(rng.random(images) < 0.25, drawn, logits.argmax(axis=1))
    p = np.exp(logits + rng.normal(size=classes))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels


def issues_of_cleanlab(p_NC: np.ndarray, labels: np.ndarray) -> list[int]:
    return find_label_issues(
        labels,
        p_NC.astype(np.float64),
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    ).tolist()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_of_few_classes_the_suspects_are_cleanlab_s_in_its_order(classes):
    for seed in range(20):
        p_NC, labels = noisy(classes, 200, seed)
        found = find_label_errors(predicted(p_NC, labels))
        assert found.suspects.tolist() == issues_of_cleanlab(p_NC, labels)
        assert found.undecided == 0
        margins = get_normalized_margin_for_each_label(labels, p_NC.astype(np.float64))
        assert found.margins == pytest.approx(margins[found.suspects])
        assert found.looked_at == 200


@pytest.mark.parametrize("classes", [6, 12, 60])
def test_of_many_classes_every_suspect_is_cleanlab_s_and_the_rest_is_counted(classes):
    for seed in range(10):
        p_NC, labels = noisy(classes, 400, seed)
        found = find_label_errors(predicted(p_NC, labels))
        expected = {*issues_of_cleanlab(p_NC, labels)}
        suspects = {*found.suspects.tolist()}
        assert suspects <= expected
        assert len(expected - suspects) <= found.undecided


def test_a_sure_model_leaves_nothing_undecided():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 50, 500)
    p_NC = np.full((500, 50), 0.05 / 49)
    p_NC[np.arange(500), truth] = 0.95
    labels = truth.copy()
    wrong = [3, 77, 400]
    labels[wrong] = (labels[wrong] + 1) % 50
    found = find_label_errors(predicted(p_NC, labels, unreadable=[5]))
    assert sorted(found.suspects.tolist()) == wrong
    assert found.likely.tolist() == truth[found.suspects].tolist()
    assert (found.undecided, found.looked_at) == (0, 499)
    assert sum(images for _, _, images in found.pairs(labels)) == 3


def clusters(images: int = 300, width: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, images)
    centres = 3 * rng.normal(size=(3, width))
    return (centres[classes] + rng.normal(size=(images, width))).astype(np.float32), classes


def test_neighbours_over_several_blocks_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr("vitbase.curation.doubting.neighbours._ROWS", 64)
    monkeypatch.setattr("vitbase.curation.doubting.neighbours._COLUMNS", 70)
    features, _ = clusters()
    found = find_neighbours(features)
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    expected = np.sort(distances, axis=1)[:, :10]
    assert np.allclose(found.distances, expected, atol=1e-6)
    chosen = np.take_along_axis(distances, found.indices, axis=1)
    assert np.allclose(chosen, expected, atol=1e-6)


def test_far_images_are_in_cleanlab_s_order(capsys):
    features, _ = clusters()
    features[7] *= -1
    features[[11, 12]] = np.random.default_rng(5).normal(size=(2, 24))
    found = find_outliers(find_neighbours(features))
    scores = OutOfDistribution().fit_score(features=features.astype(np.float64))
    assert np.argsort(-found.distances).tolist() == np.argsort(scores).tolist()
    assert {7, 11, 12} <= {*found.far.tolist()}
    first, third = np.quantile(found.distances, (0.25, 0.75))
    far = found.distances > third + 1.7 * (third - first)
    assert {*found.far.tolist()} == {*np.flatnonzero(far).tolist()}


def test_near_duplicates_are_grouped_and_a_dense_class_is_none():
    features, classes = clusters()
    noise = np.random.default_rng(1).normal(size=(4, 24)) * 1e-3
    features[100:102] = features[0] + noise[:2]
    features[200] = features[50] + noise[2]
    classes[[100, 101]], classes[200] = classes[0], classes[50]
    dense = np.random.default_rng(2).normal(size=(40, 24)) * 0.05 + 5
    features = np.concatenate([features, dense]).astype(np.float32)
    classes = np.concatenate([classes, np.full(40, 3)])
    neighbours = find_neighbours(features)
    groups = group_duplicates(neighbours, neighbours.near(classes))
    assert groups == [[0, 100, 101], [50, 200]]
    # By one distance for all, the dense class would be one group.
    assert len(group_duplicates(neighbours, neighbours.near(np.zeros(340, int)))[0]) > 20


def three_answers(labels, features, **more):
    p_NC = np.full((len(labels), 3), 0.1)
    p_NC[np.arange(len(labels)), labels] = 0.8
    return predicted(p_NC, labels, features=features, **more)


def test_of_copies_evaluation_s_stay_and_training_s_go():
    features, labels = clusters(60)
    other, other_labels = clusters(60, seed=1)
    features[1], labels[1] = features[0], labels[0]
    other[5], other_labels[5] = features[0], (labels[0] + 1) % 3
    other[9], other_labels[9] = other[8], other_labels[8]
    features[20], labels[20] = features[21], (labels[21] + 1) % 3
    found = find_doubts(
        three_answers(labels, features), three_answers(other_labels, other), similarity=0.9999
    )
    assert found.groups is not None
    members = [[item for item, _ in group] for group in found.groups]
    held_out, trained = ([Item(name, i) for i in range(60)] for name in ("predictions", "train"))
    assert members == [
        [held_out[0], held_out[1], trained[5]],
        [held_out[20], held_out[21]],
        [trained[8], trained[9]],
    ]
    gone = [{*found.to_leave_out(group)} for group in found.groups]
    assert gone == [{held_out[1], trained[5]}, {held_out[20], held_out[21]}, {trained[9]}]
    assert [found.spans(group) for group in found.groups] == [True, False, False]
    assert [found.disagrees(group) for group in found.groups] == [True, True, False]


FEATURES, LABELS = clusters(40)


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({}, {"kinds": ["outliers"]}, "The predictions have no features, by which"),
        ({}, {"train": three_answers(LABELS, FEATURES)}, "The predictions have no features"),
        ({"labels": LABELS * 0 - 1}, {"kinds": ["labels"]}, "No image has a known label."),
        ({"labels": LABELS * 0 - 1}, {}, "Nothing can be found in these predictions."),
        ({"label_sets": [(0,)] * 40}, {"kinds": ["labels"]}, "may have several labels each"),
        (
            {"features": FEATURES},
            {"train": three_answers(LABELS, FEATURES)},
            "The training predictions are the same images once more.",
        ),
        (
            {"features": FEATURES},
            {"train": three_answers(LABELS, FEATURES[:, :9])},
            "The predictions have 24 features an image, those of training 9",
        ),
        (
            {"features": FEATURES, "meta": {"weights": "a"}},
            {"train": three_answers(LABELS, FEATURES, meta={"weights": "b"})},
            "features of two models cannot be compared",
        ),
        (
            {"features": FEATURES},
            {"train": three_answers(LABELS, FEATURES, classes=["a", "b", "c"])},
            "The training predictions are of other classes",
        ),
        ({"features": 0 * FEATURES}, {"kinds": ["outliers"]}, "0 images have usable features"),
        ({"features": FEATURES}, {"similarity": 2.0}, "--similarity 2: expected more than 0"),
    ],
)
def test_what_cannot_be_found_is_refused(change, options, told):
    given = three_answers(LABELS, None)
    for name, value in change.items():
        object.__setattr__(given, name, value)
    with pytest.raises(DataError) as caught:
        find_doubts(given, **options)
    assert told in str(caught.value)


def test_what_the_files_do_not_allow_is_noted():
    found = find_doubts(three_answers(LABELS, None))
    assert found.groups is None
    assert found.labels is not None
    (note,) = found.notes
    assert note.startswith("not looked for: duplicates, outliers. The predictions have no features")
    features = FEATURES.copy()
    features[3] = np.nan
    found = find_doubts(three_answers(LABELS, features, unreadable=[1]))
    assert found.notes == ("2 images without usable features are left out of these",)


def test_a_sheet_shows_images_and_names_of_any_letters():
    from io import BytesIO

    from PIL import Image

    bright = np.full((SIDE, SIDE // 2, 3), (10, 200, 10), np.uint8)
    names = ("x" * 500 + ".png", "\x1b[2J\udcff名.png", "")
    cells = [Cell(bright, names), Cell(None, ("cannot be read",), marked=True)]
    sheet = Image.open(BytesIO(draw_sheet("A title\n", [cells * (COLUMNS // 2), cells])))
    pixels = np.asarray(sheet.convert("RGB"))
    assert sheet.format == "PNG"
    assert pixels.shape[1] == 10 + COLUMNS * (SIDE + 10)
    green = (pixels == (10, 200, 10)).all(axis=2).sum()
    assert green == 4 * SIDE * (SIDE // 2)
