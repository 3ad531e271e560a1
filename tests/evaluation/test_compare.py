"""Two models on the same images: what is counted, listed, and refused."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from made_predictions import answering, predicted
from scipy import stats

from vitbase.errors import DataError
from vitbase.evaluation.compare import compare
from vitbase.evaluation.predictions import write_predictions

LABELS = np.arange(60) % 3
RIGHT_A = np.arange(60) % 4 != 0
RIGHT_B = np.arange(60) % 10 != 3


def test_figures_are_those_of_the_answers():
    found = compare(answering(RIGHT_A, LABELS), answering(RIGHT_B, LABELS))
    assert found.accuracies == (RIGHT_A.mean(), RIGHT_B.mean())
    assert found.difference == pytest.approx(RIGHT_B.mean() - RIGHT_A.mean())
    only_a, only_b = RIGHT_A & ~RIGHT_B, RIGHT_B & ~RIGHT_A
    both, neither = RIGHT_A & RIGHT_B, ~RIGHT_A & ~RIGHT_B
    assert found.cells == tuple(int(w.sum()) for w in (both, only_a, only_b, neither))
    assert found.changed("a").tolist() == np.flatnonzero(only_a).tolist()
    assert found.changed("b").tolist() == np.flatnonzero(only_b).tolist()
    count = int(only_a.sum() + only_b.sum())
    assert found.test.p == pytest.approx(stats.binomtest(int(only_a.sum()), count).pvalue)


def test_the_order_of_images_does_not_matter():
    a, b = answering(RIGHT_A, LABELS), answering(RIGHT_B, LABELS)
    order = np.random.default_rng(0).permutation(60)
    turned = {
        field.name: getattr(b, field.name)[order]
        for field in dataclasses.fields(b)
        if isinstance(getattr(b, field.name), np.ndarray)
    }
    mixed = dataclasses.replace(b, ids=[b.ids[index] for index in order], **turned)
    assert compare(a, mixed).to_dict(99) == compare(a, b).to_dict(99)


def test_a_class_that_one_model_lost_is_named_and_noise_is_not():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(20), 50)
    right_a = rng.random(1000) < 0.8
    right_b = np.where(labels == 7, rng.random(1000) < 0.2, rng.random(1000) < 0.8)
    classes = compare(answering(right_a, labels, 20), answering(right_b, labels, 20))
    first, *others = classes.classes_changed()
    assert first.name == "c7"
    assert first.difference < -0.4
    assert first.corrected_p < 1e-4
    assert all(other.corrected_p > 0.05 for other in others)
    expected = stats.false_discovery_control([each.p for each in (first, *others)])
    assert [each.corrected_p for each in (first, *others)] == pytest.approx(expected.tolist())


def test_unreadable_images_are_wrong_and_unknown_labels_left_out():
    labels = [0, 1, 2, -1]
    a = answering([True] * 4, labels, unreadable=[1])
    b = answering([True] * 4, labels)
    found = compare(a, b)
    assert (found.cells, found.left_out, found.unreadable) == ((2, 0, 1, 0), 1, (1, 0))
    assert "nothing (unreadable)" in "\n".join(found.lines(9))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"ids": ["x.png", "y.png", *(f"{n:04}.png" for n in range(2, 60))]},
            "The files are of other images: 2 of 60 are only in the first (0000.png, 0001.png); "
            "2 of 60 are only in the second (x.png, y.png).",
        ),
        ({"ids": ["0.png"] * 60}, "The second file has an image twice: 0.png."),
        (
            {"labels": np.where(np.arange(60) == 5, 0, LABELS)},
            "1 of 60 images have another label in the second file: 0005.png is 'c2' there, 'c0'",
        ),
        (
            {"classes": ("c0", "c1", "x")},
            "The files have other classes: 1 only in the first (c2); 1 only in the second (x).",
        ),
        (
            {"classes": ("c1", "c0", "c2")},
            "The files number their classes otherwise: 0 is 'c0' in the first, 'c1' in the second.",
        ),
        ({"label_sets": [(0, 1)] * 60}, "Their images may have several labels each"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, told):
    a, b = answering(RIGHT_A, LABELS), answering(RIGHT_B, LABELS)
    with pytest.raises(DataError) as caught:
        compare(a, dataclasses.replace(b, **change))
    assert told in str(caught.value)


def test_nothing_to_compare_is_refused():
    none = predicted(np.zeros((0, 3)), [])
    with pytest.raises(DataError, match="first file has no images"):
        compare(none, none)
    unknown = answering([True], [-1])
    with pytest.raises(DataError, match="No image has a known label"):
        compare(unknown, unknown)


def test_classes_without_names_go_by_number():
    bare = answering(RIGHT_A, LABELS, classes=())
    assert {each.name for each in compare(bare, bare).classes_changed()} == {"0", "1", "2"}
    named = compare(bare, answering(RIGHT_B, LABELS))
    assert {each.name for each in named.classes_changed()} == {"c0", "c1", "c2"}


def test_the_command_tells_lists_and_writes(vitbase_command, tmp_path):
    ids = [f"class/{number}\x1b[2J.png" for number in range(60)]
    for name, right in (("a", RIGHT_A), ("b", RIGHT_B)):
        write_predictions(tmp_path / f"{name}.csv", answering(right, LABELS, ids=ids))
    places = tmp_path / "a.csv", tmp_path / "b.csv"
    out = tmp_path / "changed.csv"
    code, told, err = vitbase_command("eval", "compare", *places, "--limit", 2, "--out", out)
    assert (code, err) == (0, "")
    assert "\x1b" not in told
    assert "A: 75.00%, 95% interval 62.77% to 84.22%" in told
    assert "B - A: +15.00%" in told
    assert "… and 13 more" in told
    rows = [*csv.DictReader(out.read_text("utf-8").splitlines(keepends=True))]
    assert [row["right"] for row in rows] == ["a"] * 6 + ["b"] * 15
    assert {row["id"] for row in rows} <= set(ids)
    code, told, _ = vitbase_command("eval", "compare", *places, "--json", "--limit", 1)
    row = json.loads(told)
    assert (row["only_a_right"], row["only_b_right"]) == (6, 15)
    assert len(row["only_b_right_images"]) == 1
    assert row["mcnemar_p"] == pytest.approx(stats.binomtest(6, 21).pvalue)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a.csv",), "Usage: vitbase eval compare A B; got a.csv."),
        (("a.csv", "b.csv"), "Cannot read predictions a.csv: No such file"),
        (("a.csv", "b.csv", "--limit", "-1"), "Option 'limit' should be at least 0."),
        (("a.csv", "b.csv", "--out", "x.png"), "--out x.png: call the file .csv."),
        (("a.csv", "b.csv", "--limt", "1"), "Did you mean 'limit'?"),
    ],
)
def test_mistakes_are_told(vitbase_command, words, told):
    code, _, err = vitbase_command("eval", "compare", *words)
    assert code == 2
    assert told in err
