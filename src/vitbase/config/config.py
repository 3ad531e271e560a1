"""A run's configuration: the sections of options.py together; reads and writes TOML. No torch.

Field names are unique across sections, so a TOML file groups them under headings while the
command line and :func:`load_config` use plain names (``--lr_init 0.02``). Unknown names, wrong
types and impossible combinations raise :class:`~vitbase.errors.ConfigError` naming the option and,
where there is one, the nearest name.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo

from vitbase.config.evaluating import EvaluationSection
from vitbase.config.hints import hint_for
from vitbase.config.learning import AugmentSection, LossSection, OptimizerSection, ScheduleSection
from vitbase.config.options import CheckpointSection, DataSection, ModelSection, RunSection, Section
from vitbase.config.preprocess import OPTION_OF, Preprocess
from vitbase.config.shipped import read_recipe_text
from vitbase.config.together import check_together
from vitbase.console import warn
from vitbase.errors import ConfigError, nearest, shown


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where options come from: a recipe that ships with the package, and somebody on top of it.

    Attributes:
      recipe: its name.
      base: its options.
      given: names of the options that somebody has set, which nothing else may change.
    """

    recipe: str
    base: Config
    given: frozenset[str] = frozenset()


class Config(BaseModel):
    """Every option of a run, in sections. Two are equal if all their options are."""

    _origin: Origin | None = PrivateAttr(None)
    _given: frozenset[str] = PrivateAttr(frozenset())
    model_config = ConfigDict(frozen=True, extra="forbid")
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _stands_together(self) -> Self:
        check_together(self.run, self.data, self.model, self.optimizer, self.augment)
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.to_toml())

    @property
    def origin(self) -> Origin | None:
        """The recipe that this began as; None if every option is somebody's own, as in a file."""
        return self._origin

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that somebody has set on top of a recipe, or of a file."""
        return self._given

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.run.output_dir or f"runs/{self.run.name}")

    def value(self, option: str) -> Any:
        """Return the value of an option. Raises: ConfigError if there is no such option."""
        return getattr(getattr(self, section_of(option)), option)

    def with_preprocess(self, preprocess: Preprocess) -> Config:
        """Return a copy in which every option of the preprocessing is set."""
        return self.derive(
            **{option: getattr(preprocess, field) for field, option in OPTION_OF.items()}
        )

    @property
    def starts_from_weights(self) -> bool:
        """Whether training starts from ``checkpoint_path`` rather than from random weights."""
        if self.model.pre_trained is None:
            return self.model.checkpoint_path is not None
        return self.model.pre_trained

    def replace(self, **options: Any) -> Config:
        """Return a copy in which somebody has set some options, validated like any other input.

        A given ``lr_init`` is used as it is: it ends what a recipe says of other batch sizes.

        Raises: ConfigError for an unknown name, a wrong type, or an impossible combination.
        """
        if "lr_init" in options and "lr_by_global_batch" not in options:
            options["lr_by_global_batch"] = ()
        changed = self.derive(**options)
        changed._given = self._given | options.keys()
        if self._origin is not None:
            given = self._origin.given | options.keys()
            changed._origin = dataclasses.replace(self._origin, given=given)
        return changed

    def derive(self, **options: Any) -> Config:
        """Return a copy in which some options follow from others, or from facts: nobody's own.

        Raises: ConfigError as :meth:`replace`.
        """
        nested = self.model_dump()
        for option, value in options.items():
            nested[section_of(option)][option] = value
        changed = _validated(nested, "")
        changed._origin, changed._given = self._origin, self._given
        return changed

    def to_toml(self) -> str:
        """Return the whole configuration as TOML; options that are unset are left out."""
        lines: list[str] = []
        for section, values in self.model_dump(mode="json").items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_toml(v)}" for key, v in values.items() if v is not None]
            lines.append("")
        return "\n".join(lines)


def _toml(value: object) -> str:
    # JSON's numbers, booleans, flat arrays and strings are valid TOML, but for a raw DEL; what else
    # is not to be seen, a terminal might obey. Bytes that are no UTF-8 have no other spelling.
    text = json.dumps(value, ensure_ascii=False)
    seen = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else f"\\U{ord(c):08x}" for c in text)
    return text if text.isprintable() else "".join(seen)


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
        raise ConfigError(
            f"Unknown option '{option}'.{hint_for(option) or nearest(option, FIELDS)}"
        )
    return FIELDS[option][0]


def differences_on_resume(saved: Config, asked: Config) -> list[str]:
    """Return a line per option that differs and may not differ when a run is continued."""
    lines = []
    for option, (_, field) in FIELDS.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("free_on_resume"):
            continue
        before, after = saved.value(option), asked.value(option)
        if before != after:
            lines.append(f"{option}: the run has {before}, asked for {after}")
    return lines


def _validated(nested: Mapping[str, Any], origin: str) -> Config:
    for section, options in nested.items():
        for option, value in options.items() if isinstance(options, Mapping) else ():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                prefix = f"{origin}: [{section}] " if origin else ""
                raise ConfigError(f"{prefix}Option '{option}' should be a number of 64 bits.")
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(*_explain(error, origin)) from None


def _explain(error: ValidationError, origin: str) -> list[str]:
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
                hint = hint_for(name) or nearest(name, FIELDS)
                lines.append(f"Unknown option '{name}'.{hint}")
            continue
        message = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = message.partition(", unable to ")[0]  # as the command line says it
        message = message[0].lower() + message[1:]
        if len(path) > 1:
            line = f"Option '{name}' {message} (got {shown(finding['input'])})."
        else:
            line = f"Options do not fit together: {message}."
        if line not in lines:
            lines.append(line)
    prefix = f"{origin}: " if origin else ""
    return [prefix + line for line in lines]


_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){50}""")


def parse_toml(text: str, recipe: str) -> dict[str, Any]:
    """Parse TOML from outside, bounded. Raises: ConfigError naming where it is from."""
    try:
        if _LONG_KEY.search(text):  # for each of which tomllib takes the square of its length
            raise ValueError("a key of it has more than 50 parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of its syntax, its numbers, or how deep it is
        raise ConfigError(f"{recipe} is not valid TOML: {error}") from None


def load_config(recipe: str, **options: Any) -> Config:
    """Read a recipe by name, or a ``.toml`` file, and apply options on top.

    Args:
      recipe: name of a shipped recipe, or a path ending in ``.toml``.
      **options: any option of any section, by its plain name; image_size for height and width.
    Returns: the validated configuration; see :func:`with_options`.
    Raises: ConfigError naming what is unknown, of the wrong type, or impossible.
    """
    base = _validated(parse_toml(read_recipe_text(recipe), recipe), recipe)
    if not recipe.endswith(".toml"):
        base._origin = Origin(recipe, base.model_copy())
    config, notes = with_options(base, options)
    for note in notes:
        warn(note)
    return config


def with_options(base: Config, options: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """Apply options that somebody gave on top of a recipe's, which give way to them.

    A warm-up that nobody gave and that does not fit a shorter run is shortened with the run. What
    a recipe knows of its own images says nothing of others: their number, their classes, where the
    evaluation images are. ``image_size`` stands for height and width.

    Returns: the configuration, and in words what was changed beside.
    Raises: ConfigError as :meth:`Config.replace`.
    """
    given = dict(options)
    if "image_size" in given:
        side = given.pop("image_size")
        given = {"image_height": side, "image_width": side, **given}
    if not given:
        return base, ()
    shortened = _shortened_warmup(base, given)
    notes = [
        f"{option} {getattr(base.schedule, option):g} of the recipe becomes {value:g}, in "
        f"proportion to the shorter run. Give --{option} for another."
        for option, value in shortened.items()
    ]
    foreign: dict[str, None] = {}
    origin, place = base.origin, given.get("data_path")
    if origin is not None and place not in (None, origin.base.data.data_path):
        foreign = {option: None for option in OF_THE_IMAGES if option not in given}
        is_told = "val_data_path" in foreign and given.get("suite") is None  # which needs none
        if base.data.val_data_path is not None and is_told:
            notes.append(
                f"val_data_path {base.data.val_data_path} of recipe {origin.recipe} goes with its "
                f"own training images; evaluation images are looked for in data_path. Give "
                f"--val_data_path for others."
            )
    changed = base.derive(**foreign, **shortened) if foreign or shortened else base
    return changed.replace(**given), tuple(notes)


OF_THE_IMAGES = ("val_data_path", "num_train_images", "num_val_images", "num_classes")
"""Options of a recipe that hold for the images it was made for, and no others."""


def _shortened_warmup(base: Config, given: Mapping[str, Any]) -> dict[str, float]:
    """Return the warm-up that fits a run whose length was given, where the recipe's does not."""
    before = base.schedule
    if {"warmup_epochs", "warmup_steps"} & given.keys():
        return {}
    epochs, steps = given.get("epoch_size", before.epoch_size), given.get("total_steps")
    if not isinstance(epochs, int) or not isinstance(steps, int | None) or epochs < 1:
        return {}  # a mistake, which validation names
    share = epochs / before.epoch_size
    if before.warmup_steps is None:
        fits = steps is not None or before.warmup_epochs < epochs
        return {} if fits else {"warmup_epochs": round(before.warmup_epochs * share, 4)}
    images, batch = base.data.num_train_images, base.data.global_batch
    if steps is None and before.total_steps is None and images and batch:
        steps = epochs * (images // batch)
    if steps is None or before.warmup_steps < steps:
        return {}
    if given.get("total_steps") is not None:
        share = (
            steps / before.total_steps if before.total_steps else 0.1 * steps / before.warmup_steps
        )
    return {"warmup_steps": int(before.warmup_steps * share)}
