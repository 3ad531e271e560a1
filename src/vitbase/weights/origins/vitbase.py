"""Our own weights: the names of `VisionTransformer.state_dict()`, and metadata that tell the rest.

The metadata stand in every safetensors file that this project writes, whatever the names in it.
"""

from __future__ import annotations

import json

from vitbase.config.preprocess import Preprocess
from vitbase.files import parse_json
from vitbase.model.spec import ViTSpec
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import COMPUTED, Dialect, Row
from vitbase.weights.origins.rows import BLOCKS, layers
from vitbase.weights.origins.sidecar import Sidecar
from vitbase.weights.origins.usage import OURS
from vitbase.weights.origins.vitbase_folder import find_code, read_config, write_sidecar

METADATA_KEY = "vitbase"
"""Where our safetensors files keep what is not a tensor, as JSON."""


def write_metadata(
    spec: ViTSpec, preprocess: Preprocess | None, labels: tuple[str, ...] | None
) -> dict[str, str]:
    """Return what a safetensors file of ours tells beside its tensors."""
    content = {
        "spec": spec.to_dict(),
        "preprocess": preprocess.model_dump(mode="json") if preprocess else None,
        "labels": list(labels) if labels else None,
    }
    return {METADATA_KEY: json.dumps(content, sort_keys=True)}


def read_metadata(file: TensorFile) -> Sidecar | None:
    """Read what :func:`write_metadata` wrote, or return None.

    Raises: ValueError, LookupError, TypeError or ConfigError if it is damaged.
    """
    if METADATA_KEY not in file.metadata:
        return None
    content = parse_json(file.metadata[METADATA_KEY])
    labels, preprocess = content["labels"], content["preprocess"]
    return Sidecar(
        spec=ViTSpec.from_dict(content["spec"]),
        preprocess=Preprocess.model_validate(preprocess).model_dump() if preprocess else {},
        labels=tuple(labels) if labels else None,
    )


_UNIT = "stem.stages.{s}.{u}"
_LAYERS = (
    *("stem.proj", "norm", "pre_logits", "head", "stem.root_norm", "stem.norms.{i}"),
    *(f"{_UNIT}.norm{n}" for n in ("1", "2", "3", "_proj")),
)
_TENSORS = (
    *("cls_token", "registers", "pos_embed", "blocks.{i}.scale1", "blocks.{i}.scale2"),
    *("stem.root_conv.weight", "stem.convs.{i}.weight"),
    *(f"{_UNIT}.conv{n}.weight" for n in ("1", "2", "3", "_proj")),
)
VITBASE = Dialect(
    name="vitbase",
    rows=(*BLOCKS, *layers(*zip(_LAYERS, _LAYERS, strict=True)), *(Row((n,), n) for n in _TENSORS)),
    signature=(r"stem\.proj\.weight",),
    suffixes=(".safetensors", ""),
    says=dict.fromkeys(COMPUTED, (".safetensors", "")),
    read_sidecar=read_config,
    write_sidecar=write_sidecar,
    metadata_in_folders=True,
    code=find_code,
    arguments=lambda spec: (),
    opened_by=OURS,
)
