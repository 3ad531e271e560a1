"""How long a command takes to answer, beside the import of torch and of timm.

    python benchmarks/start.py --rounds 7 --json results/start.json

Each is a process of its own, in turns; wall time and the CPU's, medians. `a first step` is the time
from the start of `vitbase train fashion` to the line that tells of its first update.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOALS = {
    "vitbase": 0.25,
    "vitbase --help": 0.25,
    "vitbase recipes": 0.25,
    "vitbase explain imagenet": 3.0,
    "vitbase weights show": 2.5,
    "a first step": 4.0,
}
PEER = "import torch"


def run(words: list[str], until: str | None = None) -> tuple[float, float]:
    """Return seconds of wall and of CPU, to a process's end, or to a line that holds a text."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    )
    assert process.stdout is not None
    took = None
    for line in process.stdout:
        if until is not None and until in line:
            took = time.perf_counter() - started
            process.kill()
            break
    process.stdout.close()
    code = process.wait()
    if until is None:
        took = time.perf_counter() - started
        assert code == 0, f"{words} ended with {code}"
    assert took is not None, f"{words} never told of '{until}'"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, spent


def contenders(folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    import vitbase

    weights = folder / "weights.safetensors"
    vitbase.save_weights(vitbase.create_model("ViT-Ti_16"), weights)
    python = [sys.executable, "-c"]
    # As its console script, which lies beside the interpreter.
    command = [sys.executable, "-c", "from vitbase.__main__ import main; main()"]
    count = iter(range(10**6))

    def first_step() -> tuple[float, float]:
        place = str(folder / f"run-{next(count)}")
        words = [*command, "train", "fashion", "--output_dir", place, "--log_every_steps", "1"]
        return run(words, until="  step ")

    return {
        PEER: lambda: run([*python, "import torch"]),
        "import timm": lambda: run([*python, "import timm"]),
        "vitbase": lambda: run(command),
        "vitbase --help": lambda: run([*command, "--help"]),
        "vitbase recipes": lambda: run([*command, "recipes"]),
        "vitbase explain imagenet": lambda: run([*command, "explain", "imagenet"]),
        "vitbase weights show": lambda: run([*command, "weights", "show", str(weights)]),
        "a first step": first_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sides = contenders(Path(temporary))
        for number in range(args.rounds + 1):
            for name, measure in sides.items():
                measured = measure()
                if number:  # the first round fills the page cache
                    found.setdefault(name, []).append(measured)
    rows: list[dict[str, Any]] = []
    print("| | s (rounds) | CPU, s | of `import torch` | goal, s |\n|---|---|---|---|---|")
    peers = [wall for wall, _ in found[PEER]]
    for name, pairs in found.items():
        walls = [wall for wall, _ in pairs]
        wall, cpu = statistics.median(walls), statistics.median(spent for _, spent in pairs)
        ratio = statistics.median(w / p for w, p in zip(walls, peers, strict=True))
        goal = GOALS.get(name)
        print(
            f"| {name} | {wall:.2f} ({min(walls):.2f} to {max(walls):.2f}) | {cpu:.2f} | "
            f"{ratio:.2f} | {'' if goal is None else f'{goal:g}'} |"
        )
        rows.append(
            {
                "name": f"start/{name}",
                "value": round(wall, 2),
                "unit": "s",
                "peer": PEER,
                "peer_value": round(statistics.median(peers), 2),
                "ratio": round(ratio, 3),
            }
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
