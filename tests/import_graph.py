"""Which module of the package imports which, read off their sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import vitbase

PACKAGE = Path(vitbase.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

Graph = Mapping[str, set[str]]


def name_of(path: Path) -> str:
    """Return a module's full name: of an `__init__.py`, its package's."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """Return the room of the house that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def import_graph(*, everywhere: bool) -> Graph:
    """Return the modules of the package that each one imports by name.

    Args:
      everywhere: in functions and for type checkers, too; else only what happens on import.
    """
    return {
        module: set(imported(ast.parse(path.read_text(encoding="utf-8")), everywhere=everywhere))
        for module, path in MODULES.items()
    }


def imported(tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Yield what a piece of source imports of the package."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                name = inner if inner in MODULES else source
                if name.split(".")[0] == "vitbase" and name != "vitbase":
                    yield name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vitbase."):
                    yield alias.name
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            yield from imported(node, everywhere=everywhere)


def reached_from(start: str, graph: Graph) -> set[str]:
    """Return all modules that one imports, itself or through others."""
    reached: set[str] = set()
    ahead = [start]
    while ahead:
        for module in graph.get(ahead.pop(), ()):
            if module not in reached:
                reached.add(module)
                ahead.append(module)
    return reached


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, each sorted."""
    reached = {module: reached_from(module, graph) for module in graph}
    found = {
        tuple(sorted(other for other in reached[module] if module in reached.get(other, ())))
        for module in graph
        if module in reached[module]
    }
    return sorted(map(list, found))
