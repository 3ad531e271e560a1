"""The command `vitbase data doubts`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from vitbase.cli.arguments import parse_places, take_switch
from vitbase.cli.help import option
from vitbase.config.options import Reading
from vitbase.console import counting, printable, say, say_json
from vitbase.errors import ConfigError

_DOUBTS = """Find what is wrong in a data set by what a model says of its held-out images: labels
that are likely wrong and, with features, near-duplicates and images far from all others. The folder
gets a table of each, leave_out.csv for `vitbase data pack --leave_out`, and with --data_path
contact sheets. --json prints what was found as a JSON object."""


class DoubtsOptions(TypedDict, total=False):
    out: Annotated[str, option("the folder that is written; new or empty")]
    train: Annotated[str, option("predictions of training images: near-duplicates across")]
    data_path: Annotated[str, option("the images, for contact sheets")]
    val_data_path: Annotated[str, option("evaluation images, where they are not in data_path")]
    layout: Annotated[Reading, option("what a folder in doubt holds", "auto")]
    find: Annotated[
        tuple[Literal["labels", "duplicates", "outliers"], ...],
        option("what to look for; none: all that the files allow"),
    ]
    similarity: Annotated[float, option("cosine of near-duplicates; none: by the features")]
    limit: Annotated[int, option("images that are listed of each kind", 10)]


def run_doubts(words: list[str]) -> None:
    """Run `vitbase data doubts PREDICTIONS [...]`."""
    words, as_json = take_switch(words, "--json")
    (place,), options = parse_places(
        "data", "doubts PREDICTIONS --out FOLDER", 1, words, DoubtsOptions, _DOUBTS
    )
    out, limit = options.get("out"), options.get("limit", 10)
    if out is None:
        raise ConfigError("Give --out FOLDER, where the tables are written.")
    if limit < 0:
        raise ConfigError("Option 'limit' should be at least 0.")
    data_path = options.get("data_path")
    if data_path is None and options.keys() & {"val_data_path", "layout"}:
        raise ConfigError("Give --data_path, too.")
    from vitbase.curation.doubting.doubt import find_doubts
    from vitbase.curation.doubting.images import find_images, open_splits
    from vitbase.curation.doubting.write import (
        doubt_lines,
        doubts_to_dict,
        write_doubts,
    )
    from vitbase.disk import as_path
    from vitbase.evaluation.predictions import read_predictions
    from vitbase.files import refuse_full

    refuse_full(as_path(out))
    predictions = read_predictions(place)
    train_place = options.get("train")
    train = None if train_place is None else read_predictions(train_place)
    found = {}
    if data_path is not None:  # a mistake shows before the long work
        sources = open_splits(
            data_path, options.get("val_data_path"), options.get("layout", "auto")
        )
        found["predictions"] = find_images(predictions, sources, "val", place)
        if train is not None and train_place is not None:
            found["train"] = find_images(train, sources, "train", train_place)
    with counting() as progress:
        doubts = find_doubts(
            predictions,
            train,
            kinds=options.get("find"),
            similarity=options.get("similarity"),
            progress=lambda done, images: progress("neighbours", done, images),
        )
    files = write_doubts(doubts, as_path(out), found)
    if as_json:
        splits = {file: place.split for file, place in found.items()}
        say_json(doubts_to_dict(doubts, limit, splits) | {"out": out, "files": files})
        return
    for line in doubt_lines(doubts, limit):
        say(printable(line))
    if not found:
        say("no contact sheets: they need --data_path")
    say(printable(f"written to {out}: {', '.join(files)}"))
