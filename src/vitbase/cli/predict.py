"""`vitbase predict`."""

from __future__ import annotations

from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size, take_switch
from vitbase.cli.help import ImageSize, option
from vitbase.config.config import Config
from vitbase.console import printable, say, say_json, warn
from vitbase.errors import ConfigError, VitbaseError


class _PredictOptions(TypedDict, total=False):
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("image files, or folders of them", metavar="IMAGE..."),
    ]
    checkpoint_path: Annotated[str, option("a run folder, a checkpoint, or a weights file")]
    num_heads: Annotated[int, option("where the weights do not tell")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    top: Annotated[int, option("classes for each image", 5)]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_predict(words: list[str]) -> None:
    words, as_json = take_switch(words, "--json")
    words, recursive = take_switch(words, "--recursive")
    options = parse_options(
        _PredictOptions,
        words,
        "vitbase predict",
        "The classes a model sees in images. --json prints a JSON object a line; --recursive takes "
        "the images in folders inside folders, too.",
        switches=("json", "recursive"),
    )
    images, weights = options.get("images"), options.get("checkpoint_path")
    if not images or not weights:
        raise ConfigError(
            "Usage: vitbase predict IMAGE... --checkpoint_path PATH [--recursive] [--json]"
        )
    top: int = options.get("top", 5)
    if top < 1:
        raise ConfigError("Option 'top' should be at least 1.")
    image_size = take_image_size(options)
    device = Config().replace(device_target=options.get("device_target", "auto")).run.device_target
    from vitbase.evaluation.calibration import read_temperature
    from vitbase.shipping.predict import predict_each
    from vitbase.sources.named import expand
    from vitbase.weights.load import load_model

    images = expand(images, recursive=recursive, tell=lambda line: warn(printable(line)))
    loaded = load_model(weights, num_heads=options.get("num_heads"), image_size=image_size)
    temperature = read_temperature(loaded.path)
    if not as_json:
        say(f"Weights: {loaded.path}")
        if temperature is not None:
            say(f"Probabilities are at the temperature {temperature:.3f} that is kept beside them.")
    failed = 0
    shares = predict_each(
        images, loaded, top=top, device_target=device, temperature=temperature or 1.0
    )
    for found in shares:
        failed += found.error is not None
        if as_json:
            say_json(found.to_dict())
        else:
            for line in found.lines():
                say(printable(line))
    if failed:
        raise VitbaseError(f"{failed} of {len(images)} images could not be read.")
