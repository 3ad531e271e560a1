"""What SECURITY.md promises of the source itself: nothing in it runs what comes from outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from commands import ROOT
from import_graph import FILES, PACKAGE

RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "pty.spawn", "code.interact"),
    *("runpy.run_path", "runpy.run_module", "marshal.load", "marshal.loads", "shelve.open"),
    *("pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.package"),
    *("torch.hub.load", "numpy.load", "np.load", "tarfile.open", "zipfile.ZipFile.extractall"),
}
"""Calls that run what they read, or write where what they read says."""

ALLOWED = {
    # torchrun's own state, as its agent in this process has just pickled it.
    ("launch/meeting.py", "pickle.loads(state)"),
    # What the run that has started this process sends it, through a pair of sockets without a name.
    ("data/processes.py", "pickle.loads(content)"),
    ("data/processes.py", "pickle.loads(pickle.dumps(error))"),
}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def calls(path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def words_of(node: ast.Call) -> dict[str | None, str]:
    return {word.arg: ast.unparse(word.value) for word in node.keywords}


@each_file
def test_nothing_runs_what_it_reads(path):
    for name, node in calls(path):
        if (path.relative_to(PACKAGE).as_posix(), ast.unparse(node)) in ALLOWED:
            continue
        assert name not in RUNS_CODE, f"line {node.lineno}: {name}"
        assert not name.endswith((".extractall", ".extract")), f"line {node.lineno}: {name}"
        assert words_of(node).get("shell", "False") == "False", f"line {node.lineno}: a shell"
        assert "trust_remote_code" not in words_of(node)
        if name == "torch.load":
            assert words_of(node)["weights_only"] == "True", f"line {node.lineno}"
        if name.endswith(("read_array", "write_array", "savez")):
            assert words_of(node)["allow_pickle"] == "False", f"line {node.lineno}"


@each_file
def test_pickles_are_read_by_readers_that_refuse(path):
    """A class of its own that resolves names to stand-ins is the only unpickler."""
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r".*\bUnpickler\b.*", text):
        assert line.strip() == "class _Reader(pickle.Unpickler):", line
        assert path == PACKAGE / "sources" / "pickles.py"
    imported = re.search(r"^from (pickle|marshal|shelve|subprocess|os) import (.*)", text, re.M)
    assert imported is None, imported


@each_file
def test_sockets_listen_where_they_are_told_alone(path):
    """Nothing binds but `rendezvous.bound_socket`, which gets an address, and probes that do not
    listen; a store of torch's is given the socket, for it would listen everywhere.
    """
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"""["'](0\.0\.0\.0|::|INADDR_ANY)["']""", text)
    room = path.relative_to(PACKAGE).as_posix()
    for name, node in calls(path):
        if name.endswith(".bind"):
            assert room in {"rendezvous.py", "launch/ranktable.py"}, f"{room}:{node.lineno}"
        assert not name.endswith((".listen", ".create_server", "HTTPServer", "TCPServer"))
        if name == "TCPStore":
            words = words_of(node)
            listens = words.get("is_master") != "False"
            assert not listens or "master_listen_fd" in words, f"{room}:{node.lineno}"


def test_what_the_threat_model_names_is_there():
    """Each file, and each test that holds a promise; a name that has moved is mended there."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = set(re.findall(r"`(tests/[\w./]+)`", text))
    assert tests
    assert all((ROOT / path).is_file() for path in tests), tests
    rooms = set(re.findall(r"`(\w+(?:/\w+)*)\.py:(\w+)`", text))
    assert rooms
    for room, name in rooms:
        defined = (PACKAGE / f"{room}.py").read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", defined), (room, name)


@each_file
def test_nothing_is_said_past_the_console(path):
    """Streams are written to in one file; what rich draws, in those that escape it themselves.

    Two processes beside a run load nothing of it: one answers in JSON through a pipe that the run
    reads, the other says two fixed lines.
    """
    text = path.read_text(encoding="utf-8")
    room = path.relative_to(PACKAGE).as_posix()
    streams = r"sys\.std(?:out|err)\.(?:write|buffer)|(?<!\.)\bprint\("
    # What keeps others quiet says nothing.
    logs = r"logging\.(?!disable|root|getLogger\(\"\w+\"\)\.setLevel)\w+\("
    past = f"{streams}|{logs}"
    apart = {"console.py", "runs/writer.py", "training/outside.py"}
    assert room in apart or not re.findall(past, text)
    if re.search(r"\bConsole\(|console\.print\(", text):
        assert room in {"console.py", "curation/checking/table.py", "runs/journal.py"}
        assert "printable(" in text
