"""Accuracy a minute: each rung a recipe and its settings, on the same images, seed for seed.

    python benchmarks/ladder.py /usr/share/datasets/fashion-mnist --held_out --seeds 3
    python benchmarks/ladder.py /usr/share/datasets/fashion-mnist --seeds 10 --json FILE

A run is the command `vitbase train`, started as a user would, and is timed from its start to its
exit: imports, decoding, checkpoints and the last evaluation are in it. Rungs take turns, seed by
seed, so that they share what else the machine does. With --held_out the test images are not
touched: settings are chosen on training images that were held out, 800 of each class. The last
column is of the same runs, evaluated once more by `vitbase eval` with the mirror images too.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t


@dataclasses.dataclass(frozen=True)
class Rung:
    """Settings, and the recipe that they change.

    Attributes:
      recipe: "fashion" has 1,000 training images of each class, "fashion_full" has all.
      options: of `vitbase train`, beside the recipe's own.
    """

    recipe: str
    options: dict[str, object] = dataclasses.field(default_factory=dict)


# What was tried and how it did is in README.md; here is what is worth to be run again.
_ADAMW = {"optimizer": "adamw", "lr_init": 0.002}
RUNGS = {
    "demo, AdamW, 24 epochs": Rung(
        "fashion", _ADAMW | {"epoch_size": 24, "warmup_epochs": 2.4, "eval_every_epochs": 24}
    ),
    "demo": Rung("fashion", {"eval_every_epochs": 1000}),
    "two minutes, AdamW, 4 epochs": Rung(
        "fashion_full", _ADAMW | {"epoch_size": 4, "warmup_epochs": 0.4, "eval_every_epochs": 4}
    ),
    "two minutes": Rung(
        "fashion_full", {"epoch_size": 3, "warmup_epochs": 0.3, "eval_every_epochs": 3}
    ),
    "five minutes, AdamW, 9 epochs": Rung(
        "fashion_full", _ADAMW | {"epoch_size": 9, "warmup_epochs": 0.9, "eval_every_epochs": 9}
    ),
    "five minutes": Rung("fashion_full", {"eval_every_epochs": 1000}),
}

_FILES = ("images-idx3", 16), ("labels-idx1", 8)  # kinds, and bytes of their headers
_HELD_OUT, _OF_DEMO = 800, 1000  # images of each class


@dataclasses.dataclass
class Result:
    """Of some runs of a rung: top-1 of each, with mirror images, and seconds of wall and CPU."""

    top1: list[float] = dataclasses.field(default_factory=list)
    mirrored: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def interval(values: list[float]) -> float:
    """Return half of the mean's 95% interval, by Student's t; NaN of a single value."""
    if len(values) < 2:
        return float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(student_t.ppf(0.975, len(values) - 1)) * error


def held_out_images(data_path: str, folder: Path, *, of_demo: bool) -> Path:
    """Write training images without the held out ones, and these as the test images.

    Held out are the last of each class; the demo's training images are the first.
    """
    kinds = {}
    for kind, header in _FILES:
        content = gzip.decompress(Path(data_path, f"train-{kind}-ubyte.gz").read_bytes())
        kinds[kind] = np.frombuffer(content, np.uint8, offset=header)
    labels = kinds["labels-idx1"]
    images = kinds["images-idx3"].reshape(len(labels), 28, 28)
    train = np.zeros(len(labels), bool)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        held_out[rows[-_HELD_OUT:]] = True
        train[rows[:_OF_DEMO] if of_demo else rows[:-_HELD_OUT]] = True
    folder.mkdir()
    for split, rows in (("train", train), ("t10k", held_out)):
        count = int(rows.sum()).to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        found = images[rows].tobytes(), labels[rows].tobytes()
        Path(folder, f"{split}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + count + side + side + found[0]
        )
        Path(folder, f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count + found[1])
    return folder


def run(rung: Rung, seed: int, options: dict[str, object], result: Result) -> None:
    """Train once; add what came out to a result."""
    with tempfile.TemporaryDirectory() as folder:
        options = rung.options | options | {"seed": seed, "output_dir": f"{folder}/run"}
        command = [sys.executable, "-m", "vitbase", "train", rung.recipe]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        call(
            command + [word for key, value in options.items() for word in (f"--{key}", f"{value}")]
        )
        result.wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        rows = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        evaluations = [row for row in map(json.loads, rows) if "eval_top1" in row]
        result.top1.append(evaluations[-1]["eval_top1"])
        command[3:] = ["eval", "--checkpoint_path", f"{folder}/run"]
        call([*command, "--test_time_augmentation", "flip", "--out", f"{folder}/mirrored"])
        mirrored = json.loads(Path(folder, "mirrored", "evaluation.json").read_text(encoding="utf-8"))
        result.mirrored.append(mirrored["figures"]["top1"]["value"])


def call(command: list[str]) -> None:
    """Run a command; show what it printed only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.buffer.write(done.stdout)
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path", help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="RUNG")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    parser.add_argument("--held_out", action="store_true", help="leave the test images alone")
    parser.add_argument("--json", help="also write the table to this file")
    asked = parser.parse_args()
    results = {name: Result() for name in asked.rungs}
    ask = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        if asked.held_out:
            for recipe in ("fashion", "fashion_full"):
                place = Path(folder, recipe)
                of_demo = recipe == "fashion"
                places[recipe] = {
                    "data_path": held_out_images(asked.data_path, place, of_demo=of_demo)
                }
        else:
            places = {"fashion": {}, "fashion_full": {"data_path": asked.data_path}}
        for seed in range(asked.seeds):
            for name, result in results.items():
                run(RUNGS[name], seed, places[RUNGS[name].recipe], result)
                print(
                    f"{name}, seed {seed}: {result.top1[-1]:.2%}, mirrored too "
                    f"{result.mirrored[-1]:.2%}; {result.wall[-1]:.0f} s, "
                    f"{result.cpu[-1]:.0f} s of CPU",
                    file=sys.stderr,
                    flush=True,
                )
    print(f"\n{os.cpu_count()} cores; {asked.seeds} seeds; mean and its 95% interval\n")
    print(
        "| rung | top-1 | s (least to most) | CPU, s | with mirror images |\n|---|---|---|---|---|"
    )
    for name, found in results.items():
        wall = (
            f"{statistics.median(found.wall):.0f} ({min(found.wall):.0f} to {max(found.wall):.0f})"
        )
        print(
            f"| {name} | {statistics.mean(found.top1):.2%} ± {interval(found.top1):.2%} | {wall} | "
            f"{statistics.median(found.cpu):.0f} | {statistics.mean(found.mirrored):.2%} ± "
            f"{interval(found.mirrored):.2%} |"
        )
    if asked.json:
        rows = [
            {
                "name": f"ladder/{name}{'/held out' * asked.held_out}",
                "value": statistics.mean(found.top1),
                "unit": "top-1",
                "peer": "none",
                "peer_value": None,
                "ratio": None,
                "recipe": RUNGS[name].recipe,
                "options": RUNGS[name].options,
                "commit": commit,
                **dataclasses.asdict(found),
            }
            for name, found in results.items()
        ]
        Path(asked.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
