"""`vitbase serve` under load, beside LitServe with the same model and what the network does alone.

    LITSERVE_PYTHON=/path/to/python python benchmarks/serve.py --model ViT-S_16 --seconds 60

One machine holds the service and its clients, so these are cheap: one process, plain sockets,
requests made beforehand. Both servers get the same JSON, a JPEG of 110 KB in base64, from 16
clients that each send the next request when they have the answer. LitServe (litserve_app.py) runs
the same network, the same decoding and batches of the same size, with a worker of all cores, or one
for each core (its best counts); it has an environment of its own, LITSERVE_PYTHON, in which vitbase
can be imported, too.

`offline` is `Classifier.classify` on the same files, as `vitbase predict` calls it, before, between
and after the servers; the ratio is to its median. A batch's time is what the service says of it
(/metrics). Overloaded means that requests come at three times the rate at which they were answered,
whether or not earlier ones have an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

CORES = len(os.sched_getaffinity(0))


class Load:
    """What clients have seen."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.spent = 0.0

    def add(self, status: str, seconds: float) -> None:
        self.statuses[status] += 1
        if status == "200":
            self.seconds.append(seconds)

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.spent

    def percentile(self, part: float) -> float:
        return statistics.quantiles(self.seconds, n=1000)[round(1000 * part) - 1]


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, load: Load) -> None:
        started = time.perf_counter()
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self.reader is not None
            self.writer.write(request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await self.reader.readexactly(int(length[1]) if length else 0)
            load.add(head.split(b" ", 2)[1].decode(), time.perf_counter() - started)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.writer = None
            load.add(type(error).__name__, 0.0)


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Let each of some clients send its next request when it has an answer."""
    load, started = Load(), time.perf_counter()

    async def ask_on(number: int) -> None:
        client = Client(port)
        while time.perf_counter() < started + seconds:
            await client.ask(requests[number % len(requests)], load)
            number += clients

    await asyncio.gather(*map(ask_on, range(clients)))
    load.spent = time.perf_counter() - started
    return load


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Send requests at a rate, whatever becomes of them."""
    load, started = Load(), time.perf_counter()
    free, tasks = list[Client](), set[asyncio.Task[None]]()

    async def one(number: int) -> None:
        client = free.pop() if free else Client(port)
        await client.ask(requests[number % len(requests)], load)
        free.append(client)

    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        task = asyncio.create_task(one(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.spent = time.perf_counter() - started
    return load


def offline(args: argparse.Namespace, weights: Path, folder: Path, seconds: float) -> float:
    """Return images per second of the classifier by itself."""
    words = [sys.executable, __file__, "--offline", str(weights), "--folder", str(folder)]
    words += ["--seconds", str(seconds), "--runtime", args.runtime]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def run_offline(args: argparse.Namespace) -> None:
    from vitbase.shipping.opened import open_classifier
    from vitbase.sources.named import open_named

    classifier = open_classifier(args.offline, runtime=args.runtime, device_target="CPU")
    source = open_named([args.folder], recursive=True)
    classifier.classify_bytes([source.read(0)] * 32)  # type: ignore[list-item]
    images, started = 0, time.perf_counter()
    while time.perf_counter() < started + args.seconds:
        images += sum(1 for _ in classifier.classify(source, batch_size=32))
    print(images / (time.perf_counter() - started))


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process and all that it has started."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from listening import family_of

    pages = 0
    for each in family_of(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(words: list[str], port: int, request: bytes) -> Iterator[int]:
    """Run a server until it answers a first request; gives its process."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(words, stdout=silent, stderr=silent, start_new_session=True)
    try:
        for _ in range(600):
            load = Load()
            asyncio.run(Client(port).ask(request, load))
            if load.statuses["200"]:
                break
            time.sleep(0.2)
        else:
            raise SystemExit(f"no answer of {words}")
        yield process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # LitServe's workers may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measured(
    port: int, pid: int, requests: Sequence[bytes], args: argparse.Namespace
) -> tuple[Load, int, int]:
    """Warm up, then measure; return the load, and memory before and after."""
    asyncio.run(closed_loop(port, requests, args.clients, 5))
    before = memory_of(pid)
    load = asyncio.run(closed_loop(port, requests, args.clients, args.seconds))
    return load, before, memory_of(pid)


def batch_seconds(port: int) -> tuple[float, float]:
    """Return the sum of the seconds of batches so far, and their number."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found = [
        re.search(rf"^vitbase_batch_seconds_{name}{{.*}} (\S+)$", text, re.MULTILINE)
        for name in ("sum", "count")
    ]
    total, count = (float(match[1]) if match else 0.0 for match in found)
    return total, count


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def show(name: str, load: Load, before: int, after: int, rate: float) -> None:
    failed = sum(load.statuses.values()) - load.statuses["200"]
    print(
        f"| {name} | {load.rate:.2f} | **{load.rate / rate:.3f}** | {load.percentile(0.5):.2f} s "
        f"| {load.percentile(0.99):.2f} s | {len(load.seconds):,} | {failed} "
        f"| {before / 1e6:,.0f} to {after / 1e6:,.0f} MB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-S_16")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16, help="of both servers: the default")
    parser.add_argument("--overload_seconds", type=float, default=30)
    parser.add_argument("--offline_seconds", type=float, default=15)
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--litserve_workers", type=int, nargs="*", default=[1, CORES])
    parser.add_argument("--kilobytes", type=int, default=110, help="of an image")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    for name in ("--offline", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.offline:
        run_offline(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare(args, Path(temporary))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    from evaluation import make_weights
    from photos import make_corpus

    weights, images = folder / "model.safetensors", folder / "images"
    make_weights(args.model, weights)
    make_corpus(images, args.kilobytes, 64)
    requests = {
        "serve": [request_of(path, "/predict?top=5") for path in sorted(images.rglob("*.JPEG"))],
        "litserve": [request_of(path, "/predict") for path in sorted(images.rglob("*.JPEG"))],
    }
    rates = [offline(args, weights, images, args.offline_seconds)]
    print(f"offline: {rates[0]:.2f} images/s\n", flush=True)
    port = free_port()
    words = [sys.executable, "-m", "vitbase", "serve", str(weights), "--port", str(port)]
    words += ["--batch_size", str(args.batch_size), "--runtime", args.runtime]
    words += ["--device_target", "CPU"]
    with running(words, port, requests["serve"][0]) as pid:
        asyncio.run(closed_loop(port, requests["serve"], args.clients, 3))
        first = batch_seconds(port)
        found, before, after = measured(port, pid, requests["serve"], args)
        last = batch_seconds(port)
        batch = (last[0] - first[0]) / (last[1] - first[1])
        over = asyncio.run(
            open_loop(port, requests["serve"], 3 * found.rate, args.overload_seconds)
        )
        after_overload = memory_of(pid)
    rates.append(offline(args, weights, images, args.offline_seconds))
    ratio = found.percentile(0.99) / batch
    worse = over.percentile(0.99) / found.percentile(0.99)
    print(
        f"A batch takes {batch:.3f} s; p99 is {ratio:.2f} of that.\n"
        f"Overloaded, {3 * found.rate:.1f} requests/s: {dict(over.statuses)}; answered "
        f"{over.rate:.2f} images/s, p99 {over.percentile(0.99):.2f} s, **{worse:.2f}** of the p99 "
        f"before; memory {after_overload / 1e6:,.0f} MB\n",
        flush=True,
    )
    peers = {}
    python = os.environ.get("LITSERVE_PYTHON")
    for workers in args.litserve_workers if python else []:
        port = free_port()
        words = [str(python), str(HERE / "litserve_app.py"), str(weights), str(port)]
        words += [str(workers), str(args.batch_size), args.runtime]
        with running(words, port, requests["litserve"][0]) as pid:
            peers[workers] = measured(port, pid, requests["litserve"], args)
        rates.append(offline(args, weights, images, args.offline_seconds))
    rate = statistics.median(rates)
    print(f"offline: {', '.join(f'{each:.2f}' for each in rates)} images/s; median {rate:.2f}\n")
    print("| | images/s | of offline | p50 | p99 | answered | failed | memory |")
    print("|---|---|---|---|---|---|---|---|")
    show("vitbase serve", found, before, after, rate)
    for workers, peer in peers.items():
        show(f"LitServe, {workers} worker{'s' * (workers > 1)}", *peer, rate)
    best = max((peer[0].rate for peer in peers.values()), default=float("nan"))
    row = {"name": "serve", "unit": "images/s", "value": found.rate}
    return [
        {**row, "peer": "LitServe", "peer_value": best, "ratio": found.rate / best},
        {**row, "peer": "offline", "peer_value": rate, "ratio": found.rate / rate},
        {
            "name": "serve/p99",
            "unit": "s",
            "value": found.percentile(0.99),
            "peer": "a batch",
            "peer_value": batch,
            "ratio": ratio,
        },
    ]


def request_of(path: Path, place: str) -> bytes:
    body = json.dumps({"image": base64.b64encode(path.read_bytes()).decode()}).encode()
    head = f"POST {place} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    main()
