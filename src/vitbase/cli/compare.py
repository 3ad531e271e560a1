"""`vitbase eval compare`."""

from __future__ import annotations

from typing import Annotated, TypedDict

from vitbase.cli.arguments import parse_places, take_switch
from vitbase.cli.help import option
from vitbase.console import printable, say, say_json
from vitbase.disk import as_path
from vitbase.errors import ConfigError, DataError

_COMPARE = """Compare what two models predict for the same images: accuracies with intervals,
McNemar's test, the interval of the difference, classes that differ, images that changed sides. A
and B are files of `vitbase eval --save_predictions`. --json prints it as a JSON object."""


class CompareOptions(TypedDict, total=False):
    limit: Annotated[int, option("images, and classes, that are listed of each kind", 10)]
    out: Annotated[str, option("FILE.csv that gets every image that changed sides")]
    seed: Annotated[int, option("of the bootstrap", 0)]


def run_compare(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    places, options = parse_places("eval", "compare A B", 2, words, CompareOptions, _COMPARE)
    limit, seed = options.get("limit", 10), options.get("seed", 0)
    out = as_path(options["out"]) if "out" in options else None
    for name, number in (("limit", limit), ("seed", seed)):
        if number < 0:
            raise ConfigError(f"Option '{name}' should be at least 0.")
    if out is not None and out.suffix.lower() != ".csv":
        raise ConfigError(f"--out {out}: call the file .csv.")
    from vitbase.evaluation.compare import compare
    from vitbase.evaluation.predictions import read_predictions
    from vitbase.files import write_whole

    found = compare(*map(read_predictions, places), seed=seed)
    if out is not None:
        try:
            write_whole(out, found.to_csv())
        except OSError as error:
            raise DataError(f"Cannot write {out}: {error.strerror or error}") from None
    if as_json:
        say_json(found.to_dict(limit))
        return
    for letter, place in zip("AB", places, strict=True):
        say(printable(f"{letter}: {place}"))
    for line in found.lines(limit):
        say(printable(line))
    if out is not None:
        say(printable(f"images that changed sides are in {out}"))
