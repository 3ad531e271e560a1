"""The house: imports run downward, devices are named in one file, files stay small."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import vitbase

PACKAGE = Path(vitbase.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# From the top of the house down; a room may import rooms of a later row only, or itself.
FLOORS = (
    ("cli", "__main__"),
    ("launch", "explanation"),
    ("curation",),
    ("shipping",),
    ("inspection",),
    ("mindspore",),
    ("training",),
    ("evaluation",),
    ("data",),
    ("sources", "weights"),
    ("runs",),
    ("model",),
    ("runtime",),
    ("config",),
    ("console", "files"),
    ("errors", "_version"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "vitbase":
                names = [f"vitbase.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "vitbase" and len(parts) > 1 and not parts[1].startswith("__"):
                rooms.add(parts[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR_OF, f"{room} is no room of the house"
    for other in imported_rooms(path):
        below = FLOOR_OF[other] > FLOOR_OF[room]
        beside = (room, other) == ("__main__", "cli")
        assert below or other == room or beside, f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_runtime_names_devices(path):
    if path.name == "runtime.py":
        return
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"\b(cuda|npu|nccl|hccl|gloo|mps|xpu)\b", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small_and_say_what_they_are(path):
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


def test_the_public_api_is_there():
    for path in FILES:  # a module of the same name would take a function's place
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] not in {"__main__", "__init__"}:
            importlib.import_module(".".join(parts))
    for name in vitbase.__all__:
        assert callable(getattr(vitbase, name)), name
