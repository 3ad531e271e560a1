"""The images that a report shows: which ones, and what is left of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from made_images import encode, photo
from made_reports import HOSTILE
from PIL import Image

from vitbase.errors import DataError
from vitbase.evaluation.report.inputs import read_run
from vitbase.evaluation.shown import choose, thumbnail, write_shown
from vitbase.sources.open import open_source


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What is asked of predictions, made of the probability of the label."""

    ids: list[str]
    labels: np.ndarray
    p_label: np.ndarray
    classes: tuple[str, ...]
    readable: np.ndarray

    @property
    def predictions(self):
        wrong = self.p_label < 0.5
        return np.where(wrong, (self.labels + 1) % len(self.classes), self.labels)

    @property
    def loss(self):
        return -np.log(self.p_label)

    @property
    def top_K(self):  # noqa: N802
        others = (self.predictions + 1) % len(self.classes)
        return np.stack([self.predictions, others, np.full(len(others), -1)], axis=1)

    @property
    def p_K(self):  # noqa: N802
        best = np.maximum(self.p_label, 1 - self.p_label)
        return np.stack([best, 1 - best, np.full(len(best), np.nan)], axis=1).astype(np.float32)


def answers(count: int, classes: tuple[str, ...], unreadable: tuple[int, ...] = ()) -> Answers:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(classes)
    # The later a class, the easier.
    p_label = np.clip(rng.random(count) * (0.5 + labels / len(classes)), 0.001, 0.999)
    readable = np.ones(count, bool)
    readable[list(unreadable)] = False
    return Answers([f"{n}.jpg" for n in range(count)], labels, p_label, classes, readable)


def test_the_worst_the_hardest_and_the_best_are_chosen_each_once():
    predicted = answers(400, tuple("abcdefgh"), unreadable=(0, 1))
    chosen = choose(predicted, each=6)
    rows = [choice.row for choice in chosen]
    assert len(set(rows)) == len(rows)
    assert not {0, 1} & set(rows)
    kinds = {kind: [c.row for c in chosen if c.kind == kind] for kind in ("worst", "best")}
    usable = np.flatnonzero(predicted.readable)
    assert kinds["worst"] == usable[np.argsort(-predicted.loss[usable], kind="stable")[:6]].tolist()
    assert min(predicted.p_label[kinds["best"]]) > 0.5
    assert len(set(predicted.predictions[kinds["best"]])) == 6  # an easy class does not fill them
    hardest = [int(predicted.labels[c.row]) for c in chosen if c.kind == "hardest"]
    recall = [np.mean((predicted.predictions == n)[predicted.labels == n]) for n in range(8)]
    assert sorted(hardest) == sorted(np.argsort(recall)[: len(hardest)].tolist())


def test_few_images_are_all_there_is():
    assert len(choose(answers(3, ("a", "b")), each=12)) == 3
    assert choose(answers(2, ("a", "b"), unreadable=(0, 1))) == []


def test_images_with_any_number_of_labels_have_no_hardest_class():
    predicted = answers(40, ("a", "b"))
    predicted = dataclasses.replace(predicted, labels=np.full(40, -1))
    assert {choice.kind for choice in choose(predicted)} == {"worst", "best"}


def test_thumbnails_are_small_and_keep_their_shape():
    assert thumbnail(encode(photo(300, 900, seed=1))).size == (160, 53)
    grey = thumbnail(np.zeros((28, 28, 1), np.uint8))
    assert (grey.size, grey.mode) == ((28, 28), "RGB")
    assert thumbnail(encode(photo(4, 2000, seed=1))).size == (160, 1)


def test_what_is_shown_is_read_back_by_the_report(photos, tmp_path):
    source = open_source(str(photos), "val", "data_path")
    predicted = dataclasses.replace(answers(len(source), ("cat", HOSTILE)), labels=source.labels)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.0}\n')
    assert write_shown(run / "report", predicted, source) == []
    again = (run / "report" / "shown" / "shown.json").read_bytes()
    assert write_shown(run / "report", predicted, source) == []  # in the place of those of before
    assert (run / "report" / "shown" / "shown.json").read_bytes() == again
    shown = read_run(run).shown
    assert {one.kind for one in shown} >= {"worst", "best"}
    assert all(one.picture.startswith("data:image/jpeg;base64,") for one in shown)
    assert all(len(one.top) == 2 and one.p_label is not None for one in shown)
    assert {one.label for one in shown} == {"cat", HOSTILE}
    for file in (run / "report" / "shown").glob("*.jpg"):
        with Image.open(file) as picture:
            assert max(picture.size) <= 160


def test_an_image_that_is_gone_is_told_and_left_out(photos, tmp_path):
    source = open_source(str(photos), "val", "data_path")
    predicted = answers(len(source), source.class_names)
    worst = choose(predicted)[0].row
    broken = dataclasses.replace(source, images=Broken(source.images, int(source.rows[worst])))
    notes = write_shown(tmp_path / "report", predicted, broken)
    assert len(notes) == 1
    assert notes[0].startswith("Not shown: ")
    told = json.loads((tmp_path / "report" / "shown" / "shown.json").read_text())
    assert f"{worst}.jpg" not in [one["id"] for one in told["images"]]


class Broken:
    """Images of which one is no image any more."""

    def __init__(self, images, row):
        self._images, self._row = images, row

    def read(self, row):
        return b"no image" if row == self._row else self._images.read(row)

    def __getattr__(self, name):
        return getattr(self._images, name)


def test_predictions_of_other_images_are_refused(photos, tmp_path):
    source = open_source(str(photos), "val", "data_path")
    with pytest.raises(DataError, match="do not fit"):
        write_shown(tmp_path, answers(3, ("a", "b")), source)
    assert list(tmp_path.iterdir()) == []
