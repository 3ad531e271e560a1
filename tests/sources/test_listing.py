import os
import shutil
import stat
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitbase.errors import DataError
from vitbase.files import cache_folder
from vitbase.sources import listing
from vitbase.sources.folders import read_folder
from vitbase.sources.listing import open_folder
from vitbase.sources.open import open_source

NOW = time.time_ns


@pytest.fixture(autouse=True)
def cache(cache, monkeypatch):
    """A cache that keeps small folders too, at a time when nothing is fresh."""
    monkeypatch.setattr(listing, "SMALL", 3)
    monkeypatch.setattr(listing.time, "time_ns", lambda: NOW() + 10**10)
    return cache


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    for name in ("b/1.jpg", "b/2.png", "a/deep/er/1.jpg", "a/ü 字.jpg", "a/0.JPEG", "a/x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def contents(source):
    paths = [source.name(i) for i in range(len(source))]
    return paths, source.labels.tolist(), source.class_names, source.notes


def refuse_listing(monkeypatch):
    def fail(*_):
        raise AssertionError("the folders were listed")

    monkeypatch.setattr(listing, "list_classes", fail)


def test_a_kept_listing_is_the_same_as_a_new_one(root, cache, monkeypatch):
    new = open_folder(root, "data_path")
    assert contents(new) == contents(read_folder(root, "data_path"))
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    refuse_listing(monkeypatch)
    kept = open_folder(root, "data_path")
    assert contents(kept) == contents(new)
    assert kept.images.root == root
    assert kept.labels.dtype == np.int64
    assert "1 file was left out" in kept.notes[0]
    assert kept.read(0) == (root / kept.name(0)).read_bytes()


def test_opening_a_data_set_uses_it(root, monkeypatch):
    before = contents(open_source(str(root), "train", "data_path"))
    refuse_listing(monkeypatch)
    assert contents(open_source(str(root), "train", "data_path")) == before


def test_another_spelling_of_the_root_is_the_same_root(root, tmp_path, monkeypatch):
    open_folder(root, "data_path")
    (tmp_path / "link").symlink_to(root)
    refuse_listing(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert open_folder(tmp_path / "link", "o").describe(0).startswith(str(tmp_path / "link"))
    assert len(open_folder(tmp_path / "images" / ".." / "images", "o")) == 5


CHANGES = {
    "a new file": lambda root: (root / "b" / "3.jpg").touch(),
    "a new file in a folder within a class": lambda root: (root / "a/deep/er/2.jpg").touch(),
    "a file gone": lambda root: (root / "b" / "1.jpg").unlink(),
    "a file renamed": lambda root: (root / "b" / "1.jpg").rename(root / "b" / "9.jpg"),
    "a new class": lambda root: shutil.copytree(root / "b", root / "c"),
    "a class gone": lambda root: shutil.rmtree(root / "b"),
    "a class renamed": lambda root: (root / "b").rename(root / "c"),
    "a file moved": lambda root: (root / "b" / "1.jpg").rename(root / "a" / "1.jpg"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_of_a_folder_is_seen(root, change):
    before = contents(open_folder(root, "data_path"))
    change(root)
    after = contents(open_folder(root, "data_path"))
    assert after == contents(read_folder(root, "data_path"))
    assert after != before
    assert contents(open_folder(root, "data_path")) == after  # and kept


def test_a_change_is_seen_though_the_time_of_modification_is_set_back(root):
    # As tar, rsync and cp -a do when they update a tree.
    open_folder(root, "data_path")
    times = {folder: os.stat(folder) for folder in (root, root / "b")}
    (root / "b" / "3.jpg").touch()
    for folder, status in times.items():
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(open_folder(root, "data_path")) == 6


def test_another_tree_in_the_same_place_is_seen(root, tmp_path):
    open_folder(root, "data_path")
    shutil.copytree(root, tmp_path / "other", copy_function=shutil.copy2)
    (tmp_path / "other" / "b" / "1.jpg").rename(tmp_path / "other" / "b" / "7.jpg")
    root.rename(tmp_path / "gone")
    (tmp_path / "other").rename(root)
    assert "b/7.jpg" in contents(open_folder(root, "data_path"))[0]


def test_a_folder_that_just_changed_is_not_kept(root, cache, monkeypatch):
    monkeypatch.setattr(listing.time, "time_ns", NOW)
    assert len(open_folder(root, "data_path")) == 5
    assert not cache.exists()
    monkeypatch.setattr(listing.time, "time_ns", lambda: NOW() + 10**10)
    ahead = time.time() + 3600  # a file server whose clock is ahead
    os.utime(root / "b", (ahead, ahead))
    open_folder(root, "data_path")
    assert not cache.exists()


def test_few_files_are_not_kept(root, cache, monkeypatch):
    monkeypatch.setattr(listing, "SMALL", 6)
    open_folder(root, "data_path")
    assert not cache.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_listing_is_made_again(root, cache, data):
    expected = contents(open_folder(root, "data_path"))
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "other"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "longer":
        content += b"x"
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    file.write_bytes(content)
    assert contents(open_folder(root, "data_path")) == expected
    assert file.read_bytes() != content
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_a_place_that_cannot_be_written_is_no_error(root, cache, monkeypatch):
    cache.write_text("a file, not a folder")
    assert len(open_folder(root, "data_path")) == 5
    monkeypatch.setenv("VITBASE_CACHE", "/proc/nowhere")
    assert len(open_folder(root, "data_path")) == 5


def test_nothing_is_left_behind_if_writing_fails(root, cache, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(listing.os, "replace", fail)
    assert len(open_folder(root, "data_path")) == 5
    assert list(cache.iterdir()) == []


def test_errors_stay_errors(root):
    open_folder(root, "data_path")
    shutil.rmtree(root / "b")
    (root / "b").mkdir()
    with pytest.raises(DataError, match="class folder 'b' holds no images"):
        open_folder(root, "data_path")


def test_where_listings_are_kept(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("VITBASE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vitbase"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "vitbase"
