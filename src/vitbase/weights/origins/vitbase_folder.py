"""Our folders: what lets transformers open a network that it lacks, by a program in the folder.

The program is `modeling_vitbase.py`, copied as it is. Source: transformers' guide to custom models,
huggingface.co/docs/transformers/custom_models.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import variant_spec
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Code
from vitbase.weights.origins.pretrained import (
    CONFIG,
    PROCESSOR,
    read_labels,
    read_processor,
    write_labels,
    write_processor,
)
from vitbase.weights.origins.sidecar import Sidecar
from vitbase.weights.origins.usage import TRANSFORMERS_BY_CODE

_MODULE, _TYPE = "modeling_vitbase", "vitbase"
_FIELDS = (
    *("image_size", "in_channels", "patch_size", "conv_layers", "conv_norm", "width", "depth"),
    *("num_heads", "mlp_dim", "gelu", "norm_eps", "qkv_bias", "layer_scale_init", "class_token"),
    *("num_registers", "pos_embed", "pool", "representation_size"),
)
"""Of ViTSpec, that stand in `config.json`; what is left out there is as in ViT-B_16."""
_UNTOLD_CLASSES = 2  # transformers' own, where `config.json` has no names


def read_config(file: TensorFile) -> Sidecar:
    """Read a folder that transformers has written, which keeps no metadata but `config.json`."""
    config = file.config
    if config is None or config.get("model_type") != _TYPE:
        raise WeightsError(
            "it was not written by vitbase: its metadata hold no architecture, which the tensors "
            "alone do not tell"
        )
    told: dict[str, Any] = {field: config[field] for field in _FIELDS if field in config}
    told["stem"] = "conv" if told.get("conv_layers") else "patch"
    told["num_classes"] = len(config.get("id2label") or range(_UNTOLD_CLASSES))
    row = variant_spec()
    spec = ViTSpec.from_dict({**row.to_dict(), "name": config.get("variant", row.name), **told})
    preprocess = read_processor(file.processor or {})
    for name in ("mean", "std"):  # of grey images, once for each colour
        preprocess |= {name: preprocess[name][: spec.in_channels]} if name in preprocess else {}
    return Sidecar(spec=spec, preprocess=preprocess, labels=read_labels(config))


def write_sidecar(
    spec: ViTSpec, preprocess: Preprocess | None, labels: tuple[str, ...] | None
) -> Mapping[str, dict[str, Any] | str]:
    """Return what stands beside the weights: nothing where transformers could not open them."""
    if find_code(spec) is None:
        return {}
    name = "VitbaseForImageClassification"
    values = spec.to_dict()
    files: dict[str, dict[str, Any] | str] = {
        CONFIG: {
            "model_type": _TYPE,
            "variant": spec.name,
            "architectures": [name],
            "auto_map": {
                "AutoConfig": f"{_MODULE}.VitbaseConfig",
                "AutoModelForImageClassification": f"{_MODULE}.{name}",
            },
            "torch_dtype": "float32",
            **{field: values[field] for field in _FIELDS},
            **write_labels(labels, spec.num_classes),
        },
        f"{_MODULE}.py": resources.files(__package__).joinpath(f"{_MODULE}.py").read_text("utf-8"),
    }
    if preprocess is not None:
        processor = write_processor(preprocess)
        if preprocess.channels == 1:
            # Its pipelines read colours alone, and the program turns them grey.
            processor |= {"do_convert_rgb": True}
            processor |= {key: 3 * processor[key] for key in ("image_mean", "image_std")}
        files[PROCESSOR] = processor
    return files


def find_code(spec: ViTSpec) -> Code | None:
    """Return the program for transformers; None where it has no such network, or no classes."""
    if spec.stem == "resnet" or not spec.num_classes:
        return None
    return Code(f"{_MODULE}.py", "transformers", TRANSFORMERS_BY_CODE, _open_in_transformers)


def _open_in_transformers(folder: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """Open a folder in transformers by the program that vitbase has, not by the folder's copy."""
    with _unheard():
        import transformers

        from vitbase.weights.origins.modeling_vitbase import VitbaseForImageClassification

        version = transformers.__version__
        progress = transformers.utils.logging
        shows = progress.is_progress_bar_enabled()
        progress.disable_progress_bar()
        try:
            network, told = VitbaseForImageClassification.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # whatever a version of it raises
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise WeightsError(f"transformers {version} does not open it: {said}") from None
        finally:
            if shows:
                progress.enable_progress_bar()
    for what, names in told.items():
        if names:
            raise WeightsError(f"transformers {version} has {what.replace('_', ' ')}: {names}")
    network.eval()
    return (lambda images_BCHW: network(images_BCHW).logits), version


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep to themselves what other packages say about themselves, and each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
