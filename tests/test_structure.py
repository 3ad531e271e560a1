"""The house: imports run downward, devices are named in one file, every option is read."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import vitbase
from vitbase.config.config import FIELDS
from vitbase.weights.origins.registry import DIALECT_NAMES

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


ORIGINS = PACKAGE / "weights" / "origins"


def names_an_origin(node: ast.AST) -> bool:
    """Whether it is the name of an origin, or several of them."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(names_an_origin, node.elts))
    return isinstance(node, ast.Constant) and node.value in DIALECT_NAMES


def questions_of_origin(tree: ast.AST) -> list[ast.AST]:
    """Find where code asks whose weights they are, instead of the dialect what it needs to know."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            map(names_an_origin, [node.left, *node.comparators])
        ):
            is_engine = re.search(r"\bengine\b", ast.unparse(node))  # MindSpore is one, too
            found += [] if is_engine else [node]
        elif isinstance(node, ast.MatchValue) and names_an_origin(node.value):
            found.append(node)
        elif isinstance(node, ast.Dict):
            found += [key for key in node.keys if key is not None and names_an_origin(key)]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 1:
            found += [node] if all(map(names_an_origin, node.elts)) else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_an_origin_knows_its_name(path):
    may_ask = room_of(path) == "weights" or "weights" in imported_rooms(path)
    if not may_ask or ORIGINS in path.parents:
        return
    found = questions_of_origin(ast.parse(path.read_text(encoding="utf-8")))
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in found] == []


@pytest.mark.parametrize(
    "question",
    [
        'dialect.name == "timm"',
        '"hf" != name',
        'dialect in ("vitbase", "timm")',
        'FIXED = {"gelu": ("google", "mindspore")}',
        'HOOKS = {"hf": read_hf}',
        'match name:\n    case "dinov2":\n        pass',
    ],
)
def test_a_question_of_origin_is_found(question):
    assert questions_of_origin(ast.parse(question))
    assert not questions_of_origin(ast.parse('def save(path, dialect="vitbase"): pass'))


def test_every_option_is_read():
    read = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            # spec_of() passes the model's options on by name.
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value) if path.name == "start.py" else None
    assert sorted(set(FIELDS) - read) == []


def test_the_public_api_is_there():
    for path in FILES:  # a module of the same name would take a function's place
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] not in {"__main__", "__init__"}:
            importlib.import_module(".".join(parts))
    for name in vitbase.__all__:
        assert callable(getattr(vitbase, name)), name
