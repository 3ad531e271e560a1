"""Speed of an evaluation, input included, beside timm's own script for it.

    python benchmarks/evaluation.py --validate validate.py --models ViT-B_16 ViT-S_16

`validate.py` is timm's, from its repository: its wheel has none. Both sides evaluate the same JPEGs
with the same weights, in float32, in batches of the same size, each in a process of its own, one
after the other and in turns. They are timed from the first image asked for to the last one counted:
imports, the model's construction and timm's warm-up are not in it. They must agree on the loss and
on top-1. timm decodes in worker processes, as many as --workers says; vitbase in threads, one per
core. A ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from photos import make_corpus  # noqa: E402 (beside this file)

PEERS = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
}
TOLERANCE = 1e-3
"""Of the loss: the two read the same image within a step or two of 255."""


def make_weights(name: str, path: Path) -> None:
    """Write weights as timm writes them, whose head is not zero."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(PEERS[name])
    torch.nn.init.normal_(model.head.weight, std=0.02)
    save_file(model.state_dict(), path)


def of_vitbase(args: argparse.Namespace) -> dict[str, float]:
    import vitbase

    config = vitbase.load_config(
        "imagenet",
        checkpoint_path=args.weights,
        model=None,
        val_data_path=args.images,
        eval_batch_size=args.batch,
        protocol="timm",
        device_target="CPU",
        precision="fp32",
    )
    (result,) = vitbase.evaluate(config)
    assert result.speed is not None
    row = result.to_row()
    return {"seconds": result.speed.seconds, "loss": row["eval_loss"], "top1": row["eval_top1"]}


class Timed:
    """A loader that says when its first batch was asked for."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.started = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.started = time.perf_counter()
        return iter(self.loader)


def of_timm(args: argparse.Namespace) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("validate", args.validate)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.argv[1:] = []
    spec.loader.exec_module(script)
    made: list[Timed] = []

    def create(*given: Any, **options: Any) -> Timed:
        made.append(Timed(create_loader(*given, **options)))
        return made[-1]

    create_loader, script.create_loader = script.create_loader, create
    meters: list[Any] = []  # in the order in which the script makes them: time, loss, top-1, top-5
    make_meter = script.AverageMeter

    def meter() -> Any:
        meters.append(make_meter())
        return meters[-1]

    script.AverageMeter = meter
    words = f"--model {PEERS[args.models[0]]} --device cpu --workers {args.workers}".split()
    words += ["--checkpoint", args.weights, "--batch-size", str(args.batch)]
    logging.disable()
    found = script.validate(script.parser.parse_args([*words, "--data-dir", args.images]))
    seconds = time.perf_counter() - made[0].started
    return {"seconds": seconds, "loss": meters[1].avg, "top1": found["top1"] / 100}


def measure(side: str, args: argparse.Namespace, name: str, weights: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--side", side, "--models", name, "--weights", str(weights)]
    words += ["--images", args.images, "--validate", args.validate]
    words += ["--batch", str(args.batch), "--workers", str(args.workers)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    weights = folder / f"{name}.safetensors"
    make_weights(name, weights)
    runs: dict[str, list[dict[str, float]]] = {"vitbase": [], "timm": []}
    for number in range(args.rounds):
        for side in sorted(runs, reverse=bool(number % 2)):
            runs[side].append(measure(side, args, name, weights))
    mine, peer = runs["vitbase"], runs["timm"]
    for ours, theirs in zip(mine, peer, strict=True):
        agree = abs(ours["loss"] - theirs["loss"]) <= TOLERANCE
        agree = agree and abs(ours["top1"] - theirs["top1"]) * args.count <= 1.01
        assert agree, f"{name}: {ours}, timm {theirs}"
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(mine, peer, strict=True)]
    rates = [
        args.count / statistics.median(run["seconds"] for run in side) for side in (mine, peer)
    ]
    ratio = statistics.median(ratios)
    memory = [statistics.median(run["megabytes"] for run in side) for side in (mine, peer)]
    print(
        f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | **{ratio:.3f}** "
        f"({min(ratios):.3f} to {max(ratios):.3f}) | {memory[0]:.0f} | {memory[1]:.0f} |",
        flush=True,
    )
    return {
        "name": f"evaluation/{name}/batch{args.batch}",
        "value": rates[0],
        "unit": "images/s",
        "peer": "timm validate.py",
        "peer_value": rates[1],
        "ratio": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validate", required=True, help="timm's validate.py")
    parser.add_argument("--models", nargs="+", default=["ViT-B_16", "ViT-S_16"], choices=PEERS)
    parser.add_argument("--count", type=int, default=256, help="images")
    parser.add_argument("--kilobytes", type=int, default=110, help="of an image")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode for timm")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    for name in ("--side", "--weights", "--images"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        found = of_vitbase(args) if args.side == "vitbase" else of_timm(args)
        peaks = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        found["megabytes"] = (
            peaks[0].ru_maxrss + args.workers * (args.side == "timm") * peaks[1].ru_maxrss
        ) / 1024
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        args.images = str(make_corpus(folder / "images", args.kilobytes, args.count))
        print(f"{args.count} JPEGs of {args.kilobytes} KB, batches of {args.batch}\n")
        print("| model | vitbase, images/s | timm | ratio (rounds) | memory, MB | timm |")
        print("|---|---|---|---|---|---|", flush=True)
        rows = [compare(name, args, folder) for name in args.models]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
