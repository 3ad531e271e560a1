"""Training checkpoints of encoders that learned without labels: DINO, iBOT, MoCo v3, DINOv2.

Their tensors have the names of other origins; the names of the networks around them tell the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitbase.weights.origins.dialect import Mapped
from vitbase.weights.origins.rows import IMAGENET
from vitbase.weights.origins.sidecar import Sidecar

_MOCO = ("base_encoder.", "momentum_encoder.")
_MOCO_HEADS = {384: 12}  # of facebookresearch/moco-v3, vits.py: others of this width have 6


def told_by_names(sidecar: Sidecar, prefix: str, ours: Mapping[str, Mapped]) -> Sidecar:
    """Add to a sidecar what the prefix of a network tells of it."""
    told: dict[str, object] = {} if sidecar.preprocess else {"preprocess": dict(IMAGENET)}
    patches = ours.get("stem.proj.weight")
    if sidecar.num_heads is None and patches and prefix.endswith(_MOCO):
        told["num_heads"] = _MOCO_HEADS.get(patches.shape[0])
    return sidecar.model_copy(update=told)
