"""The formats, a row each: what its files are called, what writes and what opens them."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

from vitbase.errors import ConfigError, nearest
from vitbase.evaluation.classifier import Network
from vitbase.shipping.exporting import onnx_files, openvino_files, torch_files
from vitbase.shipping.exporting.facts import Facts, Precision
from vitbase.shipping.exporting.wanted import Wanted

_EXPORT = "pip install 'vitbase[export]'"
_OPENVINO = "pip install 'vitbase[openvino]'"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
      name: of the format.
      runtime: of what runs it.
      suffix: of the file.
      write: a model. Raises: ExportError.
      open: such a file again. Raises: WeightsError.
      precisions: that it is written in.
      writers: packages that write it, and those that open it.
      install: how they come here.
      beside: makes of the file's name that of another one, which may belong to it.
      is_program: whether opening it runs what is in it.
      check: raises a ConfigError if this machine lacks something else to write it.
    """

    name: str
    runtime: str
    suffix: str
    write: Callable[[Wanted, Path], None]
    open: Callable[[Path], tuple[Network, Facts]]
    precisions: tuple[Precision, ...] = ("fp32",)
    writers: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    install: str = ""
    beside: Callable[[Path], Path | None] = lambda path: None
    is_program: bool = False
    check: Callable[[], None] = lambda: None

    def files(self, path: Path) -> list[Path]:
        """Return the file, and before it the one that may belong to it."""
        other = self.beside(path)
        return [path] if other is None else [other, path]

    def check_name(self, path: Path) -> None:
        """Raise a ConfigError if the libraries of the formats cannot be told of a path."""
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{path}: what reads and writes {self.name} takes no path but in UTF-8."
            ) from None

    def require(self, *, to_write: bool) -> None:
        """Raise a ConfigError, with what to do, if something to write or open it is not here."""
        for package in (*self.openers, *(self.writers if to_write else ())):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"{self.name} needs {package}: {self.install}")
        if to_write:
            self.check()


FORMATS = {
    row.name: row
    for row in (
        Format(
            "onnx",
            "onnxruntime",
            ".onnx",
            onnx_files.write_onnx,
            onnx_files.open_onnx,
            ("fp32", "fp16", "int8"),
            ("onnx", "onnxscript"),
            ("onnxruntime",),
            _EXPORT,
            lambda path: path.with_name(path.name + onnx_files.DATA_SUFFIX),
        ),
        Format(
            "openvino",
            "openvino",
            ".xml",
            openvino_files.write_openvino,
            openvino_files.open_openvino,
            ("fp32", "fp16", "int8"),
            ("onnx", "onnxscript", "nncf"),
            ("openvino",),
            _OPENVINO,
            lambda path: path.with_suffix(openvino_files.DATA_SUFFIX),
        ),
        Format(
            "torch_export",
            "torch_export",
            ".pt2",
            torch_files.write_graph,
            torch_files.open_graph,
            is_program=True,
        ),
        Format(
            "aoti",
            "aoti",
            ".pt2",
            torch_files.write_package,
            torch_files.open_package,
            is_program=True,
            check=torch_files.check_compiler,
        ),
    )
}

SUFFIXES: dict[str, Format] = {}
"""Of several formats with one suffix, the first is meant unless another is asked for."""
for _row in FORMATS.values():
    SUFFIXES.setdefault(_row.suffix, _row)


def choose_format(out: Path, name: str | None) -> Format:
    """Return the format of a file's name, or the one that is asked for.

    Raises: ConfigError if there is none, or they contradict each other.
    """
    suffix = out.suffix.lower()
    if name is None:
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]
        known = ", ".join(f"{row.suffix} ({row.name})" for row in FORMATS.values())
        raise ConfigError(f"{out} does not tell the format: give a name that ends in {known}.")
    if name not in FORMATS:
        raise ConfigError(
            f"There is no format '{name}'; there are {', '.join(FORMATS)}.{nearest(name, FORMATS)}"
        )
    if suffix != FORMATS[name].suffix:
        raise ConfigError(
            f"Files of --format {name} end in {FORMATS[name].suffix}: {out} does not."
        )
    return FORMATS[name]
