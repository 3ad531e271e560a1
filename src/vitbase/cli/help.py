"""The options of a run as `--help` lists them: those that most people turn, then the others."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import tyro

from vitbase.cli.values import Kind, as_typed
from vitbase.config.config import FIELDS, Config
from vitbase.console import printable

_IN_TRAINING = (
    *("data_path", "val_data_path", "model", "checkpoint_path", "output_dir"),
    *("image_size", "epoch_size", "batch_size", "lr_init", "class_weights"),
    *("patience", "num_devices", "precision", "seed"),
)
_IN_EVALUATION = (
    *("checkpoint_path", "val_data_path", "data_path", "image_size", "eval_batch_size"),
    *("protocol", "test_time_augmentation", "suite", "map"),
    *("num_workers", "device_target", "num_devices", "precision"),
)
EVALUATION = "evaluation"
"""The section that training has no use for."""


def option(help_text: str, default: object = None, metavar: str | None = None) -> Any:
    """Describe an option, whose default is applied by whoever gets it.

    What follows "none:" at the end of its words is what applies where the default is empty.
    """
    shown = as_typed(default)
    if not shown:
        help_text, _, shown = help_text.partition("none: ")
        help_text = help_text.rstrip("; ")
    hint = f"(default: {printable(shown)})" if shown else ""
    return tyro.conf.arg(help=help_text, help_behavior_hint=hint, metavar=metavar)


_BOTH_SIDES = "height and width of the input, in pixels"
ImageSize = Annotated[int, option(_BOTH_SIDES)]
"""An option of the command line alone: it stands for two."""


def options_type(command: str, base: Config, others: Any = None) -> Any:
    """Build the command line's type: a section is a TypedDict, so only given options are set.

    An option stands in one section: its own, or the first one.

    Args:
      others: a section of options that are none of a run.
    """
    first = _IN_EVALUATION if command == "eval" else _IN_TRAINING
    shown = {name: _shown(name, base) for name in FIELDS} | {"image_size": _image_size(base)}
    sections: dict[str, dict[str, Any]] = {"most used": {name: shown[name] for name in first}}
    for name, (section, _) in FIELDS.items():
        if name not in first and section != EVALUATION:
            sections.setdefault(section, {})[name] = shown[name]
    types: dict[str, Any] = {} if others is None else {others.__name__.strip("_").lower(): others}
    for section, options in sections.items():
        types[section] = TypedDict(section, options, total=False)  # type: ignore[operator]
        if section in Config.model_fields:
            types[section].__doc__ = type(getattr(base, section)).__doc__
    return TypedDict("options", types)  # type: ignore[operator]


def _image_size(base: Config) -> Any:
    size = base.data.image_size
    square = size is not None and size[0] == size[1]
    return Annotated[int, option(_BOTH_SIDES, size[0] if size and square else None)]


def _shown(name: str, base: Config) -> Any:
    """Annotate an option with what `--help` says of it."""
    section, field = FIELDS[name]
    metavar = Kind.of(field.annotation).metavar(name)
    words = field.description or ""
    if section == "model" and field.default is None and "none: " not in words:
        words += "; none: the variant's"
    return Annotated[field.annotation, option(words, base.value(name), metavar)]
