"""Several ranks on one machine, accumulation, the average of the weights, sharded memory.

    python benchmarks/scaling.py                       # all tables; about 25 minutes on 2 cores
    python benchmarks/scaling.py --parts ranks --models ViT-Ti_16 --rounds 25

`ranks`: two single-thread processes (DDP over gloo, gradients exchanged while the backward pass
goes on) against one process with two threads, on the same two cores at the same global batch. All
three are there all the time and take turns, one update each; the ratio is the median over rounds.

`steps`: in one process, the same images in turns: one forward pass against several accumulated
ones (per update of a batch, the peer is as many updates of the small batch). What the moving
average of the weights takes is timed within the updates that it belongs to.

`memory`: bytes of weights, gradients and optimizer state on a rank, and the most memory its process
had, for DDP against FSDP2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vitbase.config.batch import BatchLayout
from vitbase.config.config import load_config
from vitbase.data.loader import Batch
from vitbase.model.zoo import build_model
from vitbase.runtime import Runtime, joined_runtime
from vitbase.training.architecture import spec_of
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.objective import Objective
from vitbase.training.schedule import Schedule
from vitbase.training.sharded import local_parts
from vitbase.training.step import Learner

BATCHES = {"ViT-Ti_16": 32, "ViT-B_16": 16}


class Bench:
    """A model that takes the updates of training, on made images."""

    def __init__(self, model: str, optimizer: str, parallel: str, runtime: Runtime) -> None:
        torch.manual_seed(0)
        config = load_config(
            "imagenet", model=model, optimizer=optimizer, parallel=parallel, lr_init=1e-4
        )
        objective = Objective(config, np.zeros(1, np.int64), 1000, runtime.device)
        schedule = Schedule(1e-4, "constant", 0, 1_000_000)
        layout = BatchLayout(1, runtime.num_ranks, 1, 1)  # each update has its own
        network = build_model(spec_of(config)).to(runtime.device).train()
        self.learner = Learner(network, config, runtime, layout, schedule, objective)
        self.updates = 0

    def update(self, batch_size: int, passes: int) -> None:
        ranks = self.learner.runtime.num_ranks
        self.learner.layout = BatchLayout(batch_size * passes * ranks, ranks, passes, batch_size)
        batch = Batch(
            images=torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8),
            labels=torch.zeros(batch_size, dtype=torch.int64),
            positions=torch.arange(batch_size),
            readable=torch.ones(batch_size, dtype=torch.bool),
            step=0,
        )
        mix = self.learner.objective.draw_mix(0, self.updates)
        self.learner.step(self.updates, itertools.repeat(batch), mix)
        self.updates += 1


def work(task: dict[str, Any]) -> None:
    """Be one process of a group: an update for each line that comes in; then say what was held."""
    torch.set_num_threads(task["threads"])
    with joined_runtime("CPU", precision="fp32") as runtime:
        bench = Bench(task["model"], task.get("optimizer", "momentum"), task["parallel"], runtime)
        bench.update(task["batch_size"], 1)  # allocates what later ones use again
        for _ in sys.stdin:
            runtime.all_gather(None)  # begin together
            before = time.perf_counter()
            bench.update(task["batch_size"], 1)
            if runtime.is_first:
                print(time.perf_counter() - before, flush=True)
        kept = bench.learner.optimizer.state
        state = [
            tensor
            for parameter in bench.learner.model.parameters()
            for tensor in (
                parameter.detach(),
                parameter.grad,
                *(v for v in kept[parameter].values() if torch.is_tensor(v)),
            )
            if tensor is not None
        ]
        held = sum(part.numel() * part.element_size() for part in local_parts(state))
        if runtime.is_first:
            print(json.dumps({"state": held, "peak": _peak_bytes()}), flush=True)


def _peak_bytes() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Group:
    """Processes that work together, and wait without using a core when they are not asked."""

    def __init__(self, num_ranks: int, task: dict[str, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
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
            process = subprocess.Popen(
                words, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self.processes.append(process)

    def update(self) -> float:
        """Return the seconds of one update."""
        for process in self.processes:
            print(file=process.stdin, flush=True)
        first = self.processes[0].stdout
        assert first is not None
        return float(first.readline())

    def finish(self) -> dict[str, Any]:
        """End the processes; return what the first one held."""
        printed = [process.communicate()[0] for process in self.processes]
        if any(process.returncode for process in self.processes):
            raise SystemExit("a process failed")
        found: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
        return found


def compare_ranks(models: list[str], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        batch = BATCHES.get(model, 16)
        common = {"model": model, "parallel": "ddp"}
        one = Group(1, {**common, "threads": 2, "batch_size": batch})
        two = Group(2, {**common, "threads": 1, "batch_size": batch // 2})
        one.update(), two.update()
        times = [(one.update(), two.update()) for _ in range(rounds)]
        one.finish(), two.finish()
        ratios = [alone / shared for alone, shared in times]
        alone, shared = (statistics.median(side) for side in zip(*times, strict=True))
        name = f"{model}, batch {batch}, 2 processes"
        peer = "1 process, 2 threads"
        rows.append(_row(name, batch / shared, "images/s", peer, batch / alone, ratios))
    return rows


def compare_steps(model: str, rounds: int) -> list[dict[str, Any]]:
    """Within one process, so that the machine's moods are shared."""
    with joined_runtime("CPU", precision="fp32") as runtime:
        bench = Bench(model, "adamw", "ddp", runtime)
        average = ExponentialMovingAverage(bench.learner.model, decay=0.9999)

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
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            bench.update(32, 1)
            after = time.perf_counter()
            average.update(1)
            times.append((time.perf_counter() - before, after - before))
        ratios = [mine / other for mine, other in times]
        mine, other = (statistics.median(side) for side in zip(*times, strict=True))
        name = f"{model}, update of 32 with the average"
        rows.append(_row(name, mine, "s", "without", other, ratios))
    return rows


def compare_memory(model: str) -> list[dict[str, Any]]:
    rows = []
    for optimizer in ("momentum", "adamw"):
        task = {
            "model": model,
            "optimizer": optimizer,
            "threads": 1,
            "batch_size": 1,
        }
        held = {}
        for parallel in ("fsdp", "ddp"):
            group = Group(2, {**task, "parallel": parallel})
            group.update()
            held[parallel] = group.finish()
        for kind, what in (("state", "weights, gradients, state"), ("peak", "most of the process")):
            ours, peer = (held[side][kind] / 2**20 for side in ("fsdp", "ddp"))
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(json.loads(asked.work))
        return
    print("| what | measured | peer | peer measured | ratio (rounds) |\n|---|---|---|---|---|")
    rows = []
    if "ranks" in asked.parts:
        rows += compare_ranks(asked.models, asked.rounds)
    if "steps" in asked.parts:
        rows += compare_steps("ViT-Ti_16", asked.rounds)
    if "memory" in asked.parts:
        rows += compare_memory("ViT-L_16")
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
