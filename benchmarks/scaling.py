"""Several ranks on one machine, accumulation, the average of the weights, sharded memory.

    python benchmarks/scaling.py                       # all tables; about 25 minutes on 2 cores
    python benchmarks/scaling.py --parts ranks --models ViT-Ti_16 --rounds 5

`ranks`: two single-thread processes (DDP over gloo, gradients exchanged while the backward pass
goes on) against one process with two threads, on the same two cores at the same global batch.
Both start anew in every round and take turns; the ratio is the median over rounds.

`steps`: in one process, the same images in turns: one forward pass against several accumulated
ones (per update of a batch, the peer is as many updates of the small batch); with the moving
average of the weights against without.

`memory`: bytes of weights, gradients and optimizer state on a rank, and the most memory its process
had, for DDP against FSDP2.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from vitbase.model.zoo import build_model, variant_spec
from vitbase.options import OptimizerSection
from vitbase.runtime import opened_runtime
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.losses import cross_entropy_sum
from vitbase.training.optim import build_optimizer
from vitbase.training.parallel import Replicas
from vitbase.training.sharded import local_parts

BATCHES = {"ViT-Ti_16": 32, "ViT-B_16": 16}


class Bench:
    """A model that takes updates on made images, as the training loop does."""

    def __init__(self, model: str, optimizer: str, parallel: str, runtime: Any) -> None:
        torch.manual_seed(0)
        spec = variant_spec(model, num_classes=1000)
        self.runtime = runtime
        self.model = build_model(spec).train()
        self.replicas = Replicas(self.model, runtime, parallel)  # type: ignore[arg-type]
        options = OptimizerSection(optimizer=optimizer, lr_init=1e-4)  # type: ignore[arg-type]
        self.optimizer = build_optimizer(self.model, options, runtime)

    def update(self, batch_size: int, passes: int, average: Any = None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        images = torch.rand(batch_size, 3, 224, 224)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        total = batch_size * passes * self.runtime.num_ranks
        for turn in range(passes):
            with self.replicas.accumulating(last=turn == passes - 1):
                loss = cross_entropy_sum(self.replicas(images, None), labels)
                (loss * (self.replicas.loss_factor / total)).backward()
        self.optimizer.step()
        if average is not None:
            average.update(1)


def work(task: dict[str, Any]) -> None:
    """Do one process's part of a measurement, and print what it found as JSON."""
    torch.set_num_threads(task["threads"])
    with opened_runtime("CPU") as runtime:
        bench = Bench(task["model"], task.get("optimizer", "momentum"), task["parallel"], runtime)
        bench.update(task["batch_size"], 1)  # allocates what later ones use again
        seconds = []
        for _ in range(task["updates"]):
            runtime.gather(None)  # begin together
            before = time.perf_counter()
            bench.update(task["batch_size"], 1)
            seconds.append(time.perf_counter() - before)
        state = [
            tensor
            for parameter in bench.model.parameters()
            for tensor in (
                parameter.detach(),
                parameter.grad,
                *(v for v in bench.optimizer.state[parameter].values() if torch.is_tensor(v)),
            )
            if tensor is not None
        ]
        held = sum(part.numel() * part.element_size() for part in local_parts(state))
        if runtime.is_first:
            print(json.dumps({"seconds": min(seconds), "state": held, "peak": _peak_bytes()}))


def _peak_bytes() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run_ranks(num_ranks: int, task: dict[str, Any]) -> dict[str, Any]:
    """Start processes for a task, wait for them, and return what the first one printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(num_ranks):
        variables = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
        if num_ranks > 1:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        words = [sys.executable, __file__, "--work", json.dumps(task)]
        processes.append(subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed")
    found: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return found


def compare_ranks(models: list[str], rounds: int, updates: int) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        batch = BATCHES.get(model, 16)
        ratios, speeds = [], []
        for _ in range(rounds):
            common = {"model": model, "parallel": "ddp", "updates": updates}
            one = run_ranks(1, {**common, "threads": 2, "batch_size": batch})
            two = run_ranks(2, {**common, "threads": 1, "batch_size": batch // 2})
            ratios.append(one["seconds"] / two["seconds"])
            speeds.append((batch / two["seconds"], batch / one["seconds"]))
        ours, peer = (statistics.median(side) for side in zip(*speeds, strict=True))
        name = f"{model}, batch {batch}, 2 processes"
        rows.append(_row(name, ours, "images/s", "1 process, 2 threads", peer, ratios))
    return rows


def compare_steps(model: str, rounds: int) -> list[dict[str, Any]]:
    """Within one process, so that the machine's moods are shared."""
    with opened_runtime("CPU") as runtime:
        bench = Bench(model, "adamw", "ddp", runtime)
        average = ExponentialMovingAverage(bench.model, decay=0.9999)

        def several_updates() -> None:
            for _ in range(4):
                bench.update(8, 1)

        cases: list[tuple[str, str, Callable[[], None], Callable[[], None]]] = [
            (
                "one update of 4 accumulated passes of 8",
                "4 updates of 8",
                lambda: bench.update(8, 4),
                several_updates,
            ),
            (
                "one update of 4 accumulated passes of 8",
                "one pass of 32",
                lambda: bench.update(8, 4),
                lambda: bench.update(32, 1),
            ),
            (
                "update of 32 with the average",
                "without",
                lambda: bench.update(32, 1, average),
                lambda: bench.update(32, 1),
            ),
        ]
        rows = []
        for name, peer, ours, theirs in cases:
            ours(), theirs()
            times: list[tuple[float, float]] = []
            for _ in range(rounds):
                pair = []
                for work_of in (ours, theirs):
                    before = time.perf_counter()
                    work_of()
                    pair.append(time.perf_counter() - before)
                times.append((pair[0], pair[1]))
            ratios = [mine / other for mine, other in times]
            mine, other = (statistics.median(side) for side in zip(*times, strict=True))
            rows.append(_row(f"{model}, {name}", mine, "s", peer, other, ratios))
    return rows


def compare_memory(model: str) -> list[dict[str, Any]]:
    rows = []
    for optimizer in ("momentum", "adamw"):
        task = {
            "model": model,
            "optimizer": optimizer,
            "threads": 1,
            "batch_size": 1,
            "updates": 1,
        }
        shards = run_ranks(2, {**task, "parallel": "fsdp"})
        copies = run_ranks(2, {**task, "parallel": "ddp"})
        for kind, what in (("state", "weights, gradients, state"), ("peak", "most of the process")):
            ours, peer = (side[kind] / 2**20 for side in (shards, copies))
            name = f"{model}, {optimizer}, FSDP2 on 2 ranks, {what}"
            rows.append(_row(name, ours, "MiB", "DDP", peer, [ours / peer]))
    return rows


def _row(
    name: str, value: float, unit: str, peer: str, peer_value: float, ratios: list[float]
) -> dict[str, Any]:
    row = {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": statistics.median(ratios),
    }
    spread = f" ({min(ratios):.3f} to {max(ratios):.3f})" if len(ratios) > 1 else ""
    print(
        f"| {name} | {value:.4g} {unit} | {peer} | {peer_value:.4g} | "
        f"**{row['ratio']:.3f}**{spread} |",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", default=["ranks", "steps", "memory"])
    parser.add_argument("--models", nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--updates", type=int, default=3, help="timed in each process; the best counts"
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(json.loads(asked.work))
        return
    print("| what | measured | peer | peer measured | ratio (rounds) |\n|---|---|---|---|---|")
    rows = []
    if "ranks" in asked.parts:
        rows += compare_ranks(asked.models, asked.rounds, asked.updates)
    if "steps" in asked.parts:
        rows += compare_steps("ViT-Ti_16", 2 * asked.rounds + 1)
    if "memory" in asked.parts:
        rows += compare_memory("ViT-L_16")
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
