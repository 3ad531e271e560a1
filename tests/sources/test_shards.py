from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import JPEG, samples, write_tar

from vitbase.errors import DataError, ImageError
from vitbase.sources.shards import readers as shard_readers
from vitbase.sources.shards import source as shards
from vitbase.sources.shards.index import Member, build_shard, decode_index, encode_index
from vitbase.sources.shards.readers import LocalReader
from vitbase.sources.shards.scan import read_members
from vitbase.sources.shards.source import has_split, holds_shards, open_shards

pytestmark = pytest.mark.usefixtures("cache")


def test_shards_are_read_at_any_place(tmp_path):
    write_tar(tmp_path / "b-000001.tar", samples(5, "b"))
    write_tar(tmp_path / "b-000000.tar", samples(4, "a"))
    source = open_shards(str(tmp_path), "train", "data_path")
    assert len(source) == 9
    assert source.class_names == ("0", "1", "2")
    assert not source.named
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1]
    assert source.read(8) == JPEG + b"4"
    assert source.read(0) == JPEG + b"0"
    assert source.describe(5) == f"{tmp_path}/b-000001.tar: b0001.jpg"
    assert source.name(5) == "b-000001.tar/b0001.jpg"
    assert source.notes == ()


def test_a_part_and_other_labels_may_be_taken(tmp_path):
    write_tar(tmp_path / "x.tar", samples(6))
    source = replace(open_shards(str(tmp_path), "train", "data_path"), notes=("a note",))
    part = source.take(np.array([4, 1]))
    assert [part.read(i) for i in range(2)] == [JPEG + b"4", JPEG + b"1"]
    assert part.labels.tolist() == [1, 1]
    assert part.describe(0).endswith("x.tar: 0004.jpg")
    assert part.notes == ()
    other = replace(part, labels=np.array([7, 8]), class_names=("a",) * 9)
    assert other.read(1) == JPEG + b"1"


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_names_beyond_ascii(tmp_path, kind):
    folder = "/".join(["n" * 70] * (2 if kind == tarfile.USTAR_FORMAT else 5))
    names = [f"{folder}/ü字", f"{folder}/{'x' * 90}", "short"]
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.jpg", JPEG + bytes([number])), (f"{name}.cls", b"%d" % number)]
    write_tar(tmp_path / "x.tar", members, kind)
    source = open_shards(str(tmp_path), "train", "data_path")
    assert [source.describe(i).split(": ")[1] for i in range(3)] == [f"{n}.jpg" for n in names]
    assert [source.read(i) for i in range(3)] == [JPEG + bytes([number]) for number in range(3)]
    assert source.labels.tolist() == [0, 1, 2]


def test_folders_links_hidden_members_and_remarks_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in [
            (".hidden.jpg", b"x"),
            ("__key__", b"x"),
            ("README", b"x"),
            ("lonely.txt", b"a text without an image"),
            ("a/1.Jpeg", JPEG),
            ("a/1.seg.png", b"another picture of that sample"),
            ("a/1.CLS", b" 1\n"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/1.Jpeg"
            tar.addfile(info)
    source = open_shards(str(tmp_path), "train", "data_path")
    assert len(source) == 1
    assert source.read(0) == JPEG
    assert source.labels.tolist() == [1]
    (note,) = source.notes
    assert "2 members of the shards are left out" in note
    assert "link.jpg in x.tar" in note


@pytest.mark.parametrize(
    ("extra", "label"),
    [
        ({"cls": b"3"}, 3),
        ({"json": b'{"label": 2}'}, 2),
        ({"json": b'{"width": 4, "class_id": 1}'}, 1),
        ({"json": b"4"}, 4),
        ({"txt": b"5\n"}, 5),
        ({"cls": b"1", "json": b'{"label": 2}', "txt": b"a caption"}, 1),
    ],
)
def test_labels_that_are_numbers(tmp_path, extra, label):
    members = [("a.jpg", JPEG), *((f"a.{suffix}", text) for suffix, text in extra.items())]
    write_tar(tmp_path / "x.tar", members)
    assert open_shards(str(tmp_path), "train", "data_path").labels.tolist() == [label]


@pytest.mark.parametrize("suffix", ["cls", "txt", "json", "folder"])
def test_labels_that_are_names(tmp_path, suffix):
    members = []
    for number, name in enumerate(["cat", "ant", "cat"]):
        key = f"{name}/{number}" if suffix == "folder" else f"{number}"
        members.append((f"{key}.jpg", JPEG))
        text = json.dumps({"class": name}) if suffix == "json" else name
        if suffix != "folder":
            members.append((f"{key}.{suffix}", text.encode()))
    write_tar(tmp_path / "x.tar", members)
    source = open_shards(str(tmp_path), "train", "data_path")
    assert source.class_names == ("ant", "cat")
    assert source.labels.tolist() == [1, 0, 1]
    assert source.named


@pytest.mark.parametrize(
    ("lists", "names", "expected"),
    [
        ([[0, 2], [1]], None, [[1, 0, 1], [0, 1, 0]]),
        ([[], [1]], ["a", "b", "c"], [[0, 0, 0], [0, 1, 0]]),
        ([["b", "a"], ["c"]], None, [[1, 1, 0], [0, 0, 1]]),
        ([["b"], ["c", "a"]], ["c", "b", "a"], [[0, 1, 0], [1, 0, 1]]),
        ([[1, 0, 0], [1, 1, 1]], None, [[1, 0, 0], [1, 1, 1]]),
        ([[0.5, 0.5], [0, 1]], None, [[0.5, 0.5], [0, 1]]),
        ([[0, 1], [1, 0]], None, [[1, 1], [1, 1]]),
    ],
)
def test_several_classes_an_image(tmp_path, lists, names, expected):
    members = []
    for number, values in enumerate(lists):
        members.append((f"{number}.jpg", JPEG))
        members.append((f"{number}.json", json.dumps({"labels": values}).encode()))
    write_tar(tmp_path / "x.tar", members)
    if names:
        (tmp_path / "classes.txt").write_text("\n".join(names))
    source = open_shards(str(tmp_path), "train", "data_path")
    assert source.labels.dtype == np.float32
    assert source.labels.tolist() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classnames.txt", "zebra\nant\n\nbee\n"),
        ("classes.txt", "zebra\r\nant\r\nbee"),
        ("dataset_info.json", {"features": {"label": {"names": ["zebra", "ant", "bee"]}}}),
        ("_info.json", {"x": [{"class_label": {"names": {"0": "zebra", "1": "ant", "2": "bee"}}}]}),
    ],
)
def test_class_names_beside_the_shards(tmp_path, name, content):
    write_tar(tmp_path / "train" / "x.tar", samples(3))
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_bytes(text.encode())
    source = open_shards(str(tmp_path), "train", "data_path")
    assert source.class_names == ("zebra", "ant", "bee")
    assert source.named


@pytest.mark.parametrize(
    ("members", "names", "words"),
    [
        ([("a.jpg", JPEG)], None, "x.tar: a.jpg has no label. Expected a member a.cls"),
        ([("a.jpg", JPEG), ("a.cls", b"")], None, "x.tar: a.cls is empty"),
        ([("a.jpg", JPEG), ("a.cls", b"\xff\xfe")], None, "x.tar: a.cls is no text"),
        ([("a.jpg", JPEG), ("a.json", b"{")], None, "x.tar: a.json is no JSON"),
        ([("a.jpg", JPEG), ("a.cls", b"-7")], None, "a.jpg has the label -7"),
        ([("a.jpg", JPEG), ("a.cls", b"2")], "p\nq", "label 2 of x.tar: a.jpg is out of range"),
        ([("a.jpg", JPEG), ("a.cls", b"r")], "p\nq", "class 'r' of x.tar: a.jpg is not among"),
        ([("a.jpg", JPEG), ("a.cls", b"9999999999")], None, "these are no numbers of classes"),
        (samples(2), "p\np", "the name 'p' stands there twice"),
        ([*samples(1), ("b.jpg", JPEG), ("b.cls", b"q")], None, "others names. Put classnames.txt"),
        ([("a.jpg", JPEG), ("a.JPG", JPEG), ("a.cls", b"1")], None, "two members are called"),
        ([("a.cls", b"1")], None, "1 shards, but no image in them"),
        ([], None, "no image in them"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, members, names, words):
    write_tar(tmp_path / "x.tar", members)
    if names:
        (tmp_path / "classnames.txt").write_text(names)
    with pytest.raises(DataError) as caught:
        open_shards(str(tmp_path), "train", "data_path")
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_captions_are_not_classes(tmp_path):
    members = []
    for number in range(60):
        members += [(f"{number}.jpg", JPEG), (f"{number}.txt", b"a picture of %d" % number)]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match="captions, not classes"):
        open_shards(str(tmp_path), "train", "data_path")


def test_images_labelled_minus_one_are_left_out(tmp_path):
    members = [*samples(3), ("9.jpg", JPEG), ("9.cls", b"-1"), *samples(2, "z")]
    write_tar(tmp_path / "x.tar", members)
    source = open_shards(str(tmp_path), "train", "data_path")
    assert len(source) == 5
    assert source.describe(3).endswith("z0000.jpg")
    assert source.read(4) == JPEG + b"1"
    assert "1 images with the label -1" in source.notes[0]


SPLITS = [
    ({"train/0.tar", "val/0.tar"}, True),
    ({"train/0.tar", "validation/0.tar", "test/0.tar"}, True),
    ({"imagenet-train-000000.tar", "imagenet-val-000000.tar"}, True),
    ({"imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"}, True),
    ({"x_train_0.tar", "x_test_0.tar"}, True),
    ({"imagenet-train-000000.tar"}, False),
    ({"0.tar", "1.tar"}, False),
    ({"train/0.tar"}, False),
]


@pytest.mark.parametrize(("names", "has_val"), SPLITS)
def test_splits_by_name(tmp_path, names, has_val):
    for name in names:
        write_tar(tmp_path / name, samples(3, name.replace(".", "_") + "-"))
    assert has_split(str(tmp_path), "val", "data_path") == has_val
    train = open_shards(str(tmp_path), "train", "data_path")
    assert all("val" not in train.name(i) for i in range(len(train)))
    if has_val:
        val = open_shards(str(tmp_path), "val", "data_path")
        assert len(val) == 3
        assert "train" not in val.name(0)
        assert "test" not in val.name(0) or not any("valid" in name for name in names)


def test_shards_of_no_split_serve_for_any(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    assert len(open_shards(str(tmp_path), "val", "val_data_path")) == 3
    assert os.listdir(tmp_path).count("shards-all.index") == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x-val-0.tar"], "there are shards of 'val', but none of 'train'"),
        (["x.tar.gz"], "x.tar.gz is compressed"),
        (["photo.jpg"], "there are no tar shards"),
    ],
)
def test_no_shards(tmp_path, names, words):
    for name in names:
        write_tar(tmp_path / name, samples(1))
    with pytest.raises(DataError, match=words):
        open_shards(str(tmp_path), "train", "data_path")
    with pytest.raises(DataError, match=r"--data_path .*nowhere: there is no such folder"):
        open_shards(str(tmp_path / "nowhere"), "train", "data_path")


def test_timms_info_tells_the_splits_and_their_size(tmp_path):
    for name in ("a.tar", "b.tar", "c.tar"):
        write_tar(tmp_path / name, samples(3, name[0]))
    facts = {"filenames": ["b.tar", "a.tar"], "num_samples": 7, "shard_lengths": [3, 3]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": facts}}))
    source = open_shards(str(tmp_path), "val", "data_path")
    assert source.describe(0).endswith("b.tar: b0000.jpg")
    assert "6 images are in the shards, 7 are announced" in source.notes[0]
    facts["filenames"] = ["../a.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": facts}}))
    with pytest.raises(DataError, match="no name of a file in there"):
        open_shards(str(tmp_path), "val", "data_path")
    facts["filenames"] = ["lost.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": facts}}))
    with pytest.raises(DataError, match=r"lost\.tar: No such file"):
        open_shards(str(tmp_path), "val", "data_path")


def test_holds_shards():
    assert holds_shards(["readme.txt", "a.tar"])
    assert not holds_shards([".a.tar", "a.tar.gz", "tar", "a.tar.partial"])


# The index


def counted_scans(monkeypatch) -> list[str]:
    scanned: list[str] = []
    original = shards.scan_shard

    def scan(read, name, *rest, **options):
        scanned.append(name)
        return original(read, name, *rest, **options)

    monkeypatch.setattr(shards, "scan_shard", scan)
    return scanned


def test_the_index_is_made_once_and_again_only_for_what_changed(tmp_path, monkeypatch):
    scanned = counted_scans(monkeypatch)
    for name in ("0.tar", "1.tar", "2.tar"):
        write_tar(tmp_path / name, samples(4, name[0]))
    open_shards(str(tmp_path), "train", "data_path")
    assert sorted(scanned) == ["0.tar", "1.tar", "2.tar"]
    scanned.clear()
    assert open_shards(str(tmp_path), "train", "data_path").notes == ()
    assert scanned == []
    write_tar(tmp_path / "1.tar", samples(5, "n"))
    write_tar(tmp_path / "3.tar", samples(2, "m"))
    source = open_shards(str(tmp_path), "train", "data_path")
    assert sorted(scanned) == ["1.tar", "3.tar"]
    assert len(source) == 15
    (note,) = source.notes
    assert "1 of 4 shards have changed since they were indexed (the first: 1.tar)" in note
    assert source.read(4) == JPEG + b"0"
    scanned.clear()
    assert open_shards(str(tmp_path), "train", "data_path").notes == ()
    (tmp_path / "0.tar").unlink()
    assert len(open_shards(str(tmp_path), "train", "data_path")) == 11
    assert scanned == []


def test_same_size_but_a_later_time_is_stale(tmp_path, monkeypatch):
    scanned = counted_scans(monkeypatch)
    write_tar(tmp_path / "0.tar", samples(4, "a"))
    open_shards(str(tmp_path), "train", "data_path")
    write_tar(tmp_path / "0.tar", samples(4, "b", classes=2))
    source = open_shards(str(tmp_path), "train", "data_path")
    assert scanned == ["0.tar", "0.tar"]
    assert source.labels.tolist() == [0, 1, 0, 1]


def test_an_index_is_a_function_of_the_shards(tmp_path):
    for folder in ("a", "b"):
        path = write_tar(tmp_path / folder / "0.tar", samples(4))
        os.utime(path, ns=(5, 5))
        open_shards(str(tmp_path / folder), "train", "data_path")
    first, second = (tmp_path / f / "shards-all.index" for f in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_million_images_take_less_than_100_megabytes():
    count = 20_000
    members = [Member(f"n01440764/{i:08}.JPEG", 2048 * i + 512, 999, i) for i in range(count)]
    origins = [f"n01440764/n01440764_{i:06}.JPEG" for i in range(count)]
    shard = build_shard("0.tar", shards.FileFacts(2048 * count, ""), members, [0] * count, origins)
    content = encode_index([shard])
    (again,) = decode_index(content)
    images = shards._build_images(("0.tar",), [again], LocalReader([], []))
    held = images.places.nbytes + images.firsts.nbytes + sum(map(len, images.names)) + 16 * count
    assert held / count < 78  # bytes; 1.28 million images: 100 MB
    assert len(content) / count < 60


# Reading


def test_many_threads_and_few_descriptors(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"{number:02}.tar", samples(5, f"{number}-"))
    source = open_shards(str(tmp_path), "train", "data_path")
    reader = LocalReader(source.images.files, source.images.reader.facts, limit=2)
    source = replace(source, images=replace(source.images, reader=reader))
    wrong = []

    def read_all(seed: int) -> None:
        for index in np.random.default_rng(seed).permutation(np.repeat(np.arange(60), 10)):
            if source.read(index) != JPEG + str(index % 5).encode():
                wrong.append(index)

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(file is not None for file in reader._open) <= 2
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_read_cut_in_pieces_is_put_together(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", samples(3))
    source = open_shards(str(tmp_path), "train", "data_path")
    pread = os.pread
    monkeypatch.setattr(
        shard_readers.os, "pread", lambda fd, size, at: pread(fd, min(size, 512), at)
    )
    assert source.read(2) == JPEG + b"2"


def test_a_shard_that_went_away(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    source = open_shards(str(tmp_path), "train", "data_path")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(ImageError, match="the shard cannot be read: No such file"):
        source.read(0)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_members_are_found_as_tarfile_finds_them(data):
    kind = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    text = st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=130
    )
    names = data.draw(st.lists(text.filter(lambda name: name[-1] != "/"), max_size=6))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.type = data.draw(
                st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE])
            )
            info.size = number * 300 if info.isreg() else 0
            info.mtime = data.draw(st.sampled_from([0, 1.5, 2**40]))
            info.uid = data.draw(st.sampled_from([0, 2**30]))
            tar.addfile(info, io.BytesIO(bytes([number + 65]) * info.size))
    content = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    found = list(read_members(lambda start, end: content[start:end], len(content), "x"))
    assert [(member.name, member.offset, member.size) for member in found] == expected
    for member in found:
        assert member.check == zlib.crc32(content[member.offset - 512 : member.offset])


def test_sparse_members_are_refused(tmp_path):
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(5_000_000)
        file.write(b"x")
    done = subprocess.run(
        ["tar", "-cSf", "x.tar", "hole"], cwd=tmp_path, check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("there is no GNU tar")
    with pytest.raises(DataError, match=r"'.*hole' .*is sparse: pack it without holes"):
        open_shards(str(tmp_path), "train", "data_path")
