"""What is said to a person: escaped, flushed, and nothing where nobody reads."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from commands import environment_of_commands

from vitbase import console
from vitbase.console import (
    counting,
    printable,
    printable_lines,
    say,
    say_json,
    say_text,
    warn,
    warn_text,
)
from vitbase.errors import DataError, tell_launcher
from vitbase.training import outside


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
    say_text("one\x1b\ntwo")
    warn("\nbad\x1bname\nnext")
    warn_text("a\rb\nc")
    said = capsys.readouterr()
    assert said.out == "one\\x1b]0;title\\x07\\ntwo\none\\x1b\ntwo\n"
    assert said.err == "\nbad\\x1bname\\nnext\na\\rb\nc\n"


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


REPORTS = """
import logging, sys, threading, warnings
from vitbase.console import escape_reports
escape_reports()
bad = "name\\x1b[2J\\x9b\\udce9"
class Unraisable:
    def __del__(self):
        raise ValueError("of __del__ " + bad)
def fail():
    raise ValueError("of a thread " + bad)
warnings.warn("a warning " + bad)
logging.getLogger(bad).warning("a log line %s", bad + chr(10) + "of two lines")
logging.getLogger(bad).warning("a log line of 100%")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Unraisable()
raise ValueError("of the program " + bad)
"""


def test_what_python_reports_is_escaped():
    """Tracebacks, warnings, log lines of libraries, none of which goes through here by itself."""
    done = subprocess.run(
        [sys.executable, "-c", REPORTS],
        env=environment_of_commands(),
        capture_output=True,
        check=False,
    )
    told = done.stderr.decode()
    assert done.returncode == 1
    assert all(line.isprintable() for line in told.split("\n"))
    bad = r"name\x1b[2J\x9b\udce9"
    for what in ("a warning", "of a thread", "of __del__", "of the program"):
        assert told.count(f"{what} {bad}\n") == 1
    assert f"a log line {bad}\nof two lines\n" in told
    assert told.count("Traceback (most recent call last)") == 3


def test_what_a_rank_tells_its_launcher_has_no_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error"))
    for error, told in (
        (ValueError("a\nvitbase: all is well"), "ValueError: a\n  vitbase: all is well"),
        (DataError("a\nvitbase: all is well", "next"), "a\\nvitbase: all is well\nnext"),
    ):
        tell_launcher(error)
        assert json.loads((tmp_path / "error").read_text())["message"]["message"] == told


@pytest.mark.parametrize(
    "tell", [lambda: tell_launcher(DataError("bad")), lambda: outside._tell_launcher("x", " bad")]
)
def test_a_launcher_reads_what_a_rank_tells_whole_or_not_at_all(tmp_path, monkeypatch, tell):
    """The rank may be killed while it writes, and the launcher looks when any rank has ended."""
    place = tmp_path / "error"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place))
    dump = json.dump

    def dump_and_look(*given):
        assert not place.exists()
        dump(*given)
        assert not place.exists()

    monkeypatch.setattr(json, "dump", dump_and_look)
    tell()
    assert "bad" in json.loads(place.read_text())["message"]["message"]
    assert [found.name for found in tmp_path.iterdir()] == ["error"]
