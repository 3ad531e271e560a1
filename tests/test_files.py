"""Files that appear whole or not at all; JSON that is bounded before it is parsed."""

from __future__ import annotations

import gc
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbase import files
from vitbase.files import (
    DEEPEST_JSON,
    final_name,
    parse_json,
    read_json,
    remove_unfinished,
    sha256_of,
    write_whole,
    written_whole,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x"
    write_whole(path, b"bytes")
    write_whole(path, "text é \udce9\n")
    assert path.read_bytes() == "text é ".encode() + b"\xe9\n"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_appears_whole(tmp_path):
    with written_whole(tmp_path / "run.d") as place:
        place.mkdir()
        (place / "a").write_text("1")
        assert place.suffix == ".d"
        assert final_name(place) == tmp_path / "run.d"
        assert not (tmp_path / "run.d").exists()
    assert (tmp_path / "run.d" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["run.d"]


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_what_fails_leaves_what_was_there(tmp_path, monkeypatch, fails):
    (tmp_path / "x").write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(files.os, fails, fail)
    with pytest.raises(OSError, match="no"):
        write_whole(tmp_path / "x", b"after")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


def test_a_block_that_raises_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with written_whole(tmp_path / "x") as place:
            place.mkdir()
            (place / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".writing-0123abcd-a").write_text("x")
    (tmp_path / ".writing-0123abcd-b").mkdir()
    (tmp_path / "kept").write_text("x")
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES)
def test_json_comes_back_as_it_was(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) in (
        value,
        value,
    )


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[" * 65 + "]" * 65])
@pytest.mark.parametrize("kind", [str, str.encode])
def test_deep_json_is_refused_before_it_is_parsed(text, kind, monkeypatch):
    monkeypatch.setattr(files.json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="64 levels"):
        parse_json(kind(text))
    gc.collect()


def test_depth_is_counted_outside_of_texts_only():
    text = '["' + "[{" * 500 + '\\"[[' + '"' + ', "\\\\", [1]]'
    assert parse_json(text)[2] == [1]
    assert parse_json("[" * DEEPEST_JSON + "]" * DEEPEST_JSON) is not None


@pytest.mark.parametrize(
    "text",
    ['"' + '\\"a' * 2_000_000, '"\\' * 2_000_001, '""' * 2_000_000, "[]" * 2_000_000],
)
def test_hostile_texts_take_no_longer_than_others(text):
    # Trying each quote as a beginning would take hours.
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Extra data"):
        parse_json(text)


def test_long_json_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "long.json").write_text(json.dumps("x" * 1000))
    with pytest.raises(ValueError, match="longer than 999 bytes"):
        read_json(tmp_path / "long.json", longest=999)
    assert read_json(tmp_path / "long.json") == "x" * 1000


def test_a_key_said_twice_is_refused():
    with pytest.raises(ValueError, match="'a' stands there twice"):
        parse_json('{"a": 1, "a": 2}')


def test_numbers_of_any_length_end_as_value_errors():
    with pytest.raises(ValueError, match=r"digits|Exceeds"):
        parse_json("1" * (sys.get_int_max_str_digits() + 1))
