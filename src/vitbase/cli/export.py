"""`vitbase export`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.help import ImageSize, option
from vitbase.console import counting, printable, say, say_json, warn
from vitbase.errors import ConfigError

_USAGE = "vitbase export CHECKPOINT OUT [--precision int8] [--OPTION VALUE ...]"
_EXPORT = """Write a model for another runtime, open it there, and compare it with the model on
random and on real images; a file that is worse than its bound is not written (exit code 2). OUT is
called .onnx, .xml (OpenVINO) or .pt2 (torch.export; --format aoti: a compiled program). --overwrite
replaces a file that is there; --json prints a JSON object. docs/export.md tells the whole."""


class ExportOptions(TypedDict, total=False):
    places: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("the weights, then the file that is written", metavar="CHECKPOINT OUT"),
    ]
    format: Annotated[
        Literal["onnx", "openvino", "torch_export", "aoti"], option("none: by OUT's name")
    ]
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        option("of the file; fp16 keeps norms and softmax in fp32", "fp32"),
    ]
    preprocessing: Annotated[
        Literal["outside", "inside"],
        option("inside: the graph takes pixels; outside: what is made of them", "outside"),
    ]
    calibration: Annotated[
        tuple[str, ...],
        option("images that fix the ranges of int8; none: each image sets its own"),
    ]
    val_data_path: Annotated[
        str, option("real images to compare on; none: the run's evaluation images")
    ]
    max_images: Annotated[int, option("of these, at most", 2000)]
    opset: Annotated[int, option("of ONNX", 20)]
    license: Annotated[str, option("of the weights, to stand in the file")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    num_heads: Annotated[int, option("where the weights do not tell")]


def run_export(words: list[str]) -> None:
    """Run `vitbase export CHECKPOINT OUT`."""
    words, as_json = take_switch(words, "--json")
    words, overwrite = take_switch(words, "--overwrite")
    options = parse_options(
        ExportOptions, words, "vitbase export", _EXPORT, switches=("json", "overwrite")
    )
    places = options.pop("places", ())
    if len(places) != 2:
        raise ConfigError(f"Usage: {_USAGE}")
    image_size = take_image_size(options)
    from vitbase.shipping.exporting.export import export

    with counting() as progress:
        made = export(
            *places,
            **options,
            image_size=image_size,
            overwrite=overwrite,
            tell=lambda line: warn(printable(line)),
            progress=progress,
        )
    if as_json:
        say_json(made.to_dict())
        return
    for line in made.lines():
        say(printable(line))
