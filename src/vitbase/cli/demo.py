"""`vitbase demo`."""

from __future__ import annotations

from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size
from vitbase.cli.help import ImageSize, option
from vitbase.cli.naming import without_option
from vitbase.config.config import Config
from vitbase.console import printable, say
from vitbase.errors import ConfigError

_DEMO = """A page on which a model is tried: drop an image, and see its most probable classes, and
where the model looks, by layer and head. Examples are images of the run's evaluation. It listens on
this machine alone, unless --host says otherwise; Ctrl-C ends it."""


class DemoOptions(TypedDict, total=False):
    checkpoint: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("a run folder, a checkpoint, or a weights file", metavar="CHECKPOINT"),
    ]
    port: Annotated[int, option("to listen on; 0: any that is free", 7860)]
    host: Annotated[str, option("address of this machine to listen on", "127.0.0.1")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    num_heads: Annotated[int, option("where the weights do not tell")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_demo(words: list[str]) -> None:
    """Run `vitbase demo CHECKPOINT`."""
    options = parse_options(DemoOptions, words, "vitbase demo", _DEMO)
    places = options.pop("checkpoint", ())
    if len(places) != 1:
        raise ConfigError("Usage: vitbase demo CHECKPOINT [--port PORT]")
    image_size = take_image_size(options)
    device = Config().replace(device_target=options.pop("device_target", "auto")).run.device_target
    from vitbase.shipping.showing.serving import show

    with without_option("checkpoint_path"):
        show(
            places[0],
            **options,
            image_size=image_size,
            device_target=device,
            tell=lambda line: say(printable(line)),
        )
    say("The demo has ended.")
