import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitbase.sources.archives import Pixels
from vitbase.sources.folders import build_source, read_folder
from vitbase.sources.holdout import hold_out
from vitbase.sources.source import Source


def write(root, classes):
    """Write files whose content is a number: equal numbers are identical files."""
    for name, contents in classes.items():
        (root / name).mkdir(parents=True)
        for place, content in enumerate(contents):
            (root / name / f"{place:03}.jpg").write_bytes(b"%06d" % content)
    return read_folder(root, "data_path")


def contents(source, indices):
    return {source.read(int(i)) for i in indices}


def test_share_of_every_class(tmp_path):
    source = write(tmp_path, {"a": range(100), "b": range(100, 140), "c": range(200, 204)})
    part = hold_out(source, 0.1, seed=0)
    assert np.bincount(source.labels[part.val]).tolist() == [10, 4, 1]
    assert np.array_equal(np.sort(np.r_[part.train, part.val]), np.arange(144))
    assert part.held_out == tuple(source.name(int(i)) for i in part.val)
    assert part.notes == ("15 of 144 images are held out for evaluation, from every class alike.",)


def test_seed_decides_place_does_not(tmp_path):
    classes = {"a": range(50), "b": range(50, 100)}
    first = hold_out(write(tmp_path / "here", classes), 0.2, seed=1)
    shutil.copytree(tmp_path / "here", tmp_path / "else" / "where")
    moved = hold_out(read_folder(tmp_path / "else" / "where", "data_path"), 0.2, seed=1)
    assert moved.held_out == first.held_out
    assert hold_out(write(tmp_path / "again", classes), 0.2, seed=2).held_out != first.held_out


def test_recorded_choice(tmp_path):
    # Evaluating an old run without val_data_path has to find the same images.
    source = write(tmp_path, {"a": range(5), "b": range(5, 12)})
    assert hold_out(source, 0.3, seed=0).held_out == (
        "a/000.jpg",
        "a/004.jpg",
        "b/000.jpg",
        "b/001.jpg",
    )


def test_a_new_file_moves_few_others(tmp_path):
    source = write(tmp_path, {"a": range(50), "b": range(50, 100)})
    before = set(hold_out(source, 0.2, seed=0).held_out)
    (tmp_path / "a" / "new.jpg").write_bytes(b"new")
    after = set(hold_out(read_folder(tmp_path, "data_path"), 0.2, seed=0).held_out)
    assert len(before ^ after) <= 2


def test_identical_files_stay_together(tmp_path):
    # Every image three times.
    source = write(
        tmp_path, {"a": [i // 3 for i in range(60)], "b": [100 + i // 3 for i in range(60)]}
    )
    part = hold_out(source, 0.25, seed=0)
    assert not contents(source, part.train) & contents(source, part.val)
    assert np.bincount(source.labels[part.val]).tolist() == [15, 15]
    assert any("120 files have a twin of the same content" in note for note in part.notes)


def test_equal_size_and_middle_but_different_content(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.jpg").write_bytes(bytes([number]) + bytes(20_000))
    (root / "4.jpg").write_bytes(bytes([0]) + bytes(20_000))
    source = read_folder(tmp_path, "data_path")
    part = hold_out(source, 0.5, seed=0)
    assert not contents(source, part.train) & contents(source, part.val)
    assert any("2 files have a twin" in note for note in part.notes)


def test_an_image_under_two_classes_is_named_and_stays_in_training(tmp_path):
    source = write(tmp_path, {"a": [*range(20), 99], "b": [*range(50, 70), 99]})
    for seed in range(10):
        part = hold_out(source, 0.5, seed)
        assert b"000099" in contents(source, part.train) - contents(source, part.val)
    assert any(
        "1 images are filed under several classes (such as a/020.jpg and b/020.jpg)" in note
        for note in part.notes
    )


def test_a_class_of_one_image_stays_in_training(tmp_path):
    source = write(tmp_path, {"lonely": [1], "copies": [2, 2, 2], "many": range(10, 20)})
    part = hold_out(source, 0.9, seed=0)
    assert set(source.labels[part.val]) == {source.class_names.index("many")}
    assert np.bincount(source.labels[part.train]).tolist() == [3, 1, 1]
    assert sum("no image to spare" in note for note in part.notes) == 2


def test_classes_that_share_all_their_images(tmp_path):
    source = write(tmp_path, {"a": [1, 2], "b": [1, 2]})
    part = hold_out(source, 0.1, seed=0)
    assert np.bincount(source.labels[part.val]).tolist() == [1, 1]
    assert not contents(source, part.train) & contents(source, part.val)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    classes=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_properties(tmp_path_factory, classes, fraction, seed):
    source = write(
        tmp_path_factory.mktemp("images"), {f"c{i}": values for i, values in enumerate(classes)}
    )
    part = hold_out(source, fraction, seed)
    assert np.array_equal(np.sort(np.r_[part.train, part.val]), np.arange(len(source)))
    assert not contents(source, part.train) & contents(source, part.val)
    # No class is lost to training; one with two images that are its own is on both sides.
    assert set(source.labels[part.train]) == set(range(len(classes)))
    for label, values in enumerate(classes):
        others = {v for i, c in enumerate(classes) if i != label for v in c}
        if len(set(values) - others) >= 2:
            assert label in source.labels[part.val]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_have_something(tmp_path, fraction):
    part = hold_out(write(tmp_path, {"a": range(30)}), fraction, seed=0)
    assert min(len(part.val), len(part.train)) == 1


def multi_hot(root, labels):
    """Write a different image for every row of labels."""
    root.mkdir()
    for number in range(len(labels)):
        (root / f"{number:03}.jpg").write_bytes(b"%06d" % number)
    names = [f"{number:03}.jpg" for number in range(len(labels))]
    classes = tuple("abcdef"[: labels.shape[1]])
    return build_source(root, names, labels, classes)


def test_several_labels_an_image(tmp_path):
    labels = np.zeros((60, 4), np.float32)
    labels[:20, 0] = labels[20:40, 1] = labels[40:50, 2] = 1  # the last ten are of no class
    labels[5:10, 1] = labels[10:30, 2] = 1  # beside their first
    source = multi_hot(tmp_path / "images", labels)
    part = hold_out(source, 0.2, seed=0)
    first = np.where(labels.any(1), labels.argmax(1), 4)
    assert np.bincount(first[part.val]).tolist() == [4, 4, 2, 0, 2]
    assert np.array_equal(np.sort(np.r_[part.train, part.val]), np.arange(60))
    assert part.held_out == tuple(source.name(int(i)) for i in part.val)
    assert source.take(part.val).labels.shape == (12, 4)
    assert part.notes == ("12 of 60 images are held out for evaluation, from every class alike.",)


def test_a_class_that_none_is_held_out_of_is_named(tmp_path):
    labels = np.zeros((10, 2), np.float32)
    labels[:, 0] = 1
    labels[0, 1] = 1
    source = multi_hot(tmp_path / "images", labels)
    for seed in range(20):
        part = hold_out(source, 0.1, seed)
        assert (0 in part.val) != any("class 'b' has no image" in note for note in part.notes)


def test_images_in_memory_and_files_are_grouped_alike(tmp_path):
    pixels = np.arange(10, dtype=np.uint8).repeat(2).reshape(20, 1, 1, 1)  # every image twice
    images = Pixels(pixels, (("x", 20),))
    source = Source(images, np.arange(20), np.arange(20) // 10, ("a", "b"), decoded=True)
    part = hold_out(source, 0.4, seed=0)
    assert part.val.tolist() == sorted({i // 2 * 2 + j for i in part.val for j in (0, 1)})
    assert np.bincount(source.labels[part.val]).tolist() == [4, 4]
    assert part.held_out[0] == f"x[{part.val[0]}]"


def test_a_part_of_a_source_holds_out_of_that_part(tmp_path):
    source = write(tmp_path, {"a": range(20), "b": range(50, 70)})
    part = hold_out(source.take(np.arange(10, 30)), 0.5, seed=0)
    assert all(name >= "a/010.jpg" for name in part.held_out if name.startswith("a"))
    assert all(name < "b/010.jpg" for name in part.held_out if name.startswith("b"))
