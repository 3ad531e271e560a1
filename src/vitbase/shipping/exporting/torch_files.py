"""torch's own files (.pt2): the graph, which torch runs, or the program that a compiler made of it.

Either is a program. The graph's archive holds pickles, which torch.export reads as such, and the
other one machine code. So they are opened where their runtime was asked for by name, and nowhere
else.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import ConfigError, ExportError
from vitbase.evaluation.classifier import Network
from vitbase.files import parse_json
from vitbase.shipping.exporting.facts import Facts
from vitbase.shipping.exporting.graph import trace
from vitbase.shipping.exporting.onnx_files import blaming, first_line, quiet
from vitbase.shipping.exporting.wanted import Wanted, as_input

_FACTS = "vitbase"
"""Name of the file in the archive, or of the text in the package."""


def write_graph(wanted: Wanted, place: Path) -> None:
    """Write a graph as `torch.export.save` does."""
    graph = trace(wanted.loaded, wanted.facts)
    graph.example_inputs = None  # the only pickle that there would be
    torch.export.save(graph, place, extra_files={_FACTS: json.dumps(wanted.facts.to_texts())})


def open_graph(path: Path) -> tuple[Network, Facts]:
    """Open a file of :func:`write_graph`, which may run what is in it.

    Raises: WeightsError if it is none.
    """
    extra = {_FACTS: ""}
    what = f"it is no archive of torch.export that torch {torch.__version__} opens"
    with blaming(path, what), quiet():
        model = torch.export.load(path, extra_files=extra).module()
        texts = parse_json(extra[_FACTS] or "{}")
    facts = Facts.from_texts(texts, path)
    return _network(model, facts, path), facts


def check_compiler() -> None:
    """Raise a ConfigError if there is no C++ compiler, which torch's compiler ends with."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with quiet():
            get_cpp_compiler()
    except InvalidCxxCompiler:
        named = os.environ.get("CXX")
        told = f" CXX names {named}, which is none." if named and not shutil.which(named) else ""
        raise ConfigError(
            f"torch's compiler needs a C++ compiler, and finds none here.{told} Install one "
            f"(apt install g++), or name it in the variable CXX."
        ) from None


def write_package(wanted: Wanted, place: Path) -> None:
    """Compile a graph with AOTInductor, for this kind of machine, and write the package.

    Raises: ConfigError if there is no C++ compiler; ExportError if it fails.
    """
    check_compiler()
    graph = trace(wanted.loaded, wanted.facts)
    options: dict[str, Any] = {"aot_inductor.metadata": _plain_texts(wanted.facts)}
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(
                graph, package_path=str(place), inductor_configs=options
            )
    except Exception as error:  # the compiler's, the linker's, torch's
        raise ExportError(f"AOTInductor cannot compile this model: {first_line(error)}") from error


def open_package(path: Path) -> tuple[Network, Facts]:
    """Open a file of :func:`write_package`: this loads machine code, and runs it.

    Raises: WeightsError if it is none, or of another kind of machine.
    """
    what = f"it is no package of AOTInductor that torch {torch.__version__} opens here"
    with blaming(path, what), quiet():
        model = torch._inductor.aoti_load_package(str(path))
        texts = parse_json(model.get_metadata().get(_FACTS, "{}"))
    facts = Facts.from_texts(texts, path)
    return _network(model, facts, path), facts


def _plain_texts(facts: Facts) -> dict[str, str]:
    return {_FACTS: json.dumps(facts.to_texts())}


def _network(model: Any, facts: Facts, path: Path) -> Network:
    def network(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), blaming(path, "it fails"):
            logits_BC: torch.Tensor = model(torch.from_numpy(as_input(pixels_BHWC, facts)))
        return logits_BC.clone()

    return network
