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
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
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


# What the recipes were before is a rung, too: all its options are given.
_BEFORE = {
    "optimizer": "adamw",
    "lr_init": 0.002,
    "batch_size": 64,
    "label_smoothing": 0.0,
    "momentum": 0.9,
}


def _epochs(number: int) -> dict[str, object]:
    """Return options of a run of so many epochs, evaluated once, at its end."""
    return {
        "epoch_size": number,
        "warmup_epochs": number / 10,
        "eval_every_epochs": number,
    }


RUNGS = {
    "the demo, AdamW": Rung("fashion", _BEFORE | _epochs(24)),
    "the demo": Rung("fashion", _epochs(20)),
    "two minutes, AdamW": Rung("fashion_full", _BEFORE | _epochs(4)),
    "two minutes": Rung("fashion_full", _epochs(3)),
    "five minutes, AdamW": Rung("fashion_full", _BEFORE | _epochs(9)),
    "five minutes": Rung("fashion_full", _epochs(9)),
}

_HELD_OUT, _OF_DEMO = 800, 1000  # images of each class


@dataclasses.dataclass(frozen=True)
class Run:
    """What came out of a run: top-1, the same with mirror images, seconds of wall and of CPU."""

    seed: int
    top1: float
    mirrored: float
    wall: float
    cpu: float


def spoken(values: list[float]) -> str:
    """Return the mean with its 95% interval, by Student's t; the value alone where it is one."""
    mean = f"{statistics.mean(values):.2%}"
    if len(values) < 2:
        return mean
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {float(student_t.ppf(0.975, len(values) - 1)) * error:.2%}"


def read_idx(data_path: str, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a split of Fashion-MNIST, "train" or "t10k": images [N, 28, 28], labels [N]."""

    def read(kind: str, header: int) -> NDArray[np.uint8]:
        content = gzip.decompress(Path(data_path, f"{split}-{kind}-ubyte.gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    return read("images-idx3", 16).reshape(-1, 28, 28), read("labels-idx1", 8)


def held_out_images(data_path: str, folder: Path, *, of_demo: bool) -> Path:
    """Write training images without the held out ones, and these as the test images.

    Held out are the last of each class; the demo's training images are the first.
    """
    images, labels = read_idx(data_path, "train")
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


def run(rung: Rung, seed: int, options: dict[str, object], *, threads: int | None) -> Run:
    """Train once, and evaluate once more with the mirror images."""
    with tempfile.TemporaryDirectory() as folder:
        options = rung.options | options | {"seed": seed, "output_dir": f"{folder}/run"}
        options["keep_checkpoint_max"] = 1  # the one that is evaluated once more
        words = [word for key, value in options.items() for word in (f"--{key}", f"{value}")]
        wall, cpu = call(["train", rung.recipe, *words], threads)
        rows = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        evaluations = [row for row in map(json.loads, rows) if "eval_top1" in row]
        words = ["--checkpoint_path", f"{folder}/run", "--out", f"{folder}/mirrored"]
        call(["eval", *words, "--test_time_augmentation", "flip"], threads)
        text = Path(folder, "mirrored", "evaluation.json").read_text(encoding="utf-8")
        mirrored = json.loads(text)["figures"]["top1"]["value"]
    return Run(seed, evaluations[-1]["eval_top1"], mirrored, wall, cpu)


def call(words: list[str], threads: int | None) -> tuple[float, float]:
    """Run a command; show what it printed only if it fails. Returns: seconds of wall and CPU."""
    environment = os.environ | ({"OMP_NUM_THREADS": f"{threads}"} if threads else {})
    command = [sys.executable, "-m", "vitbase", *words]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.stderr.buffer.write(said.read())
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def write_rows(asked: argparse.Namespace, found: dict[str, list[Run]], commit: str) -> None:
    """Write what was found so far, as benchmarks/README.md says."""
    rows = [
        {
            "name": f"ladder/{name}{', held out' * asked.held_out}",
            "value": statistics.mean(each.top1 for each in runs),
            "unit": "top-1",
            "peer": "none",
            "peer_value": None,
            "ratio": None,
            "commit": commit,
            "recipe": RUNGS[name].recipe,
            "options": RUNGS[name].options,
            "at_once": asked.at_once,
            "runs": [dataclasses.asdict(each) for each in runs],
        }
        for name, runs in found.items()
        if runs
    ]
    Path(asked.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path", help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="RUNG")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    parser.add_argument("--held_out", action="store_true", help="leave the test images alone")
    parser.add_argument(
        "--at_once", type=int, default=1, help="runs, a core each: no clock for them"
    )
    parser.add_argument("--json", help="also write the table to this file")
    asked = parser.parse_args()
    ask = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    found: dict[str, list[Run]] = {name: [] for name in asked.rungs}
    with tempfile.TemporaryDirectory() as folder, ThreadPool(asked.at_once) as pool:
        places: dict[str, dict[str, object]] = {"fashion": {}}
        places["fashion_full"] = {"data_path": asked.data_path}
        if asked.held_out:
            for recipe in places:
                images = held_out_images(
                    asked.data_path, Path(folder, recipe), of_demo=recipe == "fashion"
                )
                places[recipe] = {"data_path": images}

        def take(turn: tuple[int, str]) -> tuple[str, Run]:
            seed, name = turn
            rung, threads = RUNGS[name], 1 if asked.at_once > 1 else None
            return name, run(rung, seed, places[rung.recipe], threads=threads)

        for name, done in pool.imap(take, itertools.product(range(asked.seeds), asked.rungs)):
            found[name].append(done)
            print(f"{name}: {done}", file=sys.stderr, flush=True)
            if asked.json:  # as they come: hours may be lost
                write_rows(asked, found, commit)
    print(f"\n{asked.seeds} seeds: the mean, and its 95% interval; {asked.at_once} at once\n")
    print("| rung | top-1 | with mirror images | s (least to most) | s of CPU |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        wall = [each.wall for each in runs]
        print(
            f"| {name} | {spoken([each.top1 for each in runs])} | "
            f"{spoken([each.mirrored for each in runs])} | "
            f"{statistics.median(wall):.0f} ({min(wall):.0f} to {max(wall):.0f}) | "
            f"{statistics.median(each.cpu for each in runs):.0f} |"
        )


if __name__ == "__main__":
    main()
