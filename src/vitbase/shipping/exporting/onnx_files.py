"""ONNX files: written from a graph of torch's, made smaller, and opened in ONNX Runtime.

A file of more than 1.5 GiB keeps its weights in another one beside it, as no protobuf may be longer
than 2 GiB.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import ConfigError, ExportError, VitbaseError, WeightsError
from vitbase.evaluation.classifier import Network
from vitbase.runtime import available_cores
from vitbase.shipping.exporting.facts import Facts
from vitbase.shipping.exporting.graph import INPUT, OUTPUT, trace
from vitbase.shipping.exporting.wanted import Wanted, as_input

OLDEST_OPSET = 18
"""That the exporter writes."""

DATA_SUFFIX = ".data"

_MOST_INSIDE = 3 << 29

_SAFE_RUNTIME = (1, 24)
"""That checks where the weights of a file lie."""

_KEPT_FP32 = ("LayerNormalization", "Softmax", "InstanceNormalization", "GroupNormalization")
"""What overflows, or loses small differences, in fp16."""


def write_onnx(wanted: Wanted, place: Path) -> None:
    """Write a model as ONNX.

    Raises: ExportError if the opset has no operators for it.
    """
    model = _in_precision[wanted.facts.precision](wanted, place)
    del model.metadata_props[:]
    for name, text in wanted.facts.to_texts().items():
        model.metadata_props.add(key=name, value=text)
    _save(model, place)


def plain_onnx(wanted: Wanted) -> Any:
    """Return the graph in float32, a `ModelProto`."""
    graph = trace(wanted.loaded, wanted.facts)
    try:
        with quiet():
            program = torch.onnx.export(
                graph,
                dynamo=True,
                opset_version=wanted.opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"torch cannot write this model with ONNX's opset {wanted.opset}: {first_line(error)}"
        ) from error
    assert program is not None
    # Which line of which file on this machine a node comes from is nobody's business.
    for node in program.model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()
    return program.model_proto


def _plain(wanted: Wanted, place: Path) -> Any:
    return plain_onnx(wanted)


def _in_half(wanted: Wanted, place: Path) -> Any:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    return convert_float_to_float16(
        plain_onnx(wanted),
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FP32],
    )


def _in_integers(wanted: Wanted, place: Path) -> Any:
    """Write the large products in integers of 8 bits; everything between them stays float32.

    Weights have 7 bits: without instructions for it (VNNI), sums of two products of 8 bits are cut
    off at 16 on the usual CPUs, and the result is wrong.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    plain = plain_onnx(wanted)
    options: dict[str, Any] = {
        "nodes_to_quantize": _products(plain),
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "per_channel": True,
        "reduce_range": True,
        "weight_type": QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True},
    }
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=place.parent) as folder, quiet():
        source, made = (Path(folder) / name for name in ("fp32.onnx", "int8.onnx"))
        _save(plain, source)
        options["use_external_data_format"] = source.with_name(source.name + DATA_SUFFIX).exists()
        if wanted.calibration is None:
            quantize_dynamic(source, made, **options)
        else:
            quantize_static(
                source,
                made,
                _Reader(wanted),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                **options,
            )
        return onnx.load(made)


_in_precision = {"fp32": _plain, "fp16": _in_half, "int8": _in_integers}


def _products(model: Any) -> list[str]:
    """Return the names of the products with a matrix of weights."""
    matrices = {weight.name for weight in model.graph.initializer if len(weight.dims) == 2}
    nodes = (node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"})
    return [node.name for node in nodes if node.input[1] in matrices]


class _Reader:
    """Gives images for calibration, in the form that ONNX Runtime asks for."""

    def __init__(self, wanted: Wanted) -> None:
        self._feeds = wanted.feeds()

    def get_next(self) -> dict[str, Any] | None:
        images = next(self._feeds, None)
        return None if images is None else {INPUT: images}


def _save(model: Any, place: Path) -> None:
    import onnx

    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save(
        model,
        place,
        save_as_external_data=size > _MOST_INSIDE,
        location=place.name + DATA_SUFFIX,
    )


def open_onnx(path: Path) -> tuple[Network, Facts]:
    """Open a file of :func:`write_onnx`; nothing in it runs but operators of ONNX Runtime itself.

    Raises: WeightsError if it is none, or ONNX Runtime cannot run it.
    """
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < _SAFE_RUNTIME:
        raise ConfigError(
            f"ONNX Runtime {version} lets a file read others outside its folder: "
            f"pip install 'vitbase[export]' brings a newer one."
        )
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is said by the error
    options.intra_op_num_threads = available_cores()
    with blaming(path, f"ONNX Runtime {version} cannot open it"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        facts = Facts.from_texts(session.get_modelmeta().custom_metadata_map, path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    types = {"inside": "tensor(uint8)", "outside": "tensor(float)"}
    fits = [(each.type, tuple(each.shape[1:])) for each in inputs] == [
        (types[facts.preprocessing], facts.input_shape)
    ] and [(each.type, tuple(each.shape[1:])) for each in outputs] == [
        ("tensor(float)", (facts.num_classes,))
    ]
    if not fits:
        raise WeightsError(f"{path}: its inputs and outputs are not those that it tells of.")
    name = inputs[0].name

    def network(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        with blaming(path, f"ONNX Runtime {version} fails on it"):
            (logits_BC,) = session.run(None, {name: as_input(pixels_BHWC, facts)})
        return torch.from_numpy(logits_BC)

    return network, facts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let libraries log nothing but errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def blaming(path: Path, what: str) -> Iterator[None]:
    """Let what a library raises, whose errors have no common base, be a file's fault.

    Raises: WeightsError.
    """
    try:
        yield
    except VitbaseError:
        raise
    except Exception as error:
        raise WeightsError(f"{path}: {what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says, without the number that it gives it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:300]
