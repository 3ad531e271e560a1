"""The options of `vitbase eval` alone: how images are looked at, and which. No torch here."""

from __future__ import annotations

from typing import Literal

from vitbase.config.options import Section, free_on_resume

ProtocolName = Literal["weights", "vit_paper", "google_jax", "timm", "deit", "torchvision"]
ViewsName = Literal["none", "flip", "five_crop", "ten_crop"]


class EvaluationSection(Section):
    """How `vitbase eval` looks at images. Training evaluates as it is configured to train."""

    protocol: ProtocolName = free_on_resume(
        "weights",
        "prepare images as evaluations of that package do; weights: as the weights were trained",
    )
    test_time_augmentation: ViewsName = free_on_resume(
        "none", "average the probabilities of several views: image and mirror image, or crops"
    )
    suite: Literal["imagenet"] | None = free_on_resume(
        None, "ImageNet and its variants, as many as there are in data_path; none: one data set"
    )
    map: str | None = free_on_resume(
        None,
        "CSV of the columns data and model: which class of the data is which of the model; "
        "none: by name",
    )
