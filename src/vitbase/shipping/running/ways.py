"""The ways to compute a model's logits, a row each: from the model itself, or from a file of it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import ConfigError
from vitbase.evaluation.classifier import Network, of_model
from vitbase.runtime import Runtime
from vitbase.shipping.exporting.facts import Facts, Precision
from vitbase.shipping.exporting.formats import FORMATS, Format
from vitbase.shipping.exporting.openvino_files import open_openvino
from vitbase.shipping.exporting.torch_files import check_compiler
from vitbase.shipping.running.kept import kept_file
from vitbase.weights.load import LoadedModel


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute.

    Attributes:
      name: by which `--runtime` takes it.
      what: it is, in words.
      network: makes it of a model, on a device.
      precision: of its arithmetic: "fp32", "bf16" or "int8".
      on_cpu: whether it computes on a CPU alone.
      obstacle: says why it is not possible on a device, and what to do; None if it is.
      prepare: makes what `network` would make first, and keeps it; None: there is nothing.
    """

    name: str
    what: str
    network: Callable[[LoadedModel, Runtime], Network]
    precision: str = "fp32"
    on_cpu: bool = False
    obstacle: Callable[[Runtime], str | None] = lambda runtime: None
    prepare: Callable[[LoadedModel], object] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it computes in full precision: another one is taken by name alone."""
        return self.precision == "fp32"

    def problem(self, runtime: Runtime) -> str | None:
        """Say why it is not possible here, and what to do; None if it is."""
        if self.on_cpu and runtime.device.type != "cpu":
            return "is of CPUs: give --device_target CPU"
        return self.obstacle(runtime)

    def require(self, runtime: Runtime) -> None:
        """Raise a ConfigError if it is not possible here."""
        problem = self.problem(runtime)
        if problem is not None:
            raise ConfigError(f"--runtime {self.name} {problem}.")


def _in(precision: str, runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, precision=precision)  # type: ignore[arg-type]


def _eager(loaded: LoadedModel, runtime: Runtime, *, precision: str = "fp32") -> Network:
    return of_model(loaded, _in(precision, runtime))


def _compiled(
    loaded: LoadedModel,
    runtime: Runtime,
    *,
    precision: str = "fp32",
    backend: str = "inductor",
) -> Network:
    """Compile for each size of batch that is larger than all before; smaller ones are filled up."""
    model: Any = torch.compile(loaded.model, dynamic=False, backend=backend)
    compiled = dataclasses.replace(loaded, model=model)
    network = of_model(compiled, _in(precision, runtime))
    sizes: set[int] = set()

    def padded(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        count = len(pixels_BHWC)
        size = min((size for size in sizes if size >= count), default=count)
        sizes.add(size)
        if size > count:
            more = pixels_BHWC.new_zeros(size - count, *pixels_BHWC.shape[1:])
            pixels_BHWC = torch.cat([pixels_BHWC, more])
        return network(pixels_BHWC)[:count]

    return padded


def _compiles(runtime: Runtime) -> str | None:
    if runtime.device.type == "cpu":
        try:
            check_compiler()
        except ConfigError as error:
            return f"is not possible: {str(error).rstrip('.')}"
    return None


def _bf16(runtime: Runtime) -> str | None:
    return None if runtime.has_bf16 else "needs a device that computes in bf16, which this is not"


def _zentorch(runtime: Runtime) -> str | None:
    if importlib.util.find_spec("zentorch") is None:
        return "needs zentorch: pip install zentorch (AMD's CPUs)"
    return _compiles(runtime)


def _with_zentorch(loaded: LoadedModel, runtime: Runtime) -> Network:
    import zentorch  # noqa: F401

    return _compiled(loaded, runtime, backend="zentorch")


Opener = Callable[[Path], tuple[Network, Facts]]


def _of_file(
    name: str,
    what: str,
    form: Format,
    precision: Precision = "fp32",
    opener: Opener | None = None,
    computes_in: str | None = None,
    obstacle: Callable[[Runtime], str | None] = lambda runtime: None,
) -> Way:
    """Return the way through a file, which is made once and kept."""

    def network(loaded: LoadedModel, runtime: Runtime) -> Network:
        with kept_file(form, loaded, precision) as path:
            return (opener or form.open)(path)[0]

    def prepare(loaded: LoadedModel) -> None:
        with kept_file(form, loaded, precision):
            pass

    def problem(runtime: Runtime) -> str | None:
        try:
            form.require(to_write=True)
        except ConfigError as error:
            return f"is not possible: {str(error).rstrip('.')}"
        return obstacle(runtime)

    return Way(name, what, network, computes_in or precision, True, problem, prepare)


_OF_ONNX, _OF_OPENVINO, _OF_AOTI = (FORMATS[name] for name in ("onnx", "openvino", "aoti"))
_in_bf16 = partial(open_openvino, arithmetic="bf16")

WAYS = {
    way.name: way
    for way in (
        Way("eager", "torch, an operator after the other", _eager),
        Way("compiled", "torch.compile", _compiled, obstacle=_compiles),
        _of_file("aoti", "torch's AOTInductor, a compiled program", _OF_AOTI),
        _of_file("onnxruntime", "ONNX Runtime", _OF_ONNX),
        _of_file("openvino", "OpenVINO", _OF_OPENVINO),
        Way(
            "zentorch", "torch.compile with AMD's zentorch", _with_zentorch, "fp32", True, _zentorch
        ),
        Way("eager_bf16", "torch", partial(_eager, precision="bf16"), "bf16", obstacle=_bf16),
        Way(
            "compiled_bf16",
            "torch.compile",
            partial(_compiled, precision="bf16"),
            "bf16",
            obstacle=lambda runtime: _bf16(runtime) or _compiles(runtime),
        ),
        _of_file(
            "openvino_bf16",
            "OpenVINO",
            _OF_OPENVINO,
            opener=_in_bf16,
            computes_in="bf16",
            obstacle=_bf16,
        ),
        _of_file("onnxruntime_int8", "ONNX Runtime", _OF_ONNX, "int8"),
        _of_file("openvino_int8", "OpenVINO", _OF_OPENVINO, "int8"),
    )
}
"""Those of full precision first; `auto` takes none but these."""
