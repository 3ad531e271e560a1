"""OpenVINO's files: a graph (.xml), and its weights (.bin) beside it.

They are made from the ONNX graph: OpenVINO runs it faster than what it reads from torch.export.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import WeightsError
from vitbase.evaluation.classifier import Network
from vitbase.runtime import available_cores
from vitbase.shipping.exporting.facts import Facts
from vitbase.shipping.exporting.onnx_files import blaming, plain_onnx, quiet
from vitbase.shipping.exporting.wanted import Wanted, as_input

DATA_SUFFIX = ".bin"

_FACTS = "vitbase"
"""Under which the facts stand in the graph's own information."""

_OPSET = 21
"""The first with a GroupNorm that is one operator: of those that are several, OpenVINO 2026.4 has
taken the shape of another tensor, in int8 and on CPUs with AVX-512."""

_GROUP = "64"
"""Numbers that share a range where images set their own: it divides every width."""


def import_openvino() -> Any:
    """Import OpenVINO; on its import, and NNCF's, it would report itself to a server."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def write_openvino(wanted: Wanted, place: Path) -> None:
    """Write a model for OpenVINO.

    In int8 without images for calibration, the file has weights of integers, and OpenVINO makes
    integers of what they are multiplied with. Of weights in fp16, a CPU makes float32.

    Raises: ExportError as `write_onnx`.
    """
    openvino = import_openvino()
    onnx = plain_onnx(dataclasses.replace(wanted, opset=_OPSET))
    model = openvino.Core().read_model(onnx.SerializeToString())
    if wanted.facts.precision == "int8":
        model = _in_integers(model, wanted)
    for name, text in wanted.facts.to_texts().items():
        model.set_rt_info(text, [_FACTS, name])
    openvino.save_model(model, place, compress_to_fp16=wanted.facts.precision == "fp16")


def _in_integers(model: Any, wanted: Wanted) -> Any:
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # it draws bars
        import nncf

        if wanted.calibration is None:
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
            model.set_rt_info(_GROUP, ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
            return model
        feeds = [*wanted.feeds()]
        # Moving the outliers of activations into weights, its default, made ten times the error.
        unsmoothed = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=unsmoothed),
        )


def open_openvino(path: Path, arithmetic: str = "f32") -> tuple[Network, Facts]:
    """Open a file of :func:`write_openvino`.

    Args:
      arithmetic: of what is no integer: "f32", or "bf16".
    Raises: WeightsError if it is none, or OpenVINO cannot run it.
    """
    openvino = import_openvino()
    options = {
        "PERFORMANCE_HINT": "LATENCY",  # one image after the other, each on all cores
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": available_cores(),
    }
    with blaming(path, f"OpenVINO {openvino.__version__} cannot open it"):
        core = openvino.Core()
        model = core.read_model(path)
        facts = Facts.from_texts(_texts(model), path)
        types = {"inside": openvino.Type.u8, "outside": openvino.Type.f32}
        expected = [
            (types[facts.preprocessing], facts.input_shape),
            (openvino.Type.f32, (facts.num_classes,)),
        ]
        if [_kind(port) for port in (*model.inputs, *model.outputs)] != expected:
            raise WeightsError(f"{path}: its inputs and outputs are not those that it tells of.")
        request = core.compile_model(model, "CPU", options).create_infer_request()

    def network(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        with blaming(path, f"OpenVINO {openvino.__version__} fails on it"):
            found = request.infer({0: as_input(pixels_BHWC, facts)}, share_inputs=True)
        return torch.from_numpy(found[0].copy())  # the next images take its place

    return network, facts


def _texts(model: Any) -> dict[str, str]:
    if not model.has_rt_info([_FACTS]):
        return {}
    return {name: str(text) for name, text in model.get_rt_info([_FACTS]).value.items()}


def _kind(port: Any) -> tuple[Any, tuple[int, ...]]:
    shape = port.get_partial_shape()
    sizes = (shape[n] for n in range(1, len(shape)))
    return port.get_element_type(), tuple(s.get_length() if s.is_static else -1 for s in sizes)
