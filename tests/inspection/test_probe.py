"""How good features are: through the API and the command line, and each classifier by itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import write_folder

import vitbase
from vitbase.errors import ConfigError
from vitbase.evaluation.figures import wilson
from vitbase.inspection.probing import knn, logistic
from vitbase.inspection.probing.images import open_images
from vitbase.inspection.probing.knn import classify_by_neighbours
from vitbase.inspection.probing.logistic import fit_logistic
from vitbase.inspection.probing.probe import Plan
from vitbase.inspection.probing.shots import draw_evenly, draw_shots, measure_shots
from vitbase.inspection.probing.squares import _STRENGTHS, fit_squares
from vitbase.inspection.probing.table import Probe, Probed
from vitbase.model.vit import VisionTransformer
from vitbase.weights.save import save_weights

CPU = {"device_target": "CPU", "precision": "fp32", "num_workers": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Weights with a head and without, and two others; images in two splits of three classes."""
    root = tmp_path_factory.mktemp("probe")
    for number, (name, classes) in enumerate({"a": 3, "b": 3, "bare": 0}.items()):
        torch.manual_seed(number)
        model = vitbase.create_model("testing", num_classes=classes, image_size=16)
        save_weights(model, root / f"{name}.safetensors")
    for split, count in (("train", 12), ("val", 8)):
        write_folder(root / "data" / split, dict.fromkeys(("bag", "boot", "coat"), count))
    return root


def of_clusters(
    images: int, classes: int = 4, width: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a centre of each class, and labels; some of another class's centre."""
    rng = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, images)
    spread = rng.normal(size=(images, width)) * np.geomspace(1, 30, width) + 100
    return torch.from_numpy(centres[labels] + spread).float(), torch.from_numpy(labels)


def test_several_weights_are_probed_in_one_call(made, cache):
    told: list[str] = []
    weights = [made / "a.safetensors", made / "b.safetensors", made / "bare.safetensors"]
    found = vitbase.probe(weights, made / "data", tell=told.append, **CPU)
    assert (found.training_images, found.evaluation_images) == (36, 24)
    assert [row.weights for row in found.rows] == list(map(str, weights))
    for row in found.rows:
        assert [each.shots for each in row.few_shot] == [5, 10]
        assert row.linear == wilson(int(row.linear_right.sum()), 24)
        assert all(figure.low <= figure.value <= figure.high for figure in row.figures().values())
        assert not row.features_were_kept
    lines = str(found).splitlines()
    assert lines[0].split()[:6] == ["weights", "width", "kNN", "linear", "5-shot", "10-shot"]
    assert "on 24 evaluation images; 36 training images" in lines[4]
    assert "linear classifier" in lines[5]
    again = vitbase.probe(weights, made / "data", **CPU)
    timeless = [
        {k: v for k, v in each.items() if "seconds" not in k and "kept" not in k}
        for probe in (found, again)
        for each in probe.to_dict()["probes"]
    ]
    assert timeless[:3] == timeless[3:]
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_features_and_held_out_images_are_those_of_training(
    made, photo_config, photo_folder, cache, capsys, monkeypatch
):
    weights = made / "a.safetensors"
    first = vitbase.probe(weights, photo_folder, **CPU)
    config = photo_config(
        model=None,
        pool=None,
        image_height=None,
        image_width=None,
        checkpoint_path=str(weights),
        freeze_backbone=True,
    )

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(VisionTransformer, "forward_features", fail)
    vitbase.train(config)
    assert "The features of all images are there from before" in capsys.readouterr().out
    data = open_images(Plan.of(data_path=str(photo_folder)).config, None)
    assert "\n".join(data.held_out) in (config.output_dir / "held_out.txt").read_text()
    again = vitbase.probe(weights, photo_folder, **CPU)
    assert again.rows[0].features_were_kept
    assert (again.rows[0].linear, again.rows[0].knn) == (first.rows[0].linear, first.rows[0].knn)


def test_unreadable_images_are_left_out_of_training_and_wrong_in_evaluation(made, tmp_path, cache):
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    for split in ("train", "val"):
        (data / split / "bag" / "0.JPEG").write_bytes(b"no image")
    told: list[str] = []
    (row,) = vitbase.probe(made / "a.safetensors", data, tell=told.append, **CPU).rows
    assert row.unreadable == (1, 1)
    assert len(row.linear_right) == 24
    assert not row.linear_right[0]
    assert not row.knn_right[0]
    assert sum("Unreadable training image" in line and "left out" in line for line in told) == 1
    assert sum("counted as wrong" in line for line in told) == 1
    with pytest.raises(Exception, match=r"1 of 36 training images are unreadable.*max_bad_images"):
        vitbase.probe(made / "a.safetensors", data, max_bad_images=0, **CPU)


def test_fewer_images_are_drawn_from_every_class_alike(made, cache):
    told: list[str] = []
    found = vitbase.probe(
        made / "a.safetensors", made / "data", max_images=9, tell=told.append, **CPU
    )
    assert (found.training_images, found.evaluation_images) == (9, 9)
    assert "9 of 36 training images are looked at, from every class alike." in told
    assert any(
        line.startswith("Class 'bag' has 3 images to train on: no 5, 10-shot") for line in told
    )
    assert any("so many neighbours vote" in line for line in told)
    assert found.rows[0].few_shot == ()
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    assert np.bincount(labels[draw_evenly(labels, 20, 0)]).tolist() == [14, 4, 2]


def test_the_command_prints_a_table_and_writes_files(made, vitbase_command, tmp_path):
    words = ["probe", made / "a.safetensors", made / "b.safetensors", "--data_path", made / "data"]
    words += ["--device_target", "CPU", "--shots", "2", "1", "--draws", "3"]
    code, out, err = vitbase_command(*words, "--out", tmp_path / "p.csv")
    assert code == 0
    assert "1-shot" in out.splitlines()[0]
    assert f"The numbers are in {tmp_path / 'p.csv'}" in out
    assert "Weights from" in err
    rows = [*csv.DictReader((tmp_path / "p.csv").read_text().splitlines())]
    assert [row["weights"] for row in rows] == [str(word) for word in words[1:3]]
    code, out, _ = vitbase_command(*words, "--json", "--out", tmp_path / "p.json")
    told = json.loads(out)
    assert json.loads((tmp_path / "p.json").read_text()) == told
    assert [len(each["draws"]) for each in told["probes"][0]["few_shot"]] == [3, 3]
    assert float(rows[0]["linear"]) == told["probes"][0]["linear"]["value"]
    assert float(rows[1]["2-shot high"]) == told["probes"][1]["few_shot"][1]["high"]
    assert told["probes"][0]["features_were_kept"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--neighbours", "37"], "Option 'neighbours' is 37, and there are 36 training images"),
        (["--neighbours", "0"], "Option 'neighbours' should be at least 1."),
        (["--shots", "5", "13"], "Option 'shots' asks for 13 images of each class, and class"),
        (["--shots", "0"], "Option 'shots' should be at least 1."),
        (["--draws", "0"], "Option 'draws' should be at least 1."),
        (["--max_images", "1"], "Option 'max_images' should be at least 2."),
        (["--shot", "5"], "Unknown option '--shot'. Did you mean 'shots'?"),
        (["--out", "numbers.txt"], "--out numbers.txt: call the file .csv or .json."),
        (["--out", "absent/p.csv"], "--out absent/p.csv is no place for a file."),
        (["--precision", "fp8"], "Option 'precision' should be"),
        (["--image_size", "15"], "15"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_wrong_option_is_named_before_anything_is_computed(
    made, vitbase_command, monkeypatch, options, message
):
    monkeypatch.setattr(VisionTransformer, "forward_features", None)
    words = ["probe", made / "a.safetensors", "--data_path", made / "data", *options]
    code, out, err = vitbase_command(*words)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("vitbase: error:")]
    assert message in line


@pytest.mark.parametrize("what", ["text", "absent", "twice", "none", "no data"])
def test_weights_that_cannot_be_probed_are_named(made, vitbase_command, tmp_path, what):
    good = made / "a.safetensors"
    (tmp_path / "text.pth").write_text("no weights\x1b[2J")
    weights, message = {
        "text": ([good, tmp_path / "text.pth"], "text.pth"),
        "absent": ([good, tmp_path / "absent.pth"], "absent.pth does not exist"),
        "twice": ([good, good], "are the same weights"),
        "none": ([], "Usage: vitbase probe WEIGHTS..."),
        "no data": ([good], "there is no such folder"),
    }[what]
    data = tmp_path / "no" if what == "no data" else made / "data"
    code, out, err = vitbase_command("probe", *weights, "--data_path", data)
    assert (code, out) == (2, "")
    assert message in err
    assert "\x1b" not in err
    assert "Traceback" not in err


def test_images_that_cannot_be_probed_are_named(made, vitbase_command, tmp_path):
    write_folder(tmp_path / "one", {"bag": 4})
    several = tmp_path / "several.csv"
    names = sorted((made / "data" / "train").rglob("*.JPEG"))[:4]
    lines = [f"{name},{'cat;dog' if n % 2 else 'cat'}" for n, name in enumerate(names)]
    several.write_text("\n".join(["path,labels", *lines]))
    (tmp_path / "flat").mkdir()
    shutil.copy(names[0], tmp_path / "flat")
    for place, message in (
        (tmp_path / "one", "The data has a single class, 'bag'"),
        (several, "its images may have several labels each"),
        (tmp_path / "flat", "flat"),
    ):
        code, out, err = vitbase_command("probe", made / "a.safetensors", "--data_path", place)
        assert (code, out) == (2, ""), place
        assert message in err
    bare = vitbase.load_model(made / "bare.safetensors")
    assert bare.model.head is None  # and it was probed in the first test


def test_neighbours_vote_by_their_cosine(monkeypatch):
    train, labels = of_clusters(90)
    images, _ = of_clusters(50, seed=1)
    whole = classify_by_neighbours(train, labels, images, 4, 7)
    unit = [torch.nn.functional.normalize(each.double(), dim=1) for each in (images, train)]
    for answer, cosines in zip(whole.tolist(), unit[0] @ unit[1].T, strict=True):
        votes = [0.0] * 4
        for index in cosines.argsort(descending=True)[:7].tolist():
            votes[labels[index]] += float((cosines[index] / 0.07).exp())
        assert max(votes) == pytest.approx(votes[answer])
    monkeypatch.setattr(knn, "_ROWS", 8)
    monkeypatch.setattr(knn, "_COLUMNS", 5)
    assert torch.equal(classify_by_neighbours(train, labels, images, 4, 7), whole)
    alone = classify_by_neighbours(train, labels, train, 4, 1)
    assert torch.equal(alone, labels)


@pytest.mark.parametrize(("images", "width"), [(40, 6), (12, 30)])
def test_least_squares_choose_the_strength_that_leaving_out_says(images, width):
    features, labels = of_clusters(images, classes=3, width=width)
    found = fit_squares(features, labels, 3)
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    targets = 2 * np.eye(3)[labels.numpy()] - 1

    def errors(strength):
        total = 0.0
        for out in range(images):
            rest = np.delete(np.arange(images), out)
            mean, middle = x[rest].mean(0), targets[rest].mean(0)
            centred = x[rest] - mean
            gram = centred.T @ centred + images * strength * np.eye(width)
            weight = np.linalg.solve(gram, centred.T @ (targets[rest] - middle))
            total += ((targets[out] - middle - (x[out] - mean) @ weight) ** 2).sum()
        return total

    by_hand = {strength: errors(strength) for strength in _STRENGTHS}
    assert found.strength == min(by_hand, key=by_hand.__getitem__)


def test_the_logistic_classifier_ends_near_its_least_loss():
    features, labels = of_clusters(600)
    found = fit_logistic(features, labels, 4)
    scale = features.double().std(0, correction=0)
    weight = (found.weight_DC * scale[:, None]).contiguous().requires_grad_()
    bias = (found.bias_C + features.double().mean(0) @ found.weight_DC).requires_grad_()
    x = (features.double() - features.double().mean(0)) / scale

    def loss() -> torch.Tensor:
        fit = torch.nn.functional.cross_entropy(x @ weight + bias, labels)
        return fit + found.strength / 2 * weight.square().sum()

    before = float(loss().detach())
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    solver.step(closure)
    least = float(loss().detach())
    assert least <= before <= 1.03 * least


def test_with_many_images_the_strength_is_asked_of_some(monkeypatch):
    features, labels = of_clusters(900)
    others, answers = of_clusters(900, seed=1)
    whole = fit_logistic(features, labels, 4).classify(others)
    monkeypatch.setattr(logistic, "_ENOUGH", 300)
    part = fit_logistic(features, labels, 4).classify(others)
    assert float((whole == part).float().mean()) > 0.97
    assert float((part == answers).float().mean()) > 0.5


def test_features_that_tell_nothing_are_no_fault():
    features, labels = of_clusters(30)
    features[:, 2] = 5.0
    for fit in (fit_logistic, fit_squares):
        assert fit(features, labels, 4).weight_DC.isfinite().all()
        same = fit(torch.ones(30, 6), labels, 4)
        assert len(set(same.classify(torch.ones(9, 6)).tolist())) == 1


def test_shots_are_so_many_of_each_class_and_the_interval_knows_both_chances():
    features, labels = of_clusters(200)
    numbers = labels.numpy()
    few, more = (draw_shots(numbers, shots, seed=3) for shots in (2, 5))
    assert np.bincount(numbers[few]).tolist() == [2] * 4
    assert set(few) <= set(more)
    assert set(few) != set(draw_shots(numbers, 2, seed=4))
    images, answers = of_clusters(100, seed=1)
    found = measure_shots(features, labels, images, answers.numpy(), 4, 5, draws=4, seed=0)
    assert found.figure.value == pytest.approx(np.mean(found.draws))
    of_draws = 3.182 * np.std(found.draws, ddof=1) / 2
    assert found.figure.high - found.figure.value > of_draws
    alone = measure_shots(features, labels, images, answers.numpy(), 4, 5, draws=1, seed=0)
    assert alone.draws == found.draws[:1]
    assert alone.figure.low < alone.figure.value < alone.figure.high


def made_row(name: str, right: int) -> Probed:
    right_m = np.arange(400) < right
    return Probed(
        name, Path(name), 8, (16, 16), 20, 1e-3, right_m, right_m, right_m, (), (0, 0), True, 1, 1
    )


def test_the_best_weights_are_called_best_where_the_images_say_so():
    rows = tuple(made_row(name, right) for name, right in (("a", 300), ("b\x1b", 308), ("c", 303)))
    tied = Probe(rows, 100, 400, "data")
    assert tied.verdict().best == 1
    assert tied.verdict().ties == [2]
    assert "b\\x1b; these images do not tell it from c (p = 0.062)" in str(tied)
    sure = Probe((*rows[:1], made_row("b", 350)), 100, 400, "data")
    assert "best for a linear classifier: b (p at most" in str(sure)
    alone = Probe(rows[:1], 100, 400, "data")
    assert "best" not in str(alone)
    assert alone.to_dict()["p_against_best"] == {}
    assert dataclasses.replace(tied, rows=rows[:1]).verdict().ties == []


def test_an_unknown_option_of_the_function_is_refused(made):
    with pytest.raises(ConfigError, match="Unknown option 'k'"):
        vitbase.probe(made / "a.safetensors", made / "data", k=5)
