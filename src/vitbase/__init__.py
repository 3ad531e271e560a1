"""Train and evaluate Vision Transformers, predict with them, convert their weights.

The public API is loaded on first use, so that `import vitbase` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitbase._version import __version__ as __version__

if TYPE_CHECKING:
    from vitbase.config.config import Config, load_config
    from vitbase.engines import evaluate, train
    from vitbase.errors import VitbaseError
    from vitbase.evaluation.run import Evaluation
    from vitbase.explanation import explain
    from vitbase.inspection.look import Inspection, inspect
    from vitbase.inspection.probing.probe import probe
    from vitbase.model.zoo import create_model, list_variants
    from vitbase.runs.result import TrainResult
    from vitbase.shipping.exporting.export import Export, export
    from vitbase.shipping.predict import Prediction, predict
    from vitbase.shipping.running.bench import bench
    from vitbase.shipping.running.table import Bench
    from vitbase.weights.convert import Conversion, convert_weights
    from vitbase.weights.load import LoadedModel, load_model
    from vitbase.weights.save import save_weights
    from vitbase.weights.show import show_weights

_HOMES = {
    "Bench": "vitbase.shipping.running.table",
    "Config": "vitbase.config.config",
    "Conversion": "vitbase.weights.convert",
    "Evaluation": "vitbase.evaluation.run",
    "Export": "vitbase.shipping.exporting.export",
    "Inspection": "vitbase.inspection.look",
    "LoadedModel": "vitbase.weights.load",
    "Prediction": "vitbase.shipping.predict",
    "TrainResult": "vitbase.runs.result",
    "VitbaseError": "vitbase.errors",
    "bench": "vitbase.shipping.running.bench",
    "convert_weights": "vitbase.weights.convert",
    "create_model": "vitbase.model.zoo",
    "evaluate": "vitbase.engines",
    "explain": "vitbase.explanation",
    "export": "vitbase.shipping.exporting.export",
    "inspect": "vitbase.inspection.look",
    "list_variants": "vitbase.model.zoo",
    "load_config": "vitbase.config.config",
    "load_model": "vitbase.weights.load",
    "predict": "vitbase.shipping.predict",
    "probe": "vitbase.inspection.probing.probe",
    "save_weights": "vitbase.weights.save",
    "show_weights": "vitbase.weights.show",
    "train": "vitbase.engines",
}

__all__ = [
    "Bench",
    "Config",
    "Conversion",
    "Evaluation",
    "Export",
    "Inspection",
    "LoadedModel",
    "Prediction",
    "TrainResult",
    "VitbaseError",
    "bench",
    "convert_weights",
    "create_model",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "list_variants",
    "load_config",
    "load_model",
    "predict",
    "probe",
    "save_weights",
    "show_weights",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitbase' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
