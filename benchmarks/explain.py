"""What `vitbase explain` says that a run takes on this machine, beside what it then takes.

    python benchmarks/explain.py --rounds 5 --json results/explain.json

In turns, each a process of its own: `explain` with an empty cache, so that it measures; then some
updates of `train`, with its evaluations. Medians of the speeds, and of the ratios within a round;
of `fashion` also the time of the run. Images of Ti/16 and S/16 are photo-like JPEGs of 110 kB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from photos import make_corpus

SPEEDS = ("training", "evaluation")
WHOLE = "fashion"
"""The run that is made to its end."""


def vitbase(*words: object, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vitbase", *map(str, words)],
        env={**os.environ, "VITBASE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def runs(folder: Path) -> dict[str, list[object]]:
    """Return the options of each run, by name."""
    corpus = make_corpus(folder / "photos", 110, 96)
    places = ["--data_path", corpus, "--val_data_path", corpus, "--num_classes", 2]
    found: dict[str, list[object]] = {WHOLE: ["fashion", "--log_every_steps", 13]}
    for model in ("ViT-Ti_16", "ViT-S_16"):
        often = ["--batch_size", 8, "--total_steps", 9, "--log_every_steps", 1]
        found[model] = ["imagenet", "--model", model, *places, *often]
    return found


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def predicted(words: list[object], folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        said = vitbase("explain", *words, cache=Path(cache))

    speeds = [re.search(rf"^{kind} speed +([\d.,]+)", said, re.M) for kind in SPEEDS]
    counts = re.search(r"^time of the run .* ([\d,]+) images trained on, ([\d,]+) eval", said, re.M)
    assert counts, said
    rates = [_number(speed[1]) for speed in speeds]  # type: ignore[index]
    images = [_number(count) for count in counts.groups()]
    took = sum(count / rate for count, rate in zip(images, rates, strict=True))
    return dict(zip((*SPEEDS, "seconds"), (*rates, took), strict=True))


def measured(words: list[object], folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run = Path(place) / "run"
        started = time.perf_counter()
        vitbase("train", *words, "--output_dir", run, cache=Path(place) / "cache")
        took = time.perf_counter() - started
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    trained = [row["images_per_second"] for row in rows if "images_per_second" in row]
    evaluated = [row["eval_images"] / row["eval_seconds"] for row in rows if "eval_top1" in row]
    medians = (statistics.median(trained[1:]), statistics.median(evaluated))  # the first sets up
    return dict(zip((*SPEEDS, "seconds"), (*medians, took), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(args.rounds):
            for name, words in runs(folder).items():
                said, done = predicted(words, folder), measured(words, folder)
                for kind in (*SPEEDS, "seconds") if name == WHOLE else SPEEDS:
                    found.setdefault((name, kind), []).append((said[kind], done[kind]))
    rows: list[dict[str, Any]] = []
    print("| images/s, or s of a run | explain | measured | ratio (rounds) |\n|---|---|---|---|")
    for (name, kind), pairs in found.items():
        said, done = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs]
        ratio = statistics.median(ratios)
        print(
            f"| {name}, {kind} | {said:,.4g} | {done:,.4g} | **{ratio:.3f}** "
            f"({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
        rows.append(
            {
                "name": f"explain/{name}/{kind}",
                "value": round(said, 3),
                "unit": "s" if kind == "seconds" else "images/s",
                "peer": "what the run did",
                "peer_value": round(done, 3),
                "ratio": round(ratio, 3),
            }
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
