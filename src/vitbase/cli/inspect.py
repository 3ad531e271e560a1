"""`vitbase inspect`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.help import ImageSize, option
from vitbase.config.config import Config
from vitbase.console import counting, printable, say, say_json, warn
from vitbase.errors import ConfigError, UnreadableImagesError
from vitbase.inspection.kinds import Asked

_USAGE = "vitbase inspect CHECKPOINT [IMAGE...] --out FOLDER"
_INSPECT = """What a model looks at, as PNG, SVG and arrays: filters and positions of the weights;
attention by head, its distance and rollout, features, lengths of tokens, Grad-CAM and integrated
gradients over images. CHECKPOINT is a run folder, a checkpoint, or a weights file of any origin.
--json prints what was written as a JSON object; --recursive takes the images in folders inside
folders, too."""


class InspectOptions(TypedDict, total=False):
    places: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option(
            "the weights, then image files, or folders of them", metavar="CHECKPOINT [IMAGE...]"
        ),
    ]
    out: Annotated[str, option("the folder that is written; new or empty")]
    figures: Annotated[
        tuple[Asked, ...],
        option("which to make; none: all but gradients, which take minutes"),
    ]
    layer: Annotated[int, option("block of attention and norms, from 1; none: the last")]
    head: Annotated[int, option("whose attention is drawn, from 1; none: all")]
    target: Annotated[
        str, option("class that Grad-CAM and gradients explain: name or number; none: predicted")
    ]
    limit: Annotated[int, option("images that are looked at", 16)]
    theme: Annotated[Literal["light", "dark"], option("of the figures", "light")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    num_heads: Annotated[int, option("where the weights do not tell")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_inspect(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    words, recursive = take_switch(words, "--recursive")
    options = parse_options(
        InspectOptions,
        words,
        "vitbase inspect",
        _INSPECT,
        switches=("json", "recursive"),
    )
    places, out = options.pop("places", ()), options.pop("out", None)
    if not places or not out:
        raise ConfigError(f"Usage: {_USAGE} [--figures NAME ...] [--json]")
    weights, *images = places
    image_size = take_image_size(options)
    device = options.pop("device_target", "auto")
    device = Config().replace(device_target=device).run.device_target
    from vitbase.disk import as_path
    from vitbase.files import refuse_full
    from vitbase.inspection.look import inspect

    refuse_full(as_path(out))
    with counting() as progress:
        found = inspect(
            weights,
            images,
            **options,
            image_size=image_size,
            recursive=recursive,
            device_target=device,
            tell=lambda line: warn(printable(line)),
            progress=progress,
        )
    files = found.save(out)
    for path, error in found.unreadable:
        warn(printable(f"{path}: {error}"))
    if as_json:
        say_json({**found.to_dict(), "out": out, "files": files})
    else:
        say(printable(f"Weights: {found.weights}"))
        for line in found.lines():
            say(printable(line))
        say(printable(f"written to {out}: {len(files)} files, listed in inspect.json"))
    if found.unreadable:
        count = len(found.unreadable) + len(found.images)
        raise UnreadableImagesError(f"{len(found.unreadable)} of {count} images could not be read.")
