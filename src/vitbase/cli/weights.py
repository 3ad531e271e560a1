"""`vitbase weights show` and `weights convert`."""

from __future__ import annotations

from typing import Annotated, TypedDict

from vitbase.cli.arguments import parse_places, run_action, take_image_size, take_switch
from vitbase.cli.commands import loading
from vitbase.cli.help import ImageSize, option
from vitbase.cli.naming import without_option
from vitbase.console import say, say_json
from vitbase.errors import ConfigError, VitbaseError

_USAGE = """usage: vitbase weights show FILE [--tensors] [--json]
       vitbase weights convert IN OUT --dialect NAME

FILE is whatever --checkpoint_path takes: a run, a checkpoint, a weights file of any origin, or
hf-hub:owner/name. `vitbase weights show --help` and `vitbase weights convert --help` list the
options; docs/weights.md tells the whole."""


class _WeightsOptions(TypedDict, total=False):
    num_heads: Annotated[int, option("attention heads, where the file does not tell")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels trained on, where no square and not told")]
    image_width: Annotated[int, option("likewise")]
    ignore: Annotated[
        tuple[str, ...],
        option("tensors to leave out, by name or pattern, such as 'aux_head.*'"),
    ]
    prefix: Annotated[
        str, option("of several networks, what the names of the wanted one begin with")
    ]


class _ConvertOptions(_WeightsOptions, total=False):
    dialect: Annotated[str, option("whose names and layout to write")]
    allow: Annotated[
        tuple[str, ...],
        option("what may be computed otherwise there: gelu, resnet_form, norm_eps"),
    ]


def run_weights(words: list[str]) -> None:
    run_action(words, {"show": _show_weights, "convert": _convert_weights}, _USAGE)


def _show_weights(words: list[str]) -> None:
    words, with_tensors = take_switch(words, "--tensors")
    words, as_json = take_switch(words, "--json")
    places, options = parse_places("weights", "show FILE", 1, words, _WeightsOptions)
    with loading():
        from vitbase.weights.show import show_weights

    size = take_image_size(options)
    with without_option("checkpoint_path"):
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

    size = take_image_size(options)
    with without_option("checkpoint_path"):
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
