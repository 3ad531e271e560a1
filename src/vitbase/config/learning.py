"""The options of how a model learns: optimizer, schedule, augmentation, loss. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from vitbase.config.options import Section, free_on_resume


class OptimizerSection(Section):
    """How a gradient becomes an update."""

    optimizer: Literal["momentum", "adamw", "lamb", "muon"] = Field(
        "momentum", description="update rule; muon: of hidden matrices, adamw for the rest"
    )
    lr_init: float = Field(0.02, gt=0, description="peak learning rate; given: used as it is")
    lr_by_global_batch: tuple[tuple[int, float], ...] = Field(
        (),
        description="(images per update, peak learning rate) pairs that lr_init follows, if not "
        "given; between them by lr_scaling; none: lr_init alone",
    )
    lr_scaling: Literal["linear", "sqrt"] | None = Field(
        None, description="of lr_by_global_batch; none: linear for momentum, sqrt for the others"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of momentum and muon")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adamw, lamb and muon")
    weight_decay: float = Field(1e-4, ge=0, description="momentum: L2; others: decoupled")
    decay_on: Literal["all", "all_but_norms", "kernels"] = Field(
        "all_but_norms", description="which parameters decay"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from a block to the one below"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest global gradient norm; none: any"
    )
    accumulation_steps: int | None = free_on_resume(
        None, "forward passes per update; none: 1, or as global_batch needs", ge=1
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average the weights over updates; none: do not"
    )
    ema_every_steps: int = Field(1, ge=1, description="updates between two steps of the average")
    max_nonfinite_updates: int = free_on_resume(
        3,
        "updates in a row whose loss or gradient is NaN or infinite; each is passed over, and at "
        "so many on_nonfinite is done",
        ge=1,
    )
    on_nonfinite: Literal["stop", "rewind"] = free_on_resume(
        "stop",
        "at max_nonfinite_updates: end the run, or go back to the last checkpoint and on without "
        "the images since",
    )

    @field_validator("lr_by_global_batch")
    @classmethod
    def _rates_in_range(cls, value: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        if any(batch < 1 or rate <= 0 for batch, rate in value):
            raise ValueError("should be pairs of a number of images and a learning rate above 0")
        return tuple(sorted(value))

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("should be two numbers in [0, 1)")
        return value


class ScheduleSection(Section):
    """How long, and the learning rate over time. Every schedule ends with the run."""

    epoch_size: int = Field(160, ge=1, description="epochs of the whole run")
    total_steps: int | None = Field(
        None, ge=1, description="updates of the whole run; none: epoch_size epochs"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="after warm-up; cosine and linear end at lr_final"
    )
    lr_final: float = Field(0.0, ge=0, description="where the learning rate ends")
    warmup_epochs: float = Field(0.0, ge=0, description="linear rise from zero, in epochs")
    warmup_steps: int | None = Field(
        None, ge=0, description="the same in updates; none: warmup_epochs"
    )
    eval_every_epochs: int = Field(
        1, ge=1, description="epochs between two evaluations; the last epoch always has one"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a better score after which the run ends; none: never",
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        in_epochs = self.warmup_steps is None and self.total_steps is None
        if in_epochs and self.warmup_epochs >= self.epoch_size:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} should be less than "
                f"epoch_size {self.epoch_size}"
            )
        if self.total_steps is not None and (self.warmup_steps or 0) >= self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} should be less than "
                f"total_steps {self.total_steps}"
            )
        return self


class AugmentSection(Section):
    """What training does to an image, in this order, and then to the images of a batch."""

    train_crop: Literal["random_resized", "simple", "pad", "center"] = Field(
        "random_resized",
        description="simple: resize to cover, then as pad, mirrored at the border; "
        "pad: resize, pad, random crop; center: as in evaluation",
    )
    crop_area_min: float = Field(0.08, gt=0, le=1, description="smallest area of random_resized")
    crop_pad: int = Field(4, ge=0, description="pixels added on each side by pad and simple")
    flip: bool = Field(True, description="mirror half of the images left to right")
    policy: Literal[
        "none", "randaugment_timm", "randaugment_torchvision", "randaugment_big_vision", "3-augment"
    ] = Field("none", description="random operations; the three RandAugments differ")
    randaugment_layers: int = Field(2, ge=1, description="operations for an image")
    randaugment_magnitude: float = Field(
        9.0, ge=0, description="of 10; of torchvision's: a whole number of 30"
    )
    randaugment_magnitude_std: float = Field(
        0.0, ge=0, description="of timm's: standard deviation of the magnitude"
    )
    color_jitter: float = Field(
        0.0, ge=0, description="reach of brightness, contrast, saturation; also in 3-augment"
    )
    erase_probability: float = Field(0.0, ge=0, le=1, description="of a random rectangle")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="what covers it: the mean colour, a random one, or noise"
    )
    repeated_augmentation: int = Field(
        1, ge=1, description="copies of an image in an epoch, which shows so many fewer images"
    )
    mixup_alpha: float = Field(0.0, ge=0, description="MixUp with Beta(alpha, alpha); 0: none")
    cutmix_alpha: float = Field(0.0, ge=0, description="CutMix with Beta(alpha, alpha); 0: none")
    mix_probability: float = Field(1.0, ge=0, le=1, description="of a step to be mixed")
    mix_switch_probability: float = Field(
        0.5, ge=0, le=1, description="of CutMix, where MixUp is possible too"
    )

    @property
    def mixes(self) -> bool:
        """Whether a step may mix its images."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mix_probability > 0

    @model_validator(mode="after")
    def _policy_fits(self) -> Self:
        magnitude = self.randaugment_magnitude
        if self.policy == "randaugment_torchvision" and (magnitude > 30 or magnitude % 1):
            raise ValueError(
                f"randaugment_magnitude {magnitude:g} should be a whole number up to 30 "
                f"for policy {self.policy}"
            )
        if self.randaugment_magnitude_std and self.policy != "randaugment_timm":
            raise ValueError(
                f"randaugment_magnitude_std {self.randaugment_magnitude_std:g} belongs to policy "
                f"randaugment_timm"
            )
        return self


class LossSection(Section):
    """What is minimised."""

    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="cross-entropy over all classes, or for each class apart"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target given to all classes alike"
    )
    over_classes: Literal["sum", "mean"] = Field(
        "sum", description="of loss sigmoid: sum as in big_vision, mean as in DeiT III and timm"
    )
    binary_targets: bool = Field(
        False, description="with loss sigmoid: both labels of mixed images count in full"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: an image of a rare class counts more"
    )

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        for option in ("binary_targets", "over_classes"):
            if self.loss != "sigmoid" and getattr(self, option) not in {False, "sum"}:
                raise ValueError(f"{option} {getattr(self, option)} belongs to loss sigmoid")
        if self.binary_targets and self.label_smoothing:
            raise ValueError(
                f"binary_targets {self.binary_targets} leaves nothing of label_smoothing "
                f"{self.label_smoothing:g}: give one of them"
            )
        return self
