"""`vitbase probe`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.help import ImageSize, option
from vitbase.config.options import Reading
from vitbase.console import printable, say, say_json, warn
from vitbase.disk import as_path
from vitbase.errors import ConfigError, DataError

_PROBE = """How good the features of weights are for your images, before anything is trained:
accuracies of a vote of the nearest images, of a linear classifier, and of linear classifiers of a
few images of each class, with 95% intervals. Nothing learns by steps: a probe takes little longer
than the features, which are kept for the next one and for `vitbase train linear_probe`. --json
prints a JSON object."""


class ProbeOptions(TypedDict, total=False):
    weights: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("run folders, checkpoints, or weights files, with a head or without"),
    ]
    data_path: Annotated[str, option("the images: a folder for each class, or as in training")]
    val_data_path: Annotated[
        str, option("evaluation images; none: those in data_path, else held out as in training")
    ]
    layout: Annotated[Reading, option("what a folder in doubt holds", "auto")]
    holdout_fraction: Annotated[float, option("share held out without val_data_path", 0.1)]
    max_images: Annotated[int, option("of training, and of evaluation, at most; none: all")]
    max_bad_images: Annotated[int, option("unreadable training images tolerated", 10)]
    shots: Annotated[
        tuple[int, ...], option("images of each class, of few-shot accuracies; none: 5 10")
    ]
    draws: Annotated[int, option("of few-shot images", 5)]
    neighbours: Annotated[int, option("that vote; none: 20")]
    image_size: ImageSize
    num_heads: Annotated[int, option("where weights do not tell")]
    batch_size: Annotated[int, option("images of a forward pass", 64)]
    num_workers: Annotated[int, option("decoding threads; none: one per core")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]
    precision: Annotated[str, option("auto, fp32, bf16 or fp16", "auto")]
    seed: Annotated[int, option("of the held-out images, and of draws", 0)]
    out: Annotated[str, option("FILE.csv or FILE.json that gets the numbers; none: not kept")]


def run_probe(words: list[str]) -> None:
    """Run `vitbase probe WEIGHTS... --data_path PATH`."""
    words, as_json = take_switch(words, "--json")
    options = parse_options(ProbeOptions, words, "vitbase probe", _PROBE, switches=("json",))
    weights = options.pop("weights", ())
    if not weights or "data_path" not in options:
        raise ConfigError("Usage: vitbase probe WEIGHTS... --data_path PATH [--OPTION VALUE ...]")
    out = _check_out(options.pop("out", None))
    image_size = take_image_size(options)
    from vitbase.files import json_line, write_whole
    from vitbase.inspection.probing.probe import Plan
    from vitbase.inspection.probing.probe import run_probe as probe_all

    plan = Plan.of(**options, image_size=image_size)
    found = probe_all(weights, plan, lambda line: warn(printable(line)))
    if out is not None:
        is_table = out.suffix.lower() == ".csv"
        try:
            write_whole(out, found.to_csv() if is_table else json_line(found.to_dict(), indent=1))
        except OSError as error:
            raise DataError(f"Cannot write {out}: {error.strerror or error}.") from None
    if as_json:
        say_json(found.to_dict())
        return
    for line in found.lines():
        say(line)
    if out is not None:
        say(printable(f"The numbers are in {out}"))


def _check_out(given: str | None) -> Path | None:
    """Return where the numbers go. Raises: ConfigError, before the long work, if they cannot."""
    if given is None:
        return None
    out = as_path(given)
    if out.suffix.lower() not in {".csv", ".json"}:
        raise ConfigError(f"--out {out}: call the file .csv or .json.")
    if not os.path.isdir(out.absolute().parent) or os.path.isdir(out):
        raise ConfigError(f"--out {out} is no place for a file.")
    return out
