"""Every table of names there is."""

from __future__ import annotations

from vitbase.weights.origins.dinov2 import DINOV2
from vitbase.weights.origins.google import GOOGLE
from vitbase.weights.origins.hf import HF_DINOV2, HF_VIT
from vitbase.weights.origins.mindspore import MINDSPORE
from vitbase.weights.origins.timm import TIMM, TIMM_BARE_STEM, TIMM_POOLED
from vitbase.weights.origins.torchvision import TORCHVISION
from vitbase.weights.origins.vitbase import VITBASE

DIALECTS = (
    VITBASE,
    MINDSPORE,
    GOOGLE,
    DINOV2,
    TIMM_POOLED,
    TIMM_BARE_STEM,
    TIMM,
    TORCHVISION,
    HF_DINOV2,
    HF_VIT,
)
"""In the order in which a file's names are tried."""

DIALECT_NAMES = tuple(dict.fromkeys(dialect.name for dialect in DIALECTS))
