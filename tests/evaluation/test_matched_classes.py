"""Which of a model's classes the data's are: by name where it is certain, as a map says, or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_images import photo
from made_sources import given

from vitbase.errors import ConfigError, DataError
from vitbase.evaluation.classes import ModelClasses, fit_classes, match_by_name
from vitbase.sources.imagenet.classes import imagenet_synsets, readable_name
from vitbase.sources.source import Source

SYNSETS = imagenet_synsets()


def source_of(*names: str) -> Source:
    """One image of each class."""
    places = [str(n) for n in range(len(names))]
    return given([photo(4, 4)] * len(names), np.arange(len(names)), names, places)


def model_of(*names: str, outputs: int | None = None) -> ModelClasses:
    return ModelClasses(names or None, outputs or len(names), "w.npz")


def test_names_are_found_but_for_case_spaces_and_underscores():
    fitted = fit_classes(source_of("Ice_Bear", "red fox"), model_of("RedFox", "lynx", "ice bear"))
    assert fitted.labels.tolist() == [2, 0]
    assert fitted.class_names == ("RedFox", "lynx", "ice bear")
    assert fitted.notes == (
        "2 classes are found by other spellings: 'Ice_Bear' is 'ice bear', 'red fox' is 'RedFox'.",
    )


def test_synsets_are_found_among_words_and_the_other_way_round():
    words = (readable_name(SYNSETS[7]), "my own class", readable_name(SYNSETS[3]))
    fitted = fit_classes(source_of(SYNSETS[3], SYNSETS[7]), model_of(*words))
    assert fitted.labels.tolist() == [2, 0]
    fitted = fit_classes(source_of("tench", "goldfish"), model_of(*SYNSETS))
    assert fitted.labels.tolist() == [0, 1]
    assert match_by_name(["goldfish", "tench"], SYNSETS).tolist() == [1, 0]


def test_what_two_classes_would_be_is_neither():
    assert match_by_name(["a b", "a_b"], ["A B", "c"]).tolist() == [-1, -1]
    assert match_by_name(["ab"], ["A B", "a_b"]).tolist() == [-1]
    assert match_by_name(["a b", "A_B"], ["A B", "A_B"]).tolist() == [-1, 1]


def test_a_model_without_names_has_imagenets_synsets():
    """Two hundred folders of it are not the first two hundred outputs."""
    fitted = fit_classes(source_of(SYNSETS[6], SYNSETS[11]), model_of(outputs=1000))
    assert fitted.labels.tolist() == [6, 11]
    assert any("does not name its 1000 classes: they are taken to be" in n for n in fitted.notes)


def test_folders_that_are_numbers_stand_for_them():
    names = tuple(sorted(map(str, range(12))))
    fitted = fit_classes(source_of(*names), model_of(outputs=12))
    assert fitted.labels.tolist() == [int(name) for name in names]
    fewer = fit_classes(source_of("a", "b"), model_of(outputs=3))
    assert "taken to be the first of them" in fewer.notes[-1]
    with pytest.raises(DataError, match="have 3 classes, but"):
        fit_classes(source_of("a", "b", "c"), model_of(outputs=2))


def test_what_is_not_certain_is_refused_with_the_differences():
    with pytest.raises(DataError) as caught:
        fit_classes(source_of("cat", "dogs", "xyz"), model_of("cat", "dog", "emu"))
    told = str(caught.value)
    assert "2 of 3 are not, for certain, among the 3 of w.npz" in told
    assert "  dogs: Did you mean 'dog'?" in told
    assert "  xyz: nothing like it." in told
    assert "--map FILE.csv" in told


def write_map(path: Path, *lines: str) -> str:
    file = path / "classes.csv"
    file.write_text("\n".join(("data,model", *lines)))
    return str(file)


def test_a_map_tells(tmp_path):
    model = model_of("cat", "dog", "emu")
    file = write_map(tmp_path, "hound,dog", "bird,2")
    fitted = fit_classes(source_of("bird", "CAT", "hound"), model, file)
    assert fitted.labels.tolist() == [2, 0, 1]
    assert fitted.notes[-1] == f"2 classes are the model's as {file} says."
    # It wins over names, too.
    swapped = write_map(tmp_path, "cat,dog", "dog,cat")
    assert fit_classes(source_of("cat", "dog"), model, swapped).labels.tolist() == [1, 0]
    unnamed = fit_classes(
        source_of("x"), model_of(outputs=1000), write_map(tmp_path, "x,n01443537")
    )
    assert unnamed.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cow,dog"], "the data has no class 'cow'"),
        (["cat,cow"], "the model has no class 'cow'"),
        (["cat,dog", "cat,emu"], ":3: the class 'cat' of the data stands there twice"),
        (["cat,dog", "dog,dog"], "'cat' and 'dog' of the data are both to be 'dog'"),
        (["cat"], ":2: expected two classes"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path, lines, message):
    file = write_map(tmp_path, *lines)
    with pytest.raises(ConfigError, match=message):
        fit_classes(source_of("cat", "dog"), model_of("cat", "dog", "emu"), file)


def test_a_map_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\nc,d\n")
    for file, message in (("x.csv", "should be data,model"), ("none.csv", "Cannot read --map")):
        with pytest.raises(ConfigError, match=message):
            fit_classes(source_of("a"), model_of("a"), str(tmp_path / file))
