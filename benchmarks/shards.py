"""Speed of reading images at random places: tar shards beside the same images as files.

    python benchmarks/shards.py                      # makes photographs, files and shards
    python benchmarks/shards.py --folder photos/     # a folder of class folders instead
    python benchmarks/shards.py --rounds 15 --json shards.json

Both lie in the page cache, and are read in the same shuffled order: by `source.read` alone, with
one thread and with two, and through the whole training loader (random resized crop and flip, to
224 x 224 pixels). Rounds take turns, each contender first in every other one, and the ratio is the
median over rounds of the ratio within a round. A ratio of 0.95 or more is asked for.

The checksum of each image's tar header, by which a shard that was changed is noticed, is part of
what is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import make_corpus

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.curation.packing.split import pack_source
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.sources.folders import read_folder
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source

SIZE, BATCH = 224, 64


def make_folder(folder: Path, kilobytes: int, count: int) -> Path:
    """Write so many files; beyond 256 they repeat in content, which reading does not notice."""
    make_corpus(folder, kilobytes)
    made = sorted(folder.glob("*/*.JPEG"))
    for number in range(len(made), count):
        original = made[number % len(made)]
        shutil.copyfile(original, original.with_name(f"{number:05}.JPEG"))
    return folder


def time_reads(source: Source, threads: int, seed: int) -> float:
    """Read every image once, in shuffled order. Returns: images per second."""
    order = np.random.default_rng(seed).permutation(len(source))
    parts = [part.tolist() for part in np.array_split(order, threads)]

    def read(part: list[int]) -> None:
        for index in part:
            source.read(index)

    running = [threading.Thread(target=read, args=(part,)) for part in parts]
    started = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return len(source) / (time.perf_counter() - started)


def time_loader(source: Source, threads: int, seed: int, images: int) -> float:
    """Prepare so many images for training. Returns: images per second."""
    transform = TrainTransform(default_preprocess(SIZE, SIZE, 3), AugmentSection())
    loader = TrainLoader(source, transform, seed=0, batch_size=BATCH, num_workers=threads)
    batches = loader.epoch(seed)
    next(batches)
    started, done = time.perf_counter(), 0
    while done < images:
        done += len(next(batches).labels)
    rate = done / (time.perf_counter() - started)
    batches.close()  # type: ignore[attr-defined]
    return rate


def compare(
    name: str, measure: Callable[[Source, int], float], files: Source, shards: Source, rounds: int
) -> dict[str, Any]:
    """Let both take turns; return and print a row."""
    measure(files, 0), measure(shards, 0)  # into the page cache, and shards open
    found: dict[str, list[float]] = {"files": [], "shards": []}
    for number in range(rounds):
        pair = [("files", files), ("shards", shards)]
        for kind, source in pair if number % 2 else reversed(pair):
            found[kind].append(measure(source, number))
    ratios = [mine / theirs for mine, theirs in zip(found["shards"], found["files"], strict=True)]
    value, peer = statistics.median(found["shards"]), statistics.median(found["files"])
    ratio = statistics.median(ratios)
    print(
        f"| {name} | {value:.0f} | {peer:.0f} | "
        f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )
    return {
        "name": name,
        "value": value,
        "unit": "images/s",
        "peer": "files",
        "peer_value": peer,
        "ratio": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="class folders of JPEGs; none: made photographs")
    parser.add_argument("--kilobytes", type=int, nargs="*", default=[16, 110])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--loader_images", type=int, default=1024, help="0: not the loader")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as made:
        corpora = {"folder": Path(args.folder)} if args.folder else {}
        for kilobytes in [] if args.folder else args.kilobytes:
            name = f"{kilobytes} KB"
            corpora[name] = make_folder(Path(made) / name.replace(" ", "_"), kilobytes, args.images)
        print("| images | shards, images/s | files, images/s | shards / files (rounds) |")
        print("|---|---|---|---|")
        for corpus, folder in corpora.items():
            files = read_folder(folder, "folder")
            out = Path(made) / f"{corpus.replace(' ', '_')}_shards"
            pack_source(files, out, "train", shard_bytes=2**25)
            shards = open_shards(str(out), "train", "folder")
            assert all(files.read(index) == shards.read(index) for index in range(len(files)))
            for threads in args.threads:
                rows.append(
                    compare(
                        f"{corpus}, read, {threads} thread{'s' * (threads > 1)}",
                        lambda source, seed, threads=threads: time_reads(source, threads, seed),
                        files,
                        shards,
                        args.rounds,
                    )
                )
            for threads in args.threads if args.loader_images else []:
                rows.append(
                    compare(
                        f"{corpus}, training loader, {threads} worker{'s' * (threads > 1)}",
                        lambda source, seed, threads=threads: time_loader(
                            source, threads, seed, args.loader_images
                        ),
                        files,
                        shards,
                        args.rounds,
                    )
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
