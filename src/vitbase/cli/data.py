"""The commands `vitbase data check`, `vitbase data pack` and `vitbase data doubts`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, TypedDict

from vitbase.cli.arguments import parse_places, run_action, take_switch
from vitbase.cli.doubts import run_doubts
from vitbase.cli.help import option
from vitbase.cli.naming import without_option
from vitbase.config.options import Reading
from vitbase.console import counting, printable, say, say_json

_USAGE = """usage: vitbase data check PATH [--val_data_path PATH] [--json]
       vitbase data pack PATH OUT [--short_side N | --raw N] [--leave_out FILE.csv]
       vitbase data doubts PREDICTIONS --out FOLDER [--train PREDICTIONS] [--data_path PATH]

PATH is whatever --data_path takes in training: class folders, ImageNet as it is, tar shards or
their URL, IDX, CIFAR, Parquet or Arrow, FILE.csv, hf:owner/name. PREDICTIONS is a
file of `vitbase eval --save_predictions`. `vitbase data ACTION --help` lists the options;
docs/data.md and docs/evaluation.md tell the whole."""

_CHECK = """Read every image of a data set once, and say what training would stumble over or learn
wrongly from: the layout, classes and their order, copies, damaged and odd images. The images that
a run would hold out for evaluation are checked as such. --json prints the report as JSON.

Exit code 0: nothing makes training wrong; 1: something does (marked ERROR); 2: it cannot be opened.
"""

_PACK = """Write images as tar shards in the folder OUT (WebDataset layout, an index, and a manifest
with checksums), and `vitbase train --data_path OUT` reads them. Files are copied as they are, and
images larger than --short_side become smaller JPEGs. --raw 256 writes pixels instead, their shorter
side no longer than 256: more bytes, told beforehand, nothing to decode in training. Interrupted,
the same command continues."""


_ValDataPath = Annotated[str, option("evaluation images, where they are not in PATH")]
_Layout = Annotated[Reading, option("what a folder in doubt holds", "auto")]
_NumWorkers = Annotated[int, option("threads", "one per core")]


class _CheckOptions(TypedDict, total=False):
    val_data_path: _ValDataPath
    layout: _Layout
    holdout_fraction: Annotated[float, option("held out where there are none to evaluate", 0.1)]
    seed: Annotated[int, option("of the run: it says which are held out", 0)]
    num_workers: _NumWorkers


class _PackOptions(TypedDict, total=False):
    split: Annotated[Literal["train", "val", "both"], option("what to pack", "both")]
    val_data_path: _ValDataPath
    layout: _Layout
    short_side: Annotated[int, option("pixels that the shorter side may keep", "all")]
    quality: Annotated[int, option("of JPEGs made smaller, 1 to 100", 92)]
    raw: Annotated[int, option("write decoded pixels, their shorter side no longer than this")]
    shard_megabytes: Annotated[int, option("size at which a shard ends", "256; 1024 of pixels")]
    shuffle: Annotated[bool, option("mix, for programs that read front to back", False)]
    max_bad_images: Annotated[int, option("unreadable images left out, each named", 10)]
    leave_out: Annotated[str, option("FILE.csv of images not to pack: columns id and split")]
    num_workers: _NumWorkers


def run_data(words: list[str]) -> None:
    """Run `vitbase data ACTION [...]`. Exits with 1 if the check finds that training is wrong."""
    run_action(words, {"check": _check, "pack": _pack, "doubts": run_doubts}, _USAGE)


def _check(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    (place,), options = parse_places("data", "check PATH", 1, words, _CheckOptions, _CHECK)
    from vitbase.curation.checking.check import check_data
    from vitbase.curation.checking.table import show_report

    with without_option("data_path"), counting() as progress:
        report = check_data(place, **options, progress=progress)
    if as_json:
        say_json(report.to_dict())
    else:
        show_report(report)
    if report.wrong:
        sys.exit(1)


def _pack(words: list[str]) -> None:
    (place, out), options = parse_places("data", "pack PATH OUT", 2, words, _PackOptions, _PACK)
    from vitbase.curation.packing.pack import pack_data

    with without_option("data_path"), counting() as progress:
        reports = pack_data(place, out, **options, progress=progress, tell=say)
    for report in reports:
        for line in report.lines():
            say(printable(line))
