"""What `vitbase explain` says that a run takes on this machine, beside what it then takes.

    python benchmarks/explain.py --rounds 5 --json results/explain.json

In turns, each a process of its own: `explain` with an empty cache, so that it measures; some
updates of `train`; an evaluation of its checkpoint. Medians of the speeds, and of the ratios within
a round. Images of Ti/16 and S/16 are photo-like JPEGs of 110 kB.
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
from pathlib import Path
from typing import Any

from photos import make_corpus

KINDS = ("training", "evaluation")


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
    found: dict[str, list[object]] = {
        "fashion": [
            *("fashion", "--total_steps", 80, "--log_every_steps", 10),
            *("--checkpoint_every_steps", 20),
        ]
    }
    for model in ("ViT-Ti_16", "ViT-S_16"):
        often = ["--batch_size", 8, "--total_steps", 9, "--log_every_steps", 1]
        found[model] = ["imagenet", "--model", model, *places, *often]
    return found


def predicted(words: list[object], folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        said = vitbase("explain", *words, cache=Path(cache))
    return {
        kind: float(re.search(rf"^{kind} speed +([\d.,]+)", said, re.M)[1].replace(",", ""))  # type: ignore[index]
        for kind in KINDS
    }


def measured(words: list[object], folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run, cache = Path(place) / "run", Path(place) / "cache"
        vitbase("train", *words, "--output_dir", run, cache=cache)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
        # Of several checkpoints: 2,000 small images are evaluated before a process is warm.
        said = vitbase("eval", "--checkpoint_path", run, "--json", cache=cache).splitlines()
        evaluated = [json.loads(line)["eval_images_per_second"] for line in said]
    return {"training": statistics.median(speeds[1:]), "evaluation": statistics.median(evaluated)}


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
                for kind in KINDS:
                    found.setdefault((name, kind), []).append((said[kind], done[kind]))
    rows: list[dict[str, Any]] = []
    print("| | explain, images/s | measured | ratio (rounds) |\n|---|---|---|---|")
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
                "unit": "images/s",
                "peer": "what the run did",
                "peer_value": round(done, 3),
                "ratio": round(ratio, 3),
            }
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
