"""`vitbase predict`."""

from __future__ import annotations

from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import TYRO, image_size_of, refuse_unknown, take_switch, write_sizes_out
from vitbase.config.config import Config
from vitbase.console import printable, say, say_json, warn
from vitbase.errors import ConfigError, VitbaseError


class _PredictOptions(TypedDict):
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help="image files, or folders of them", metavar="IMAGE..."),
    ]
    checkpoint_path: Annotated[
        str, tyro.conf.arg(help="a run folder, a checkpoint, or a weights file")
    ]
    num_heads: Annotated[int | None, tyro.conf.arg(help="where the weights do not tell")]
    image_height: Annotated[int | None, tyro.conf.arg(help="pixels; none: as the weights")]
    image_width: Annotated[int | None, tyro.conf.arg(help="pixels; none: as the weights")]
    top: Annotated[int, tyro.conf.arg(help="classes for each image")]
    device_target: Annotated[str, tyro.conf.arg(help="Ascend, GPU, CPU or auto")]


def run_predict(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    words = write_sizes_out(words)
    words, recursive = take_switch(words, "--recursive")
    refuse_unknown(words, (*_PredictOptions.__annotations__, "help"))
    options: _PredictOptions = tyro.cli(
        _PredictOptions,
        prog="vitbase predict",
        description="The classes a model sees in images. --json prints a JSON object a line; "
        "--recursive takes the images in folders inside folders, too.",
        args=words,
        default=_PredictOptions(
            images=(),
            checkpoint_path="",
            num_heads=None,
            image_height=None,
            image_width=None,
            top=5,
            device_target="auto",
        ),
        config=TYRO,
        use_underscores=True,
    )
    if not options["images"] or not options["checkpoint_path"]:
        raise ConfigError(
            "Usage: vitbase predict IMAGE... --checkpoint_path PATH [--recursive] [--json]"
        )
    if options["top"] < 1:
        raise ConfigError("Option 'top' should be at least 1.")
    image_size = image_size_of(options["image_height"], options["image_width"])
    device_target = Config().replace(device_target=options["device_target"]).run.device_target
    from vitbase.shipping.predict import expand, predict_each
    from vitbase.weights.load import load_model

    images = expand(options["images"], recursive=recursive, tell=lambda line: warn(printable(line)))
    weights, num_heads = options["checkpoint_path"], options["num_heads"]
    loaded = load_model(weights, num_heads=num_heads, image_size=image_size)
    if not as_json:
        say(f"Weights: {loaded.path}")
    failed = 0
    for found in predict_each(images, loaded, top=options["top"], device_target=device_target):
        failed += found.error is not None
        if as_json:
            say_json(found.to_dict())
        else:
            for line in found.lines():
                say(printable(line))
    if failed:
        raise VitbaseError(f"{failed} of {len(images)} images could not be read.")
