"""`vitbase weights show` and `weights convert`."""

from __future__ import annotations

from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import image_size_of, parse_places, run_action, take_switch
from vitbase.console import say, say_json
from vitbase.errors import ConfigError, VitbaseError

_USAGE = """usage: vitbase weights show FILE [--tensors] [--json]
       vitbase weights convert IN OUT --dialect NAME

FILE is whatever --checkpoint_path takes: a run, a checkpoint, a weights file of any origin, or
hf-hub:owner/name. `vitbase weights show --help` and `vitbase weights convert --help` list the
options; docs/weights.md tells the whole."""


class _WeightsOptions(TypedDict, total=False):
    num_heads: Annotated[
        int | None, tyro.conf.arg(help="attention heads, where the file does not tell")
    ]
    image_height: Annotated[
        int | None, tyro.conf.arg(help="pixels trained on, where no square and not told")
    ]
    image_width: Annotated[int | None, tyro.conf.arg(help="likewise")]
    ignore: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="tensors to leave out, by name or pattern, such as 'aux_head.*'"),
    ]
    prefix: Annotated[
        str, tyro.conf.arg(help="of several networks, what the names of the wanted one begin with")
    ]


class _ConvertOptions(_WeightsOptions, total=False):
    dialect: Annotated[str, tyro.conf.arg(help="whose names and layout to write")]
    allow: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="what may be computed otherwise there: gelu, resnet_form, norm_eps"),
    ]


def run_weights(words: list[str]) -> None:
    run_action(words, {"show": _show_weights, "convert": _convert_weights}, _USAGE)


def _show_weights(words: list[str]) -> None:
    words, with_tensors = take_switch(words, "--tensors")
    words, as_json = take_switch(words, "--json")
    places, options = parse_places("weights", "show FILE", 1, words, _WeightsOptions)
    from vitbase.weights.show import show_weights

    size = image_size_of(options.pop("image_height", None), options.pop("image_width", None))
    shown = show_weights(places[0], image_size=size, **options)
    if as_json:
        say_json(shown.to_dict())
    else:
        for line in shown.lines():
            say(line)
        if with_tensors or shown.error is not None:
            say("")
            for line in shown.tensor_lines():
                say(line)
    if shown.error is not None:
        raise VitbaseError(shown.error)


def _convert_weights(words: list[str]) -> None:
    (source, path), options = parse_places("weights", "convert IN OUT", 2, words, _ConvertOptions)
    if "dialect" not in options:
        from vitbase.weights.origins.registry import DIALECT_NAMES

        raise ConfigError(f"Give --dialect, one of {', '.join(DIALECT_NAMES)}.")
    from vitbase.weights.convert import TOLERANCE, convert_weights

    size = image_size_of(options.pop("image_height", None), options.pop("image_width", None))
    done = convert_weights(source, path, image_size=size, **options)
    for line in done.loaded.report.lines():
        say(line)
    say(f"Written to {done.path} ({done.dialect}): {done.tensors} tensors")
    for field, before, after in done.changed:
        say(f"Note: {done.dialect} computes with {field} {after}, the original with {before}.")
    say(
        f"Opened again: outputs on 4 random images differ by at most {done.difference:.2g}"
        + (" (equal bit for bit)." if done.difference == 0 else f" (bound: {TOLERANCE:g}).")
    )
    for note in done.notes:
        say(note)
