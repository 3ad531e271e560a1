"""What is said to a person: escaped, flushed, and nothing where nobody reads."""

from __future__ import annotations

import io
import json
import sys

import pytest

from vitbase import console
from vitbase.console import counting, printable, printable_lines, say, say_json, warn


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Fuß 漢字 é…", "Fuß 漢字 é…"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("two\nlines\r", r"two\nlines\r"),
        ("latin\udce9", r"latin\udce9"),
        ("left\u202eright", r"left\u202eright"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
    ],
)
def test_what_moves_a_cursor_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable_lines(f"before\n{text}").startswith("before\n")


def test_lines_are_escaped_wherever_they_go(capsys):
    say("one\x1b]0;title\x07\ntwo")
    warn("bad\x1bname")
    said = capsys.readouterr()
    assert said.out == "one\\x1b]0;title\\x07\ntwo\n"
    assert said.err == "bad\\x1bname\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    say("nobody reads")
    warn("nobody reads")
    with counting() as show:
        show("train", 1, 2)


def test_every_line_is_flushed(monkeypatch):
    flushed: list[str] = []

    class Stream(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Stream())
    say("first")
    say("second")
    assert flushed == ["first\n", "first\nsecond\n"]


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch, capsys):
    with counting() as show:
        show("train", 1, 4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    with counting() as show:
        show("tr\x1bain", 1, 4)
    assert capsys.readouterr().err == "tr\\x1bain: 1 of 4 images (25.0%)\n"


@pytest.mark.parametrize("name", ["é漢", "a\xa0b", "\x1b[2J", "\x7f", "latin\udce9", "two\nlines"])
def test_json_stays_json_whatever_is_in_it(capsys, name):
    say_json({"class": name})
    line = capsys.readouterr().out
    assert json.loads(line) == {"class": name}
    assert line.rstrip("\n").isprintable()
    assert ("é" in line) == ("é" in name)
