"""A way to run a model in a process of its own, which answers what another one asks, in JSON.

So that no way has another one's threads, compiled code or memory, and one that crashes takes
nothing with it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vitbase.errors import ExportError, VitbaseError
from vitbase.files import parse_json

Say = Callable[[dict[str, Any]], dict[str, Any]]


class Worker:
    """A process that runs a model by one way.

    Args:
      way: its name.
      opening: `checkpoint` and options of `load_model`, and `device_target`.
    """

    def __init__(self, way: str, opening: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, way, opening), daemon=True)
        self._process.start()
        there.close()

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Let it do something, and return what it says then. Raises: ExportError if it fails."""
        try:
            self._here.send_bytes(json.dumps({"do": what, **more}).encode())
            said: dict[str, Any] = parse_json(self._here.recv_bytes())
        except (EOFError, OSError):
            self._process.join(10)
            raise ExportError(f"its process has ended: {_how(self._process.exitcode)}") from None
        if "failed" in said:
            raise ExportError(*said["failed"])
        return said

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._here.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(connection: Connection, way: str, opening: dict[str, Any]) -> None:
    """Do what is asked, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks was interrupted, too, and closes
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())  # compilers and runtimes talk, whoever listens
    state = _State(way, opening)
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked = parse_json(connection.recv_bytes())
            try:
                said = getattr(state, asked.pop("do"))(**asked)
            except VitbaseError as error:
                said = {"failed": [str(line) for line in error.args]}
            except Exception as error:
                said = {"failed": [f"{type(error).__name__}: {error}"[:500]]}
            connection.send_bytes(json.dumps(said).encode())


class _State:
    """What a process has opened so far."""

    def __init__(self, way: str, opening: dict[str, Any]) -> None:
        self._way = way
        self._opening = opening
        self._network: Any = None
        self._pixels: dict[int, Any] = {}

    def prepare(self) -> dict[str, Any]:
        """Make, and keep, what the way runs."""
        from vitbase.shipping.running.ways import WAYS

        loaded, _ = self._load()
        way = WAYS[self._way]
        assert way.prepare is not None
        started = time.perf_counter()
        way.prepare(loaded)
        return {"seconds": time.perf_counter() - started}

    def open(self, batches: list[int]) -> dict[str, Any]:
        """Open the way, and let it compute each size of batch once."""
        from vitbase.shipping.exporting.proof import random_pixels
        from vitbase.shipping.running.ways import WAYS

        started = time.perf_counter()
        loaded, runtime = self._load()
        self._network = WAYS[self._way].network(loaded, runtime)
        for batch in sorted(batches):
            self._pixels[batch] = random_pixels(loaded.preprocess, batch)
            self._network(self._pixels[batch])
        return {"seconds": time.perf_counter() - started}

    def check(self, images: str, logits: str) -> dict[str, Any]:
        """Compute the logits of all images in a file, and write them into another one."""
        import torch

        from vitbase.weights.files.safetensors import read_safetensors, write_safetensors

        pixels = read_safetensors(Path(images)).tensors["pixels"].read()
        size = max(self._pixels)
        found = torch.cat([self._network(part) for part in pixels.split(size)])
        write_safetensors(Path(logits), {"logits": found}, {})
        return {}

    def time(self, batch: int, seconds: float) -> dict[str, Any]:
        """Compute one batch after the other for some time, at least one."""
        pixels, spent = self._pixels[batch], list[float]()
        end = time.perf_counter() + seconds
        while not spent or time.perf_counter() < end:
            started = time.perf_counter()
            self._network(pixels)
            spent.append(time.perf_counter() - started)
        return {"seconds": spent}

    def memory(self) -> dict[str, Any]:
        """Tell the most bytes that the process had so far, and its tensors on the device."""
        _, runtime = self._load(model=False)
        return {"bytes": _peak_bytes(), "on_device": runtime.peak_memory()}

    def _load(self, *, model: bool = True) -> Any:
        from vitbase.runtime import local_runtime
        from vitbase.weights.load import load_model

        options = dict(self._opening)
        runtime = local_runtime(options.pop("device_target"), precision="fp32")
        size = options.pop("image_size")
        checkpoint = options.pop("checkpoint")
        if not model:
            return None, runtime
        size = None if size is None else tuple(size)
        return load_model(checkpoint, **options, image_size=size), runtime


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        # Not what getrusage has: that begins with what the process had that started this one.
        told = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if told:
            return 1024 * int(told[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
