"""ImageNet's classes are known by any name, and another order of them is noticed."""

from __future__ import annotations

import pytest
from made_images import write_folder

from vitbase.errors import DataError
from vitbase.sources.imagenet.classes import challenge_synsets, imagenet_synsets, readable_name
from vitbase.sources.imagenet.order import class_order_problem, find_synset
from vitbase.sources.open import open_train_val, open_val

SYNSETS = imagenet_synsets()
WORDS = [readable_name(synset) for synset in SYNSETS]


def test_a_synset_is_found_by_number_or_words():
    for name in ("n01440764", "n01440764_tench", "n01440764 tench", "tench", "Tinca_tinca"):
        assert find_synset(name) == "n01440764"
    assert find_synset("black_footed_ferret") == find_synset("black-footed ferret") == "n02443484"
    for name in ("crane", "n014407641", "n0144", "my tench", ""):  # two classes are called crane
        assert find_synset(name) is None
    found = [find_synset(words) for words in WORDS]
    assert sum(one == other for one, other in zip(found, SYNSETS, strict=True)) > 990
    assert all(one in (None, other) for one, other in zip(found, SYNSETS, strict=True))


@pytest.mark.parametrize(
    "names",
    [
        SYNSETS,
        WORDS,
        [words.split(", ")[0] for words in WORDS],  # as torchvision has them
        [f"{s}_{w}" for s, w in zip(SYNSETS, WORDS, strict=True)],
    ],
    ids=["synsets", "words", "first words", "both"],
)
def test_the_order_of_the_models_is_right(names):
    assert class_order_problem(names) is None
    swapped = [*names[:3], names[4], names[3], *names[5:]]
    problem = class_order_problem(swapped)
    assert problem.startswith(f"class 3 is {names[4]}")
    assert problem.endswith(
        "in ImageNet's models it is n01491361 (tiger shark, Galeocerdo cuvieri)"
    )


def test_orders_that_are_often_met_are_called_by_their_name():
    by_words = class_order_problem(sorted(WORDS))
    assert by_words.startswith("class 0 is Afghan hound")
    assert by_words.endswith("These names are sorted as words, not by their synsets")
    first_words = sorted({words.split(", ")[0].replace(" ", "_") for words in WORDS})
    assert "998 classes" in class_order_problem(first_words)
    assert "development kit's numbering" in class_order_problem(challenge_synsets())
    numbers = [str(number) for number in range(1000)]
    assert "development kit's numbering" in class_order_problem(numbers, challenge_synsets())
    assert class_order_problem(numbers, SYNSETS) is None
    as_text = sorted(numbers)
    problem = class_order_problem(as_text, [SYNSETS[int(number)] for number in as_text])
    assert "class 2 is 10 (brambling" in problem
    assert "sorted as text, 10 before 2" in problem


def test_a_missing_and_a_strange_class_shift_the_others():
    problem = class_order_problem([*SYNSETS[:7], *SYNSETS[8:]])
    assert "999 classes" in problem
    assert "n01514668 (cock) is missing" in problem
    assert "'background' is not one of them" in class_order_problem(["background", *SYNSETS])
    other = class_order_problem([*SYNSETS[:7], "n00007846", *SYNSETS[8:]])
    assert "1 of the 1000 synsets are not ImageNet-1k's (the first: n00007846)" in other
    assert "n01514668 (cock)" in other


def test_other_data_has_an_order_of_its_own():
    assert class_order_problem(["cat", "dog"]) is None
    assert class_order_problem([str(number) for number in range(1000)]) is None
    assert class_order_problem(SYNSETS[:100]) is None
    assert class_order_problem(sorted(WORDS[:500])) is None


def test_synset_folders_find_readable_names_in_whatever_order(config, tmp_path):
    """A model trained on folders with names in words has its outputs in their order."""
    write_folder(tmp_path, {"n01440764": 1, "n01443537": 1, "n02119789": 1})
    words = sorted(WORDS)
    val = open_val(config(val_data_path=str(tmp_path)), words)
    assert [words[label] for label in val.labels] == [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "kit fox, Vulpes macrotis",
    ]
    assert "by what they mean (n01440764 is 'tench, Tinca tinca')" in val.notes[-1]


def test_a_run_on_another_order_than_imagenets_says_so(config, tmp_path):
    for words in WORDS:
        (tmp_path / "train" / words).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / words / "x.jpg").touch()
    (tmp_path / "train" / "crane, machine").mkdir()
    (tmp_path / "train" / "crane, machine" / "x.jpg").touch()
    path = str(tmp_path / "train")
    notes = open_train_val(config(data_path=path, val_data_path=path)).notes
    assert any("not numbered as in ImageNet's models: class 0 is Afghan hound" in n for n in notes)


def test_other_synsets_are_other_classes(config, tmp_path):
    """As many of them is no reason to take the one for the other."""
    write_folder(tmp_path / "train", {"n01440764": 2, "n01443537": 2})
    write_folder(tmp_path / "val", {"n01440764": 1, "n02119789": 1})
    with pytest.raises(DataError, match="does not know: n02119789"):
        open_train_val(config(data_path=str(tmp_path)))
