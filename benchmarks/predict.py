"""Predicting a folder of JPEG files from start to end, beside timm's own script for it.

    python benchmarks/predict.py --inference inference.py --models ViT-S_16 --count 2000 --rounds 3

`inference.py` is timm's, from its repository: its wheel has none. Both sides write a CSV with the
five most probable classes of the same files by the same weights, in float32, each in a process of
its own, one after the other and in turns, timed from its start to its end. They must agree on the
classes. timm decodes in worker processes, as many as --workers says; vitbase in threads, one per
core. A ratio is the median over rounds of the ratio within a round. --timm_batches has timm's own
default besides: its best is what counts.

The second table is of vitbase alone: the same images through `Classifier.classify`, and as many
through the network by itself, from pixels in memory; in turns, in one process.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from evaluation import PEERS, make_weights  # noqa: E402 (beside this file)
from photos import make_corpus  # noqa: E402

TOP = 5
AGREEMENT = 0.99
"""Share of images with the same most probable class: the two read an image within a step of 255."""


def run_vitbase(args: argparse.Namespace, weights: Path, out: Path) -> None:
    words = ["-m", "vitbase", "predict", args.images, "--recursive", "--top", str(TOP)]
    words += ["--checkpoint_path", str(weights), "--out", str(out), "--device_target", "CPU"]
    words += ["--batch_size", str(args.batch), "--runtime", args.runtime]
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)


def run_timm(args: argparse.Namespace, weights: Path, out: Path, name: str, batch: int) -> None:
    words = [args.inference, "--data-dir", args.images, "--model", PEERS[name], "--device", "cpu"]
    words += ["--checkpoint", str(weights), "--workers", str(args.workers)]
    words += ["--batch-size", str(batch), "--topk", str(TOP), "--include-index"]
    words += ["--results-separate-col", "--label-type", "none", "--no-console-results"]
    words += ["--results-file", str(out)]
    silent = subprocess.DEVNULL
    subprocess.run([sys.executable, *words], stdout=silent, stderr=silent, check=True)


def best_of(path: Path, image: str, column: str) -> dict[str, str]:
    """Return the most probable class of each image, by the name of its file."""
    with path.open(newline="") as file:
        return {Path(row[image]).name: row[column] for row in csv.DictReader(file)}


def compare(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    weights = folder / f"{name}.safetensors"
    make_weights(name, weights)
    sides: list[tuple[str, int]] = [("vitbase", args.batch)]
    sides += [("timm", batch) for batch in args.timm_batches]
    seconds: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    answers: dict[str, dict[str, str]] = {}
    for number in range(args.rounds):
        for side, batch in sides if number % 2 == 0 else sides[::-1]:
            out = folder / f"{name}-{side}-{batch}-{number}.csv"
            started = time.perf_counter()
            if side == "vitbase":
                run_vitbase(args, weights, out)
            else:
                run_timm(args, weights, out, name, batch)
            seconds[side, batch].append(time.perf_counter() - started)
            columns = ("image", "class1") if side == "vitbase" else ("filename", "index_0")
            answers[side] = best_of(out, *columns)
    mine, theirs = answers["vitbase"], answers["timm"]
    assert mine.keys() == theirs.keys(), "not the same images"
    same = sum(mine[image] == theirs[image] for image in mine) / len(mine)
    assert same >= AGREEMENT, f"{name}: the same class for {same:.1%} of the images"
    own = seconds["vitbase", args.batch]
    ratios = {
        batch: [b / a for a, b in zip(own, seconds["timm", batch], strict=True)]
        for batch in args.timm_batches
    }
    best = min(ratios, key=lambda batch: statistics.median(ratios[batch]))
    rates = {side: args.count / statistics.median(found) for side, found in seconds.items()}
    for batch, found in ratios.items():
        print(
            f"| {name} | {rates['vitbase', args.batch]:.2f} | {rates['timm', batch]:.2f} | {batch} "
            f"| **{statistics.median(found):.3f}** ({min(found):.3f} to {max(found):.3f}) "
            f"| {same:.2%} |",
            flush=True,
        )
    return {
        "name": f"predict/{name}/{args.count} files",
        "value": rates["vitbase", args.batch],
        "unit": "images/s",
        "peer": f"timm inference.py, batch {best}",
        "peer_value": rates["timm", best],
        "ratio": statistics.median(ratios[best]),
    }


def time_alone(args: argparse.Namespace) -> dict[str, float]:
    """Time the classifier with files, and its network alone, in this process, in turns."""
    import torch

    from vitbase.data.augment import EvalTransform
    from vitbase.data.loader import EvalLoader
    from vitbase.shipping.opened import open_classifier
    from vitbase.sources.named import open_named

    classifier = open_classifier(args.weights, runtime=args.runtime, device_target="CPU")
    source = open_named([args.images], recursive=True)
    loader = EvalLoader(source, EvalTransform(classifier.preprocess), batch_size=args.batch)
    batches = [batch.images.clone() for batch in loader]
    classifier.network(batches[0])  # what is made at the first call is made
    decoding: list[float] = []
    found: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        for _ in loader:
            pass
        decoding.append(time.perf_counter() - started)
        started = time.perf_counter()
        for images in batches:
            classifier.network(images)
        alone = time.perf_counter() - started
        started = time.perf_counter()
        for _ in classifier.classify(source, top=TOP, batch_size=args.batch):
            pass
        found.append((time.perf_counter() - started, alone))
    return {
        "predicting": len(source) / statistics.median(whole for whole, _ in found),
        "network": len(source) / statistics.median(alone for _, alone in found),
        "ratio": statistics.median(alone / whole for whole, alone in found),
        "decoding": len(source) / statistics.median(decoding),
        "threads": torch.get_num_threads(),
    }


def measure_alone(name: str, args: argparse.Namespace, folder: Path) -> None:
    words = [sys.executable, __file__, "--alone", "--images", args.images, "--rounds"]
    words += [str(args.rounds), "--weights", str(folder / f"{name}.safetensors")]
    words += ["--batch", str(args.batch), "--runtime", args.runtime]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"| {name} | {found['predicting']:.2f} | {found['network']:.2f} | "
        f"**{found['ratio']:.3f}** | {found['decoding']:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inference", help="timm's inference.py")
    parser.add_argument("--models", nargs="+", default=["ViT-S_16"], choices=PEERS)
    parser.add_argument("--count", type=int, default=2000, help="images")
    parser.add_argument("--alone_count", type=int, default=256, help="images of the second table")
    parser.add_argument("--kilobytes", type=int, default=110, help="of an image")
    parser.add_argument("--batch", type=int, default=32, help="of vitbase: its default")
    parser.add_argument("--timm_batches", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--workers", type=int, default=2, help="processes that decode for timm")
    parser.add_argument("--runtime", default="auto", help="of vitbase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    for name in ("--weights", "--images"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(time_alone(args)))
        return
    if args.inference is None:
        parser.error("--inference FILE: timm's inference.py, from its repository")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        args.images = str(make_corpus(folder / "images", args.kilobytes, args.count))
        print(f"{args.count} JPEGs of {args.kilobytes} KB, from start to end\n")
        print("| model | vitbase, images/s | timm | its batch | ratio (rounds) | same class |")
        print("|---|---|---|---|---|---|", flush=True)
        rows = [compare(name, args, folder) for name in args.models]
        args.images = str(make_corpus(folder / "fewer", args.kilobytes, args.alone_count))
        print("\n| model | predicting, images/s | its network alone | ratio | decoding alone |")
        print("|---|---|---|---|---|", flush=True)
        for name in args.models:
            measure_alone(name, args, folder)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
