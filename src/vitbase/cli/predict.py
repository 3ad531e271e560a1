"""`vitbase predict`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.commands import loading
from vitbase.cli.help import ImageSize, option
from vitbase.cli.naming import without_option
from vitbase.config.config import Config
from vitbase.config.options import Reading
from vitbase.console import counting, printable, say, say_json, warn
from vitbase.errors import ConfigError, DataError, UnreadableImagesError

_USAGE = "vitbase predict IMAGE... --checkpoint_path PATH [--out FILE] [--sort_into FOLDER]"
_PREDICT = """The classes a model sees in images. IMAGE is a file, a folder (the images directly in
it; --recursive: in folders inside, too), a pattern in quotes, '-' for the standard input, or a data
set as training opens it: a folder of shards, IDX, CIFAR or Parquet files, a table of paths,
hf:owner/name, a URL. --json prints JSON: a line for each image, or what was written. --link makes
links in --sort_into instead of copies. Exit code 3: done, but some images could not be read.
docs/predict.md tells the whole."""
_NAMED_UNREADABLE = 10


class PredictOptions(TypedDict, total=False):
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("files, folders, patterns, data sets, or -", metavar="IMAGE..."),
    ]
    list: Annotated[str, option("file with a path a line, or - for the standard input")]
    checkpoint_path: Annotated[str, option("a run folder, a checkpoint, or a weights file")]
    out: Annotated[str, option("file .csv, .jsonl or .parquet: a row for each image; none: shown")]
    sort_into: Annotated[str, option("folder in which every class gets a folder of its images")]
    unsure: Annotated[float, option("probability below which an image is of no class, but unsure")]
    top: Annotated[int, option("classes for each image", 5)]
    layout: Annotated[Reading, option("how a folder is read as a data set", "auto")]
    split: Annotated[Literal["train", "val"], option("of data sets; none: all that there are")]
    batch_size: Annotated[int, option("images that are computed together", 32)]
    num_workers: Annotated[int, option("decoding threads", "one per core")]
    runtime: Annotated[
        str, option("what computes; auto: the fastest that `vitbase bench` has found", "auto")
    ]
    num_heads: Annotated[int, option("where the weights do not tell")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_predict(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    words, recursive = take_switch(words, "--recursive")
    words, link = take_switch(words, "--link")
    options = parse_options(
        PredictOptions, words, "vitbase predict", _PREDICT, switches=("json", "recursive", "link")
    )
    listed, weights = options.get("list"), options.get("checkpoint_path")
    if not (options.get("images") or listed is not None) or not weights:
        raise ConfigError(f"Usage: {_USAGE}")
    if link and "sort_into" not in options:
        raise ConfigError("--link is of --sort_into FOLDER.")
    image_size = take_image_size(options)
    device = Config().replace(device_target=options.get("device_target", "auto")).run.device_target
    top, unsure = options.get("top", 5), options.get("unsure")
    with loading():
        from vitbase.data.threads import count_workers
        from vitbase.disk import as_path
        from vitbase.shipping.keeping import Keeping
        from vitbase.shipping.opened import open_classifier
        from vitbase.shipping.outputs import check_out
        from vitbase.shipping.predict import check_numbers

    batch_size, workers = options.get("batch_size", 32), options.get("num_workers")
    check_numbers(top=top, unsure=unsure, batch_size=batch_size)
    count_workers(workers)
    out = as_path(options["out"]) if "out" in options else None
    if out is not None:
        check_out(out)
    source = _open_images(options, recursive=recursive)
    classifier = open_classifier(
        weights,
        runtime=options.get("runtime", "auto"),
        device_target=device,
        num_heads=options.get("num_heads"),
        image_size=image_size,
        batch_size=batch_size,
    )
    keeping = Keeping(
        classifier,
        source,
        top=top,
        unsure=unsure,
        out=out,
        sort_into=as_path(options["sort_into"]) if "sort_into" in options else None,
        link=link,
    )
    shows = not keeping.keeps
    if not as_json:
        how = "" if classifier.runtime == "eager" else f" ({classifier.runtime})"
        say(printable(f"Weights: {classifier.path}{how}"))
        if classifier.temperature != 1:
            say(
                f"Probabilities are at the temperature {classifier.temperature:.3f} that is kept "
                "beside them."
            )
    with counting() as progress:
        watched = shows and sys.stdout is not None and sys.stdout.isatty()  # the rows tell as well
        for found in keeping.each(batch_size=batch_size, num_workers=workers):
            if not watched:
                progress("predicting", keeping.images, len(source))
            if not shows:
                if found.error is not None and keeping.unreadable <= _NAMED_UNREADABLE:
                    warn(printable(f"{found.image}: {found.error}"))
            elif as_json:
                say_json(found.to_dict())
            else:
                for line in found.lines():
                    say(printable(line))
    if not shows and as_json:
        say_json(keeping.to_dict())
    elif not shows:
        for line in keeping.lines():
            say(printable(line))
    if keeping.unreadable:
        raise UnreadableImagesError(
            f"{keeping.unreadable} of {len(source)} images could not be read."
        )


def _open_images(options: dict[str, Any], *, recursive: bool) -> Any:
    """Return the images that are named on the command line, in a list, or come from outside."""
    from vitbase.disk import LONGEST_IMAGE, as_path, read_regular
    from vitbase.sources.named import LONGEST_LIST, STANDARD_INPUT, open_named, parse_list

    def read_stdin(longest: int) -> bytes:
        if sys.stdin is None:
            raise DataError("The standard input is closed.")
        return sys.stdin.buffer.read(longest + 1)

    places, listed = [*options.get("images", ())], options.get("list")
    if listed == STANDARD_INPUT and STANDARD_INPUT in places:
        raise ConfigError("The standard input is an image or a list, not both.")
    if listed == STANDARD_INPUT:
        places += parse_list(read_stdin(LONGEST_LIST), "on the standard input")
    elif listed is not None:
        try:
            places += parse_list(read_regular(as_path(listed), LONGEST_LIST), listed)
        except OSError as error:
            raise DataError(f"Cannot read the list {listed}: {error.strerror or error}") from None
    if recursive and "sort_into" in options:
        inside = as_path(options["sort_into"]).resolve()
        around = [name for name in places if inside.is_relative_to(as_path(name).resolve())]
        if around:
            raise ConfigError(
                f"--sort_into {options['sort_into']} lies in {around[0]}, whose images --recursive "
                f"takes, another time those in there, too: give a folder outside."
            )
    with without_option("data_path"):
        return open_named(
            places,
            recursive=recursive,
            layout=options.get("layout", "auto"),
            split=options.get("split"),
            read_stdin=lambda: read_stdin(LONGEST_IMAGE),
            tell=lambda line: warn(printable(line)),
        )
