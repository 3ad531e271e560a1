"""`vitbase serve`."""

from __future__ import annotations

import importlib.util
from typing import Annotated, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_image_size
from vitbase.cli.help import ImageSize, option
from vitbase.config.config import Config
from vitbase.console import printable, say, warn
from vitbase.errors import ConfigError

_USAGE = "vitbase serve CHECKPOINT|NAME=CHECKPOINT... [--port 8000] [--OPTION VALUE ...]"
_SERVE = """Models over HTTP: POST an image to /predict. CHECKPOINT is a run folder, a checkpoint,
weights, or a file of `vitbase export`; several are called by the names of their files, or NAME.
SIGTERM ends it, once what it took is answered. docs/serve.md tells the whole."""
_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


class ServeOptions(TypedDict, total=False):
    places: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("run folders, checkpoints, weights or exported files", metavar="CHECKPOINT..."),
    ]
    host: Annotated[str, option("address to listen on", "127.0.0.1")]
    port: Annotated[int, option("to listen on; 0: any", 8000)]
    token_file: Annotated[
        str, option("what requests have to know; or VITBASE_TOKEN; none: anyone may ask")
    ]
    top: Annotated[int, option("classes of an answer", 5)]
    batch_size: Annotated[int, option("images that are computed together, at most", 16)]
    max_wait: Annotated[float, option("seconds to wait for images that are on their way", 0.01)]
    queue_size: Annotated[int, option("images that may wait; none: as batch_size")]
    deadline: Annotated[float, option("seconds to answer a request in", 30)]
    read_timeout: Annotated[float, option("seconds for a request to arrive in", 20)]
    max_bytes: Annotated[int, option("of an image file", 16 << 20)]
    max_pixels: Annotated[int, option("of an image", 50_000_000)]
    num_workers: Annotated[int, option("decoding threads", "one per core")]
    runtime: Annotated[
        str, option("what computes; auto: the fastest that `vitbase bench` has found", "auto")
    ]
    num_heads: Annotated[int, option("where the weights do not tell")]
    image_size: ImageSize
    image_height: Annotated[int, option("pixels; none: as the weights")]
    image_width: Annotated[int, option("pixels; none: as the weights")]
    device_target: Annotated[str, option("Ascend, GPU, CPU or auto", "auto")]


def run_serve(words: list[str]) -> None:
    """Run `vitbase serve CHECKPOINT...`."""
    options = parse_options(ServeOptions, words, "vitbase serve", _SERVE)
    words = [*options.pop("places", ())]
    if not words:
        raise ConfigError(f"Usage: {_USAGE}")
    image_size = take_image_size(options)
    device = options.pop("device_target", "auto")
    device = Config().replace(device_target=device).run.device_target
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"vitbase serve needs {', '.join(absent)}: pip install 'vitbase[serve]'")
    opening = {name: options.pop(name) for name in ("runtime", "num_heads") if name in options}
    listening = {name: options.pop(name) for name in ("host", "port") if name in options}
    token_file = options.pop("token_file", None)
    from vitbase.data.threads import count_workers
    from vitbase.evaluation.classifier import Classifier
    from vitbase.shipping.opened import open_classifier
    from vitbase.shipping.serving.limits import Limits, read_token
    from vitbase.shipping.serving.models import name_places
    from vitbase.shipping.serving.server import LOOPBACK, serve

    limits = Limits(**options)
    count_workers(limits.num_workers)
    token = read_token(token_file)
    if token is None and listening.get("host", LOOPBACK) not in {LOOPBACK, "localhost", "::1"}:
        warn("Whoever reaches this address may ask: there is no --token_file.")

    def open_one(place: str) -> Classifier:
        return open_classifier(
            place,
            **opening,
            device_target=device,
            image_size=image_size,
            batch_size=limits.batch_size,
        )

    serve(
        name_places(words),
        open_one,
        limits,
        **listening,
        token=token,
        tell=lambda line: say(printable(line)),
        warn=lambda line: warn(printable(line)),
    )
