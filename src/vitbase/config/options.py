"""The options of a run, in sections: each typed, documented and bounded. No torch here.

A section is frozen and closed to unknown names. `learning.py` has those of how a model learns;
`config.py` puts them together.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vitbase.config.preprocess import OPTION_OF, Preprocess, default_preprocess

EMBEDDED = "embedded"
"""The ``data_path`` that names the images shipped inside the package."""

Reading = Literal["auto", "splits", "classes", "files"]
"""How a folder is read that could be read in several ways; "auto" asks where it is in doubt."""

DEVICE_TARGETS = {name.lower(): name for name in ("auto", "Ascend", "GPU", "CPU")}


class Section(BaseModel):
    """A group of options: immutable, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def free_on_resume(default: Any, description: str, **bounds: Any) -> Any:
    """Declare an option that may differ when a run is continued (it moves no number)."""
    return Field(
        default, description=description, json_schema_extra={"free_on_resume": True}, **bounds
    )


class RunSection(Section):
    """Where, on what, and how talkative."""

    name: str = Field(
        "imagenet", pattern=r"^[A-Za-z0-9_.]+$", description="name of the run, in its checkpoints"
    )
    output_dir: str | None = free_on_resume(None, "run folder; none: runs/<name>")
    engine: Literal["torch", "mindspore"] = Field(
        "torch", description="what computes; mindspore: the plain recipe on MindSpore itself"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of order, augmentation, initialisation")
    device_target: str = free_on_resume("auto", "Ascend, GPU, CPU or auto, in any case")
    device_id: int = free_on_resume(0, "which of the local devices, where it is one", ge=0)
    num_devices: int | None = free_on_resume(
        None, "local devices to train on together; none: one, or as the launcher says", ge=1
    )
    parallel: Literal["auto", "ddp", "fsdp"] = free_on_resume(
        "auto", "fsdp shards the training state over the devices; auto: where it is large"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: what the device does fast; weights stay in fp32"
    )
    tf32: bool = Field(False, description="let fp32 matrix products round to TF32, where there is")
    compile: bool = Field(False, description="compile the repeated block with torch.compile")
    fp8: bool = Field(
        False, description="multiply in FP8 in the blocks, by torchao; needs precision bf16"
    )
    device_graph: bool = Field(
        False, description="record an update once on the GPU and replay it (CUDA graphs)"
    )
    resume: bool = free_on_resume(True, "continue the run found in output_dir")
    hang_minutes: float = free_on_resume(
        10.0,
        "a rank that stands still for so long ends, with a report; three times as long where the "
        "run starts, compiles or saves; 0: never",
        ge=0,
    )
    log_every_steps: int = free_on_resume(50, "steps between two log lines", ge=1)
    tensorboard: bool = free_on_resume(False, "also write the metrics for TensorBoard")
    report: bool = free_on_resume(False, "at the end, write the page report/report.html")

    @field_validator("device_target", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        if isinstance(value, str):
            if value.lower() in DEVICE_TARGETS:
                return DEVICE_TARGETS[value.lower()]
            known = ", ".join(DEVICE_TARGETS.values())
            raise ValueError(f"should be one of {known} (in any case)")
        return value


class DataSection(Section):
    """Which images, and how many at a time."""

    data_path: str | None = free_on_resume(
        None, f"training images: class folders, IDX or CIFAR files, or '{EMBEDDED}'"
    )
    val_data_path: str | None = free_on_resume(
        None, "evaluation images; none: test files or folder val in data_path, else held out"
    )
    layout: Reading = free_on_resume(
        "auto", "what a folder in doubt holds: splits, classes, or files of many images each"
    )
    num_train_images: int | None = Field(
        None,
        ge=1,
        description="size of the training set, checked against the data; none: as many as it has",
    )
    num_val_images: int | None = Field(
        None,
        ge=1,
        description="size of the evaluation set, checked likewise; none: as many as it has",
    )
    num_classes: int | None = Field(
        None, ge=2, description="outputs of the model; none: as many as the data has"
    )
    image_height: int | None = Field(
        None, ge=1, description="rows of the input; none: as the weights, or 224"
    )
    image_width: int | None = Field(
        None, ge=1, description="columns of the input; none: as the weights, or 224"
    )
    image_channels: Literal[1, 3] | None = Field(
        None, description="1 grey, 3 RGB; none: as the weights, or 3"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, of pixels in [0, 1]; none: as the weights, or ImageNet's"
    )
    std: tuple[float, ...] | None = Field(
        None, description="per channel, of pixels in [0, 1]; none: as the weights, or ImageNet's"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="of every resize, and of RandAugment; none: as the weights, or bilinear"
    )
    crop_ratio: float | None = Field(
        None, gt=0, le=1, description="evaluation: crop / resized side; none: weights', or 0.875"
    )
    crop_mode: Literal["center", "squash"] | None = Field(
        None,
        description="evaluation: squash ignores the aspect; none: as the weights, or center",
    )
    batch_size: int = free_on_resume(128, "images per device and forward pass, at most", ge=1)
    global_batch: int | None = Field(
        None,
        ge=1,
        description="images per update; none: batch_size x devices x accumulation_steps",
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform", description="balanced: every class equally often"
    )
    eval_batch_size: int | None = free_on_resume(
        None, "images per device in evaluation; none: batch_size", ge=1
    )
    num_workers: int | None = free_on_resume(None, "decoding threads; none: one per core", ge=1)
    worker_processes: bool = free_on_resume(
        False, "each of these threads has a process of its own that prepares training images"
    )
    decoder: Literal["host", "device"] = Field(
        "host",
        description="device: decode and resize training JPEGs on the GPU, where cores are too few",
    )
    holdout_fraction: float = Field(
        0.1, gt=0, lt=1, description="share held out for evaluation without val_data_path"
    )
    on_bad_image: Literal["skip", "raise"] = free_on_resume(
        "skip", "unreadable in training: named and left out of the loss, or the end of the run"
    )
    max_bad_images: int = free_on_resume(
        10, "unreadable images tolerated in one training epoch, each named in the log", ge=0
    )

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        for option in ("mean", "std"):
            values = getattr(self, option)
            if values is not None and len(values) != (self.image_channels or 3):
                raise ValueError(
                    f"{option} has {len(values)} values for image_channels "
                    f"{self.image_channels or 3}"
                )
        if self.std is not None and any(value <= 0 for value in self.std):
            raise ValueError("std should be greater than 0 in every channel")
        return self

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width), if the run says both."""
        height, width = self.image_height, self.image_width
        return (height, width) if height is not None and width is not None else None

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing where no weights have a say: what is unset has its default."""
        return self.preprocess_after(None)

    def preprocess_after(self, weights: Preprocess | None) -> Preprocess:
        """Fill in what is unset: from the weights that a run starts from, else the defaults."""
        channels = self.image_channels or (weights.channels if weights else 3)
        if weights is not None and weights.channels == channels:
            base = weights
        else:
            base = default_preprocess(224, 224, channels)
            if weights is not None:
                base = base.model_copy(update={"height": weights.height, "width": weights.width})
        given = {field: getattr(self, option) for field, option in OPTION_OF.items()}
        return base.model_copy(update={k: v for k, v in given.items() if v is not None})


class ModelSection(Section):
    """What is computed. An option left out keeps what the variant's row in the zoo says."""

    model: str | None = Field(
        None, description="a variant of the zoo; none: that of checkpoint_path, else a small one"
    )
    pre_trained: bool | None = Field(
        None, description="start from checkpoint_path; none: if checkpoint_path is given"
    )
    checkpoint_path: str | None = Field(
        None, description="weights to start from, or to evaluate; none: random"
    )
    ignore_weights: tuple[str, ...] = Field(
        (),
        description="tensors of checkpoint_path to leave out, by name or pattern; none: take all",
    )
    weights_prefix: str | None = Field(
        None,
        description="of several networks in checkpoint_path, what names of this one begin with; "
        "none: the only one",
    )
    continue_training: bool = Field(
        False,
        description="also take momentum and position from checkpoint_path, written by MindSpore",
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="rate, after every linear map")
    stochastic_depth: float | None = Field(
        None, ge=0, lt=1, description="rate at the last block, growing linearly from 0"
    )
    stochastic_depth_rule: Literal["linear", "uniform"] | None = Field(
        None, description="uniform: the rate of every block, not of the last"
    )
    num_heads: int | None = Field(
        None,
        ge=1,
        description="attention heads, where weights do not tell and they are not 64 wide",
    )
    pool: Literal["token", "gap"] | None = Field(
        None, description="class token, or average of all patch tokens"
    )
    pos_embed: Literal["learned", "learned_grid", "sincos2d"] | None = Field(
        None, description="position table; learned_grid: of the patches, without the class token"
    )
    num_registers: int | None = Field(None, ge=0, description="extra tokens without a meaning")
    representation_size: int | None = Field(None, ge=1, description="tanh layer before the head")
    layer_scale_init: float | None = Field(None, gt=0, description="initial LayerScale")
    head_init_std: float | None = Field(
        None, ge=0, description="deviation of the head's initial weights"
    )
    head_bias_init: float | None = Field(None, description="initial bias of the head")
    gelu: Literal["tanh", "erf"] | None = Field(None, description="form of GELU")
    freeze_backbone: bool = Field(False, description="train the head alone (linear probing)")
    frozen_views: int | None = Field(
        None,
        ge=0,
        description="with freeze_backbone: views of an image whose features are computed once (1: "
        "as in evaluation; more: as in training); 0: anew in each epoch; none: 1, or 0 with MixUp",
    )
    activation_checkpointing: bool = free_on_resume(
        False, "compute blocks again in the backward pass: less memory, more time"
    )
    memory_budget: float | None = free_on_resume(
        None,
        "GiB that training may take on a device: as many blocks as it needs are computed again; 0: "
        "what is free there; none: no block",
        ge=0,
    )


class CheckpointSection(Section):
    """What is kept of a run."""

    keep_checkpoint_max: int = free_on_resume(30, "newest checkpoints kept, beside the best", ge=1)
    checkpoint_every_steps: int | None = free_on_resume(
        None, "also save inside an epoch, every so many steps; none: do not", ge=1
    )
    checkpoint_every_minutes: float | None = free_on_resume(
        None, "also save inside an epoch, every so many minutes; none: do not", gt=0
    )
    on_failed_save: Literal["warn", "stop"] = free_on_resume(
        "warn", "when a checkpoint cannot be written, but for the last one: go on, or stop the run"
    )
    checkpoint_format: Literal["native", "mindspore"] = free_on_resume(
        "native", "mindspore: also write .ckpt files into the run folder, as MindSpore has them"
    )
