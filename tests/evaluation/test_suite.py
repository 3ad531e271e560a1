"""ImageNet's family, in made-up versions of a few images that lie as the real ones do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import encode, photo

import vitbase
from vitbase.errors import ConfigError, DataError
from vitbase.evaluation.classes import ModelClasses
from vitbase.evaluation.corruptions import ALEXNET_ERRORS, Corruption, Corruptions
from vitbase.evaluation.metrics import ClassificationSums
from vitbase.evaluation.real import ValidLabelSums
from vitbase.evaluation.suite import find_tasks
from vitbase.sources.imagenet.classes import imagenet_synsets, readable_name

SYNSETS = imagenet_synsets()
MODEL = ModelClasses(None, 1000, "w.npz")


def put(folder: Path, *names: str) -> None:
    """Write an image of one grey; which one says which image it is."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode(photo(20, 24, seed=len(name))))


@pytest.fixture
def family(tmp_path: Path) -> Path:
    root = tmp_path / "family"
    # Images of the val set, in class folders: two of class 3, one of class 700.
    put(root / "val", *(f"{SYNSETS[3]}/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 4)))
    put(root / "val", f"{SYNSETS[700]}/ILSVRC2012_val_00000003.JPEG")
    (root / "real.json").write_text(json.dumps([[3, 5], [1], [], [700], [2]]))
    put(root / "imagenetv2-matched-frequency-format-val", "2/a.jpeg", "10/b.jpeg", "999/c.jpeg")
    put(root / "imagenet-a", f"{SYNSETS[6]}/x.jpg", f"{SYNSETS[11]}/y.jpg", f"{SYNSETS[11]}/z.jpg")
    (root / "imagenet-a" / "README.txt").write_text("as it comes")
    put(root / "ImageNet-R", f"{SYNSETS[1]}/art_0.jpg", f"{SYNSETS[990]}/art_1.jpg")
    put(root / "sketch", f"{SYNSETS[0]}/sketch_0.JPEG", f"{SYNSETS[999]}/sketch_1.JPEG")
    for kind in ("fog", "noise/gaussian_noise"):
        for severity in "12345":
            put(root / "ImageNet-C" / kind / severity, f"{SYNSETS[3]}/1.JPEG")
    return root


def test_what_is_there_is_found_with_its_classes(family):
    tasks = {task.name: task for task in find_tasks(str(family), MODEL)}
    assert [*tasks] == [
        *("imagenet", "imagenet-real", "imagenetv2-matched-frequency", "imagenet-a", "imagenet-r"),
        "imagenet-sketch",
        *(f"imagenet-c/fog/{n}" for n in range(1, 6)),
        *(f"imagenet-c/gaussian_noise/{n}" for n in range(1, 6)),
    ]
    assert tasks["imagenet"].source.labels.tolist() == [3, 3, 700]
    # Folders 10, 2, 999 in the order of text.
    assert tasks["imagenetv2-matched-frequency"].source.labels.tolist() == [10, 2, 999]
    assert tasks["imagenet-sketch"].source.labels.tolist() == [0, 999]
    real = tasks["imagenet-real"]
    assert real.valid
    assert [np.flatnonzero(row).tolist() for row in real.source.labels] == [[3, 5], [700]]
    assert "2 of 3 images; 1 without a label" in real.source.notes[0]
    assert tasks["imagenet-c/fog/4"].corruption == ("fog", 4)
    assert tasks["imagenet-c/fog/4"].data_set.sets == {"crop_ratio": 1.0}


def test_of_two_hundred_classes_the_model_chooses_among_these(family):
    task = next(task for task in find_tasks(str(family), MODEL) if task.name == "imagenet-a")
    assert task.outputs.tolist() == [6, 11]
    assert task.source.labels.tolist() == [0, 1, 1]
    assert task.source.class_names == (SYNSETS[6], SYNSETS[11])
    logits = torch.arange(1000.0)[None]
    assert task.restrict(logits).tolist() == [[6.0, 11.0]]
    (said,) = [note for note in task.source.notes if "chooses among" in note]
    assert f"({SYNSETS[6]} is output 6); the model chooses among these 2" in said
    assert any("has 200 classes, but" in note for note in task.source.notes)


def test_a_model_in_another_order_is_found_by_its_names(family):
    """Of classes in words, sorted as words: outputs, ReaL's numbers and folders all follow."""
    names = [readable_name(synset) for synset in SYNSETS]
    names = [n if names.count(n) == 1 else f"{s} {n}" for s, n in zip(SYNSETS, names, strict=True)]
    words = tuple(sorted(names))
    tasks = {t.name: t for t in find_tasks(str(family), ModelClasses(words, 1000, "w"))}
    place = [words.index(name) for name in names]
    assert tasks["imagenet"].source.labels.tolist() == [place[3], place[3], place[700]]
    real = tasks["imagenet-real"].source.labels
    assert np.flatnonzero(real[0]).tolist() == sorted([place[3], place[5]])
    a = tasks["imagenet-a"]
    assert a.outputs[a.source.labels].tolist() == [place[6], place[11], place[11]]


def test_an_answer_is_right_if_it_is_one_of_several():
    logits = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    labels = torch.tensor([[1.0, 1, 0], [0, 1.0, 1], [0, 1.0, 0]])
    sums = ValidLabelSums.of(logits, labels, torch.tensor([True, True, False]))
    total = sums + ValidLabelSums.of(logits[:1], labels[:1], torch.tensor([True]))
    assert (total.hits, total.images, total.unreadable, total.accuracy) == (2, 4, 1, 0.5)
    assert "ReaL accuracy 50.00%" in total.describe()


def test_errors_are_divided_by_alexnets_only_if_all_are_there():
    def counted(error: float) -> ClassificationSums:
        return ClassificationSums(images=1000, top1_hits=round(1000 * (1 - error)))

    fog = Corruption("fog", {n: counted(0.1 * n) for n in range(1, 6)})
    assert fog.error == pytest.approx(0.3)
    assert fog.normalised == pytest.approx(0.3 / 0.819324)
    assert Corruption("fog", {1: counted(0.1)}).normalised is None
    assert Corruptions((fog,)).to_row()["eval_mce"] is None
    severities = {n: counted(0.4) for n in range(1, 6)}
    every = Corruptions(tuple(Corruption(name, severities) for name in ALEXNET_ERRORS))
    expected = np.mean([0.4 / error for error in ALEXNET_ERRORS.values()])
    assert every.mce == pytest.approx(expected)
    more = Corruptions((*every.kinds, Corruption("spatter", severities)))
    assert (more.mce, more.to_row()["eval_corruptions"]) == (every.mce, 16)


def test_one_command_evaluates_all_of_them(family, tmp_path, vitbase_command):
    """A model that says class 11 most, then 700, then 6, whatever it sees."""
    model = vitbase.create_model("testing", num_classes=1000, image_size=16)
    with torch.no_grad():
        model.head.weight.zero_()
        for output, bias in ((11, 3.0), (700, 2.0), (6, 1.0)):
            model.head.bias[output] = bias
    weights = tmp_path / "w.npz"
    vitbase.save_weights(model, weights, dialect="google", allow=("gelu",))
    words = ["--checkpoint_path", weights, "--suite", "imagenet", "--data_path", family]
    code, out, err = vitbase_command("eval", *words, "--json", "--device_target", "CPU")
    assert code == 0, err
    rows = {row["data_set"]: row for row in map(json.loads, out.splitlines())}
    assert rows["imagenet"]["eval_top1"] == 0
    assert rows["imagenet-a"]["eval_top1"] == pytest.approx(2 / 3)  # not 0.08%
    assert rows["imagenet-a"]["num_classes"] == 2
    assert rows["imagenet-real"]["eval_real_accuracy"] == 0
    assert rows["imagenet-c/fog"]["eval_error"] == 1
    assert rows["imagenet-c"]["eval_mean_error"] == 1
    assert rows["imagenet-c"]["eval_mce"] is None
    assert rows["imagenet"]["preprocess"]["crop_mode"] == "squash"  # as Google's weights have it
    assert "the model chooses among these 2" in err
    assert "val_data_path" not in err  # of the recipe, which nobody named


def test_what_cannot_be_is_refused(family, tmp_path, vitbase_command):
    with pytest.raises(ConfigError, match="there is no data set of --suite imagenet"):
        next(find_tasks(str(tmp_path / "family" / "imagenet-a"), MODEL))
    with pytest.raises(ConfigError, match="is no folder"):
        next(find_tasks(str(tmp_path / "none"), MODEL))
    with pytest.raises(ConfigError, match="needs --data_path"):
        next(find_tasks(None, MODEL))
    put(family / "imagenet-a", "n00000001/x.jpg")
    with pytest.raises(DataError, match="n00000001 are no synsets of ImageNet-1k"):
        next(find_tasks(str(family), MODEL))
    with pytest.raises(DataError, match="does not know"):
        next(find_tasks(str(family), ModelClasses(tuple("abcdefghij"), 10, "w")))
    with pytest.raises(DataError, match="does not name its 1001 classes"):
        next(find_tasks(str(family), ModelClasses(None, 1001, "w")))


def test_the_command_says_what_is_not_there(family, tmp_path, vitbase_command):
    model = vitbase.create_model("testing", num_classes=3, image_size=16, in_channels=1)
    vitbase.save_weights(model, tmp_path / "w.safetensors", labels=("a", "b", "c"))
    words = ["eval", "--checkpoint_path", tmp_path / "w.safetensors", "--suite", "imagenet"]
    for more, message in (
        ([], "--suite imagenet needs --data_path"),
        (["--data_path", tmp_path / "family" / "val"], "there is no data set of --suite imagenet"),
        (["--data_path", family, "--protocol", "deit"], "Protocol 'deit' is for images of 3"),
        (["--data_path", family, "--map", "x.csv"], "take away --map"),
        (["--data_path", family], "classes that the model does not know"),
    ):
        code, _, err = vitbase_command(*words, *more)
        assert (code, message in err) == (2, True), err
