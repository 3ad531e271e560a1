"""`vitbase bench`."""

from __future__ import annotations

from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.help import ImageSize, option
from vitbase.config.config import Config
from vitbase.console import counting, printable, say, say_json, warn
from vitbase.errors import ConfigError

_USAGE = "vitbase bench CHECKPOINT [--batch 1 16] [--OPTION VALUE ...]"
_BENCH = """How fast a model runs here, by every way that is installed: torch as it is and compiled,
ONNX Runtime, OpenVINO, bf16, int8; each in a process of its own, in turns, and compared with torch.
What is fastest in full precision is kept, for `--runtime auto`. --json prints a JSON object."""


class BenchOptions(TypedDict, total=False):
    places: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("a run folder, a checkpoint, or a weights file", metavar="CHECKPOINT"),
    ]
    ways: Annotated[tuple[str, ...], option("to measure; none: all that are possible here")]
    batch: Annotated[tuple[int, ...], option("sizes of batches", (1, 16))]
    rounds: Annotated[int, option("in which every way has its turn", 5)]
    seconds: Annotated[float, option("of a turn", 0.5)]
    val_data_path: Annotated[
        str, option("real images to compare answers on; none: the run's evaluation images")
    ]
    max_images: Annotated[int, option("of these, at most", 128)]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    num_heads: Annotated[int, option("where the weights do not tell")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_bench(words: list[str]) -> None:
    """Run `vitbase bench CHECKPOINT`."""
    words, as_json = take_switch(words, "--json")
    options = parse_options(BenchOptions, words, "vitbase bench", _BENCH, switches=("json",))
    places = options.pop("places", ())
    if len(places) != 1:
        raise ConfigError(f"Usage: {_USAGE}")
    image_size = take_image_size(options)
    device = options.pop("device_target", "auto")
    device = Config().replace(device_target=device).run.device_target
    from vitbase.shipping.running.bench import bench

    with counting("turns") as progress:
        found = bench(
            *places,
            **options,
            image_size=image_size,
            device_target=device,
            tell=lambda line: warn(printable(line)),
            progress=progress,
        )
    if as_json:
        say_json(found.to_dict())
        return
    for line in found.lines():
        say(printable(line))
