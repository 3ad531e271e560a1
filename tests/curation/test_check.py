"""The doctor finds every fault, names it, and knows which of them make training wrong."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from made_images import FAULTS, bomb, encode, photo, write_folder
from PIL import Image, features

from vitbase.curation.checking.check import check_leak, check_split
from vitbase.curation.checking.report import KINDS, DataReport, SplitReport
from vitbase.curation.checking.table import plain_lines
from vitbase.data.decode import decode
from vitbase.errors import ImageError
from vitbase.sources.folders import read_folder
from vitbase.sources.open import open_source


def folder_with(root: Path, name: str, content: bytes) -> Path:
    write_folder(root, {"a": 4, "b": 4})
    (root / "a" / name).write_bytes(content)
    return root


def lines_of(report: SplitReport) -> list[str]:
    return list(plain_lines(DataReport("class folders", [report])))


def test_a_sound_folder_has_no_findings(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 4, "b": 5}), "data_path")
    report = check_split("train", source)
    assert report.counts == {}
    assert not report.wrong
    assert report.formats == {"JPEG": 9}
    assert report.class_counts == [4, 5]
    assert "  no faults found" in lines_of(report)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_and_named(kind, tmp_path):
    name, content = FAULTS[kind]
    report = check_split("train", read_folder(folder_with(tmp_path, name, content), "data_path"))
    assert report.counts == {kind: 1}
    (place,) = report.findings[kind]
    assert place.path == str(tmp_path / "a" / name)
    assert report.wrong == KINDS[kind][0]
    assert any(place.path in line for line in lines_of(report))


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path):
    report = check_split("train", read_folder(folder_with(tmp_path, "x.png", bomb()), "data_path"))
    assert report.wrong
    (place,) = report.findings["unreadable"]
    assert "pixels" in place.detail


def test_what_is_no_image_is_told_in_the_loaders_words(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4})
    files = {
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
        "damaged.png": encode(photo(60, 60), "PNG").replace(b"IDAT", b"IDAU"),
        "clip.jpg": b"\0\0\0\x10ftypisom\0\0\0\0" + bytes(80),
    }
    for name, content in files.items():
        (tmp_path / "a" / name).write_bytes(content)
    report = check_split("train", read_folder(tmp_path, "data_path"))
    assert report.counts == {"unreadable": 4}
    for place in report.findings["unreadable"]:
        with pytest.raises(ImageError) as caught:
            decode(files[Path(place.path).name])
        assert place.detail == str(caught.value)
    assert any("an HTML page" in line for line in lines_of(report))
    assert any("`git lfs pull`" in line for line in lines_of(report))


def test_a_large_profile_and_rare_formats_are_no_faults(tmp_path):
    image = Image.fromarray(photo(40, 50))
    write_folder(tmp_path, {"a": 1, "b": 1})
    image.save(tmp_path / "a" / "profile.png", icc_profile=bytes(3 << 20))
    kinds = {"ICO": "x.ico"}
    for kind, feature, name in (("AVIF", "avif", "x.avif"), ("JPEG2000", "jpg_2000", "x.jp2")):
        if features.check(feature):
            kinds[kind] = name
    for kind, name in kinds.items():
        image.save(tmp_path / "a" / name, kind)
    report = check_split("train", read_folder(tmp_path, "data_path"))
    assert report.counts == {}
    del kinds["ICO"]  # by its suffix the icon of a folder
    assert report.formats == {"JPEG": 2, "PNG": 1, **dict.fromkeys(kinds, 1)}


def test_copies_are_found_by_content(tmp_path):
    root = write_folder(tmp_path, {"a": 3, "b": 3})
    content = (root / "a" / "0.JPEG").read_bytes()
    (root / "a" / "copy.jpg").write_bytes(content)
    source = read_folder(root, "data_path")
    report = check_split("train", source)
    assert report.counts == {"duplicate": 1}
    assert not report.wrong
    (root / "b" / "stray.jpg").write_bytes(content)
    report = check_split("train", read_folder(root, "data_path"))
    assert report.counts == {"duplicate": 1, "same image, other label": 1}
    assert report.wrong
    (place,) = report.findings["same image, other label"]
    assert place.path.endswith("stray.jpg")
    assert "0.JPEG" in place.detail


def test_evaluation_images_that_are_in_training_are_found(tmp_path):
    train = read_folder(write_folder(tmp_path / "train", {"a": 3, "b": 3}), "data_path")
    write_folder(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / "val" / "a" / "0.JPEG").write_bytes(encode(photo(31, 33, seed=77)))
    val = read_folder(tmp_path / "val", "val_data_path")
    reports = check_split("train", train), check_split("val", val)
    assert not reports[1].wrong
    check_leak(*reports, train, val)
    assert reports[1].counts == {"also in training": 1}  # b/0 is the same picture in both
    assert reports[1].wrong


def test_unreadable_images_are_not_each_others_copies(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, {"a": 1, "b": 1}, size=(20, 24 + len(split)))
        (tmp_path / split / "a" / "x.png").write_bytes(b"no image of " + split.encode())
    sources = [read_folder(tmp_path / split, "data_path") for split in ("train", "val")]
    reports = [check_split("x", source) for source in sources]
    check_leak(*reports, *sources)
    assert reports[1].counts == {"unreadable": 1}


def test_sixteen_bits_of_colour_are_told(tmp_path):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(20 * (1 + 20 * 6)))),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    report = check_split("train", read_folder(folder_with(tmp_path, "x.png", png), "data_path"))
    assert report.counts == {"16-bit": 1}


def test_imbalance_is_a_note(tmp_path):
    source = read_folder(write_folder(tmp_path, {"many": 20, "few": 2}), "data_path")
    report = check_split("train", source)
    assert any("unbalanced: 'many' has 20 images, 'few' 2" in line for line in lines_of(report))
    assert not report.wrong


def test_decoded_archives_are_checked_too():
    source = open_source("embedded", "val", "data_path")
    report = check_split("val", source, num_workers=2)
    assert report.images == len(source)
    assert sum(report.class_counts) == len(source)
    assert report.formats == {}


def test_the_report_is_plain_json(tmp_path):
    name, content = FAULTS["CMYK"]
    report = check_split("train", read_folder(folder_with(tmp_path, name, content), "data_path"))
    content = json.loads(json.dumps(report.to_dict()))
    assert content["classes"] == {"a": 5, "b": 4}
    assert content["findings"]["CMYK"]["images"] == 1
    assert content["findings"]["CMYK"]["places"][0]["path"].endswith("x.jpg")
    assert content["wrong"] is False


def test_many_findings_are_counted_and_a_few_named(tmp_path):
    root = write_folder(tmp_path, {"a": 3, "b": 3})
    for number in range(9):
        (root / "a" / f"{number}.png").write_bytes(bytes([number]) * 40)
    report = check_split("train", read_folder(root, "data_path"))
    lines = [line for line in lines_of(report) if ".png" in line]
    assert report.counts["unreadable"] == 9
    assert len(lines) == 5
    assert any("and 4 more" in line for line in lines_of(report))
