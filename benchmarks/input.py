"""Speed of the input pipeline beside those of timm, torchvision, TorchCodec, SPDL, DALI, MindSpore.

    python benchmarks/input.py                     # makes its photographs; train and eval pipelines
    python benchmarks/input.py --folder photos/    # a folder of class folders instead
    python benchmarks/input.py --pipelines train randaugment --cores 1 2 --rounds 5

Every contender reads JPEG files from the page cache and delivers shuffled batches of 224 x 224
pixels, normalised float32: random resized crop and flip, that and RandAugment(2, 9), the same with
bicubic interpolation throughout (as DeiT trains), or resize to 256 and central crop, all
antialiased. Each runs in a process of its own, pinned to the same cores, with as many workers as
cores; contenders and numbers of cores take turns within a round, and a ratio is the median over
rounds of the ratio within a round. `vitbase uint8` and `timm uint8` are what a device is sent: it
normalises there. `decode` is the ceiling: decoding whole files and nothing else, in threads.
`vitbase raw` reads the same images as `vitbase data pack --raw 256` writes them, decoded; with
`processes` each thread has one that works for it (`--worker_processes True`).

DALI and MindSpore come with requirements of their own: name a Python that has them in
`DALI_PYTHON` and `MINDSPORE_PYTHON`. TorchCodec decodes for torchvision's v2 transforms; SPDL crops
and resizes with FFmpeg, in threads. Contenders that are not installed are left out, and named.

Without `--folder`, photographs are made: the 1/f spectrum of natural images, 500 x 375 pixels, at
the qualities that give files of 70 KB and of 110 KB (ImageNet's mean).
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import batches_of, image_files
from photos import make_corpus

RAW = "raw"
CONTENDERS = (
    "vitbase",
    "vitbase uint8",
    "vitbase raw",
    "vitbase raw uint8",
    "vitbase processes",
    "vitbase processes uint8",
    "vitbase raw processes uint8",
    "timm",
    "timm uint8",
    "torchvision PIL",
    "torchvision v2",
    "TorchCodec",
    "SPDL",
    "DALI",
    "MindSpore",
    "decode",
)
PIPELINES = ("train", "randaugment", "randaugment bicubic", "eval")
PYTHONS = {"DALI": "DALI_PYTHON", "MindSpore": "MINDSPORE_PYTHON"}


# One measurement, in a process of its own


def measure(name: str, folder: str, pipeline: str, cores: int, seconds: float) -> dict[str, float]:
    """Pin this process and its children to some cores, and count images for some seconds."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if name not in PYTHONS:
        import torch

        torch.set_num_threads(cores)
    batches = batches_of(name, folder, pipeline, cores)
    warmed = time.perf_counter() + seconds / 4
    while time.perf_counter() < warmed:
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += next(batches)
    rate = images / (time.perf_counter() - started)
    return {"images_per_second": rate, "megabytes": _memory_of_the_tree() / 1e6}


def _memory_of_the_tree() -> int:
    """Return the memory of this process and its children; what they share counts once."""
    wanted, found = {os.getpid()}, 0
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
    for _ in parents:
        wanted |= {pid for pid, parent in parents.items() if parent in wanted}
    for pid in wanted:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found


def run_one(name: str, folder: str, pipeline: str, cores: int, seconds: float) -> dict[str, float]:
    """Measure in a new process; empty if the contender is not there."""
    python = os.environ.get(PYTHONS.get(name, ""), "" if name in PYTHONS else sys.executable)
    if not python:
        return {}
    words = [python, __file__, "--run", name, "--folder", folder, "--pipelines", pipeline]
    words += ["--cores", str(cores), "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        sys.stderr.write(f"{name}, {pipeline}: no result: {reason}\n")
        return {}
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def pack_pixels(folder: str, out: str) -> None:
    """Pack a folder as `vitbase data pack --raw 256` does."""
    from vitbase.curation.packing.split import pack_source  # other Pythons run this file, too
    from vitbase.sources.folders import read_folder

    pack_source(read_folder(Path(folder), "folder"), out, "train", raw=256)


def compare(
    corpus: str, folder: str, pixels: str, pipeline: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Let the contenders take turns; return and print a row for each and each number of cores."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name in args.contenders:
            for cores in args.cores:
                place = pixels if RAW in name else folder
                result = run_one(name, place, pipeline, cores, args.seconds)
                if result:
                    found.setdefault((name, cores), []).append(result)
    own, fewest = args.ours, min(args.cores)
    print(f"\n{corpus}, {pipeline}\n")
    print(f"| contender | cores | images/s | per core | memory | {own} / it (rounds) | scaling |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (name, cores), results in found.items():
        rates = _rates(results)
        # What a device is sent is compared with what a device is sent.
        ours = _rates(found.get((f"{own} uint8" if name.endswith("uint8") else own, cores), []))
        alone = _rates(found.get((name, fewest), []))
        memory = max(result["megabytes"] for result in results)
        rate = statistics.median(rates)
        print(
            f"| {name} | {cores} | {rate:.0f} | {rate / cores:.0f} | {memory:.0f} MB | "
            f"{_ratio(ours, rates)} | {_ratio(rates, alone)} |",
            flush=True,
        )
        place = f"input/{corpus}/{pipeline}"
        if ours and ours != rates:
            rows.append(_row(f"{place}/{cores} cores/{own} beside {name}", name, ours, rates))
        if alone and cores > fewest:
            row = _row(f"{place}/{name}/{cores} cores beside {fewest}", "one core", rates, alone)
            rows.append(row | {"each": round(rate / cores, 1)})
    return rows


def _row(name: str, peer: str, rates: list[float], others: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(statistics.median(rates), 1),
        "unit": "images/s",
        "peer": peer,
        "peer_value": round(statistics.median(others), 1),
        "ratio": round(statistics.median(map(operator.truediv, rates, others)), 3),
    }


def _rates(results: list[dict[str, float]]) -> list[float]:
    return [result["images_per_second"] for result in results]


def _ratio(rates: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(rates, others, strict=False)]
    if not ratios or rates == others:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="class folders of images; none: made photographs")
    parser.add_argument("--kilobytes", type=int, nargs="*", default=[70, 110])
    parser.add_argument("--pipelines", nargs="*", default=list(PIPELINES), choices=PIPELINES)
    parser.add_argument("--cores", type=int, nargs="*", default=[2])
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--ours", default="vitbase", help="what the others are beside")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        result = measure(args.run, args.folder, args.pipelines[0], args.cores[0], args.seconds)
        print(json.dumps(result), flush=True)
        os._exit(0)  # the workers of some contenders do not end by themselves
    if args.folder and not image_files(args.folder):
        parser.error(f"--folder {args.folder} holds no images; give a folder of class folders")
    rows = []
    with tempfile.TemporaryDirectory() as made:
        corpora = {"folder": args.folder} if args.folder else {}
        for kilobytes in [] if args.folder else args.kilobytes:
            name = f"{kilobytes} KB"
            corpora[name] = str(make_corpus(Path(made) / name.replace(" ", "_"), kilobytes))
        for corpus, folder in corpora.items():
            pixels = f"{made}/pixels of {corpus}"
            if any(RAW in name for name in args.contenders):
                pack_pixels(folder, pixels)
            for pipeline in args.pipelines:
                rows += compare(corpus, folder, pixels, pipeline, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
