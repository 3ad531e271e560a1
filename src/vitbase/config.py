"""Every option of a run: typed, documented, validated; reads and writes TOML. No torch here.

A :class:`Config` is made of frozen sections. Field names are unique across sections, so a TOML
file groups them under headings while the command line and :func:`load_config` use plain names
(``--lr_init 0.02``). Unknown names, wrong types and impossible combinations raise
:class:`~vitbase.errors.ConfigError` naming the option and, where there is one, the nearest name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from vitbase.errors import ConfigError, nearest

EMBEDDED = "embedded"
"""The ``data_path`` that names the images shipped inside the package."""

DEVICE_TARGETS = {name.lower(): name for name in ("auto", "Ascend", "GPU", "CPU")}


class Preprocess(BaseModel):
    """What an image must become before the model sees it. Travels with weights.

    Evaluation resizes the short side to ``size / crop_ratio``, then crops the centre.
    ``mean`` and ``std`` are per channel, for pixels scaled to [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    height: int
    width: int
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Section(BaseModel):
    """A group of options: immutable, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _free_on_resume(default: Any, description: str, **bounds: Any) -> Any:
    """Declare an option that may differ when a run is continued (it moves no number)."""
    return Field(
        default, description=description, json_schema_extra={"free_on_resume": True}, **bounds
    )


class RunSection(Section):
    """Where, on what, and how talkative."""

    name: str = Field(
        "imagenet", pattern=r"^[A-Za-z0-9_.]+$", description="name of the run, in its checkpoints"
    )
    output_dir: str | None = _free_on_resume(None, "run folder; none: runs/<name>")
    seed: int = Field(0, ge=0, lt=2**63, description="of order, augmentation, initialisation")
    device_target: str = _free_on_resume("auto", "Ascend, GPU, CPU or auto, in any case")
    device_id: int = _free_on_resume(0, "which of the local devices", ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: what the device does fast; weights stay in fp32"
    )
    resume: bool = _free_on_resume(True, "continue the run found in output_dir")
    log_every_steps: int = _free_on_resume(50, "steps between two log lines", ge=1)

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

    data_path: str | None = _free_on_resume(
        None, f"training images: class folders, IDX or CIFAR files, or '{EMBEDDED}'"
    )
    val_data_path: str | None = _free_on_resume(
        None, "evaluation images; none: test files or folder val in data_path, else held out"
    )
    num_train_images: int | None = Field(
        None, ge=1, description="size of the training set, for explain; checked against the data"
    )
    num_val_images: int | None = Field(
        None, ge=1, description="size of the evaluation set; checked against the data"
    )
    num_classes: int | None = Field(None, ge=2, description="none: as many as the data has")
    image_height: int = Field(224, ge=1, description="rows of the model's input, in pixels")
    image_width: int = Field(224, ge=1, description="columns of the model's input, in pixels")
    image_channels: Literal[1, 3] = Field(3, description="1 grey, 3 RGB")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), description="per channel, of pixels in [0, 1]"
    )
    std: tuple[float, ...] = Field(
        (0.229, 0.224, 0.225), description="per channel, of pixels in [0, 1]"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="of every resize, always antialiased"
    )
    crop_ratio: float = Field(
        0.875, gt=0, le=1, description="evaluation: centre crop / resized short side"
    )
    batch_size: int = Field(128, ge=1, description="images per device and forward pass")
    eval_batch_size: int | None = _free_on_resume(None, "none: batch_size", ge=1)
    num_workers: int | None = _free_on_resume(None, "decoding threads; none: one per core", ge=1)
    holdout_fraction: float = Field(
        0.1, gt=0, lt=1, description="share held out for evaluation without val_data_path"
    )
    max_bad_images: int = _free_on_resume(
        10, "unreadable images tolerated in one training epoch, each named in the log", ge=0
    )

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        for option in ("mean", "std"):
            values = getattr(self, option)
            if len(values) != self.image_channels:
                raise ValueError(
                    f"{option} has {len(values)} values for image_channels {self.image_channels}"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError("std should be greater than 0 in every channel")
        return self

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(
            height=self.image_height,
            width=self.image_width,
            channels=self.image_channels,
            mean=self.mean,
            std=self.std,
            crop_ratio=self.crop_ratio,
            interpolation=self.interpolation,
        )


class ModelSection(Section):
    """What is computed. An option left out keeps what the variant's row in the zoo says."""

    model: str | None = Field(
        None, description="a variant of the zoo; none: that of checkpoint_path, else a small one"
    )
    pre_trained: bool | None = Field(
        None, description="start from checkpoint_path; none: if checkpoint_path is given"
    )
    checkpoint_path: str | None = Field(None, description="weights to start from, or to evaluate")
    dropout: float | None = Field(None, ge=0, lt=1, description="rate, after every linear map")
    stochastic_depth: float | None = Field(
        None, ge=0, lt=1, description="rate at the last block, growing linearly from 0"
    )
    pool: Literal["token", "gap"] | None = Field(
        None, description="class token, or average of all patch tokens"
    )
    pos_embed: Literal["learned", "sincos2d"] | None = Field(None, description="position table")
    num_registers: int | None = Field(None, ge=0, description="extra tokens without a meaning")
    representation_size: int | None = Field(None, ge=1, description="tanh layer before the head")
    layer_scale_init: float | None = Field(None, gt=0, description="initial LayerScale")
    gelu: Literal["tanh", "erf"] | None = Field(None, description="form of GELU")


class OptimizerSection(Section):
    """How a gradient becomes an update."""

    optimizer: Literal["momentum", "adamw"] = Field("momentum", description="update rule")
    lr_init: float = Field(0.02, gt=0, description="peak learning rate, after warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="of optimizer momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of optimizer adamw")
    weight_decay: float = Field(1e-4, ge=0, description="adamw: decoupled; momentum: L2")
    decay_on: Literal["all_but_norms", "kernels"] = Field(
        "all_but_norms", description="which parameters decay"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest global gradient norm")
    accumulation_steps: int = Field(1, ge=1, description="forward passes per update")

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("should be two numbers in [0, 1)")
        return value


class ScheduleSection(Section):
    """How long, and the learning rate over time. Every schedule ends with the run."""

    epoch_size: int = Field(160, ge=1, description="epochs of the whole run")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="after warm-up; cosine and linear end at zero"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear rise from zero, in epochs")
    eval_every_epochs: int = Field(
        1, ge=1, description="epochs between two evaluations; the last epoch always has one"
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epoch_size:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} should be less than "
                f"epoch_size {self.epoch_size}"
            )
        return self


class AugmentSection(Section):
    """What training does to an image, and to its label."""

    train_crop: Literal["random_resized", "pad", "center"] = Field(
        "random_resized", description="pad: resize, pad, random crop; center: as in evaluation"
    )
    crop_area_min: float = Field(0.08, gt=0, le=1, description="smallest area of random_resized")
    crop_pad: int = Field(4, ge=0, description="pixels added on each side by train_crop pad")
    flip: bool = Field(True, description="mirror half of the images left to right")


class CheckpointSection(Section):
    """What is kept of a run."""

    keep_checkpoint_max: int = _free_on_resume(30, "newest checkpoints kept, beside the best", ge=1)
    checkpoint_every_steps: int | None = _free_on_resume(
        None, "also save inside an epoch, every so many steps", ge=1
    )


class Config(BaseModel):
    """Every option of a run, in sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    augment: AugmentSection = AugmentSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.run.output_dir or f"runs/{self.run.name}")

    @property
    def global_batch(self) -> int:
        """Images per update."""
        return self.data.batch_size * self.optimizer.accumulation_steps

    @property
    def starts_from_weights(self) -> bool:
        """Whether training starts from ``checkpoint_path`` rather than from random weights."""
        if self.model.pre_trained is None:
            return self.model.checkpoint_path is not None
        return self.model.pre_trained

    def replace(self, **options: Any) -> Config:
        """Return a copy with some options changed, validated like any other input.

        Raises: ConfigError for an unknown name, a wrong type, or an impossible combination.
        """
        nested = self.model_dump()
        for option, value in options.items():
            nested[section_of(option)][option] = value
        return _validated(nested, "")

    def to_toml(self) -> str:
        """Return the whole configuration as TOML; options that are unset are left out."""
        lines: list[str] = []
        for section, values in self.model_dump(mode="json").items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_toml(v)}" for key, v in values.items() if v is not None]
            lines.append("")
        return "\n".join(lines)


def _toml(value: object) -> str:
    # JSON's numbers, booleans, flat arrays and strings are valid TOML, but for a raw DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _all_fields() -> dict[str, tuple[str, FieldInfo]]:
    fields: dict[str, tuple[str, FieldInfo]] = {}
    for section, info in Config.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for option, field in kind.model_fields.items():
            assert option not in fields, f"option {option} stands in two sections"
            fields[option] = (section, field)
    return fields


FIELDS = _all_fields()
"""Option name -> (section, field): the flat view of :class:`Config`."""


def section_of(option: str) -> str:
    """Return the section that holds an option.

    Raises: ConfigError for an unknown option, with the nearest known one.
    """
    if option not in FIELDS:
        raise ConfigError(f"Unknown option '{option}'.{nearest(option, FIELDS)}")
    return FIELDS[option][0]


def differences_on_resume(saved: Config, asked: Config) -> list[str]:
    """Return a line per option that differs and may not differ when a run is continued."""
    lines = []
    for option, (section, field) in FIELDS.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("free_on_resume"):
            continue
        before = getattr(getattr(saved, section), option)
        after = getattr(getattr(asked, section), option)
        if before != after:
            lines.append(f"{option}: the run has {before}, asked for {after}")
    return lines


def _validated(nested: Mapping[str, Any], origin: str) -> Config:
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from None


def _explain(error: ValidationError, origin: str) -> str:
    """Turn pydantic's findings into one line per option."""
    lines = []
    for finding in error.errors(include_url=False):
        path = [str(part) for part in finding["loc"]]
        name = path[1] if len(path) > 1 else (path[0] if path else "")
        if finding["type"] == "extra_forbidden":
            if len(path) == 1:
                lines.append(f"Unknown section [{name}].{nearest(name, Config.model_fields)}")
            elif name in FIELDS:
                lines.append(f"Option '{name}' belongs into [{FIELDS[name][0]}], not [{path[0]}].")
            else:
                lines.append(f"Unknown option '{name}'.{nearest(name, FIELDS)}")
            continue
        message = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = message[0].lower() + message[1:]
        if len(path) > 1:
            line = f"Option '{name}' {message} (got {finding['input']!r})."
        else:
            line = f"Options do not fit together: {message}."
        if line not in lines:
            lines.append(line)
    prefix = f"{origin}: " if origin else ""
    return "\n".join(prefix + line for line in lines)


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, sorted."""
    folder = resources.files("vitbase") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def read_recipe_text(recipe: str) -> str:
    """Read a shipped recipe, or any ``.toml`` file, as text.

    Raises: ConfigError if there is no such recipe or file.
    """
    if recipe.endswith(".toml"):
        try:
            return Path(recipe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the configuration file {recipe}: {error}") from None
    names = recipe_names()
    if recipe not in names:
        raise ConfigError(
            f"Unknown recipe '{recipe}'.{nearest(recipe, names)} "
            f"There are {', '.join(names)}; or give the path of a .toml file."
        )
    path = resources.files("vitbase") / "recipes" / f"{recipe}.toml"
    return path.read_text(encoding="utf-8")


def load_config(recipe: str, **options: Any) -> Config:
    """Read a recipe by name, or a ``.toml`` file, and apply options on top.

    Args:
      recipe: name of a shipped recipe, or a path ending in ``.toml``.
      **options: any option of any section, by its plain name.
    Returns: the validated configuration.
    Raises: ConfigError naming what is unknown, of the wrong type, or impossible.
    """
    text = read_recipe_text(recipe)
    try:
        nested = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{recipe} is not valid TOML: {error}") from None
    config = _validated(nested, recipe)
    return config.replace(**options) if options else config
