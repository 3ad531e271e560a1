"""The house: rooms on floors, files and folders of a size, devices and JSON named in one file."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections import Counter

import pytest
from commands import ROOT
from import_graph import (
    FILES,
    MODULES,
    PACKAGE,
    circles,
    import_graph,
    name_of,
    reached_from,
    room_of,
)

import vitbase
from vitbase.weights.origins.registry import DIALECT_NAMES

# From the top of the house down; a room may import rooms of a later row only, or itself.
FLOORS = (
    ("cli", "__main__"),
    ("launch", "explanation", "engines"),
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
    ("accelerators", "ranks"),
    ("config", "rendezvous"),
    ("console", "files", "pickles", "stores"),
    ("companions", "disk"),
    ("errors", "_version", "stopping", "pulse"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ALL_IMPORTS = import_graph(everywhere=True)

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module)])
def test_imports_run_downward(module):
    """In functions and for type checkers, too."""
    room = room_of(module)
    assert room in FLOOR_OF, f"{room} is no room of the house"
    for other in map(room_of, ALL_IMPORTS[module]):
        below = FLOOR_OF[other] > FLOOR_OF[room]
        beside = (room, other) == ("__main__", "cli")
        assert below or other == room or beside, f"{room} imports {other}"


def test_no_modules_import_each_other():
    assert circles(import_graph(everywhere=False)) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a", "d"}}
    assert circles(graph) == [["b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("room", "stranger"),
    [("sources", "weights"), ("weights", "sources"), ("config", "runtime")],
)
def test_rooms_that_do_not_know_each_other(room, stranger):
    for module in MODULES:
        if room_of(module) == room:
            met = [other for other in reached_from(module, ALL_IMPORTS) if room_of(other)]
            assert stranger not in map(room_of, met), f"{module} reaches {stranger}"


@each_file
def test_only_the_runtime_names_devices(path):
    if path.name == "runtime.py":
        return
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"\b(cuda|npu|nccl|hccl|gloo|mps|xpu)\b", text)


def imports_mindspore(path):
    return re.search(r"^(import|from) mindspore\b", path.read_text("utf-8"), flags=re.MULTILINE)


@each_file
def test_only_one_room_imports_mindspore(path):
    assert room_of(name_of(path)) == "mindspore" or not imports_mindspore(path)
    inside = re.findall(r"^ +(?:import|from) mindspore\b", path.read_text("utf-8"), re.MULTILINE)
    assert not inside


@each_file
def test_only_one_file_parses_json(path):
    """That one bounds what comes from outside before it is parsed."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            assert not {"load", "loads", "JSONDecoder"} & {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "json":
            parses = node.attr in {"load", "loads", "JSONDecoder"}
            assert not parses or path == PACKAGE / "files.py", f"line {node.lineno}"


@each_file
def test_files_stay_small_and_say_what_they_are(path):
    assert path.stem not in {"utils", "common", "helpers", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


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


@each_file
def test_only_an_origin_knows_its_name(path):
    rooms = {room_of(name_of(path)), *map(room_of, ALL_IMPORTS[name_of(path)])}
    if "weights" not in rooms or ORIGINS in path.parents:
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


def test_no_folder_holds_more_than_a_fifth_of_the_lines():
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text("utf-8").splitlines())
    folder, most = lines.most_common(1)[0]
    assert most <= lines.total() / 5, f"{folder} has {most} of {lines.total()} lines"


def test_every_optional_dependency_is_asked_for_where_it_is_needed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = "".join(path.read_text(encoding="utf-8") for path in FILES)
    for extra in set(project["optional-dependencies"]) - {"dev"}:
        assert f"pip install 'vitbase[{extra}]'" in sources, extra


def test_the_public_api_is_there():
    graph = import_graph(everywhere=False)
    for module in MODULES:  # one of the same name would take a function's place
        reached = {module, *reached_from(module, graph)}
        mindspore = any(other in MODULES and imports_mindspore(MODULES[other]) for other in reached)
        if not module.endswith("__main__") and not mindspore:
            importlib.import_module(module)
    for name in vitbase.__all__:
        assert callable(getattr(vitbase, name)), name
