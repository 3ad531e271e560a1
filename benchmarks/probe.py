"""What a probe costs beside the features it needs, and how good its linear classifier is.

    python benchmarks/probe.py --models ViT-Ti_16 --rounds 3
    python benchmarks/probe.py --weights runs/fashion --data_path embedded --images 2000

Cost: of 2,000 JPEGs, a pass of `FeatureStore.compute` alone against the whole probe of a call that
finds no features (weights opened, images listed and hashed, features kept, every classifier), in
turns; a ratio is of one round. On a machine shared with others, the time of a probe against that of
the passes inside it says more. Accuracy: with --weights, beside scikit-learn's LogisticRegression
(its defaults, on standardised features) on the same features.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from photos import make_corpus  # noqa: E402 (beside this file)


def make_weights(name: str, path: Path) -> Path:
    import torch

    import vitbase

    torch.manual_seed(0)
    vitbase.save_weights(vitbase.create_model(name, num_classes=2, image_size=224), path)
    return path


def time_features(weights: Path, folder: Path, batch_size: int) -> float:
    """Return the seconds of one pass over all images, and nothing else."""
    import vitbase
    from vitbase.evaluation.features import FeatureStore, Views
    from vitbase.runtime import local_runtime
    from vitbase.sources.open import open_source

    loaded = vitbase.load_model(weights)
    source = open_source(str(folder), "train", "data_path")
    runtime = local_runtime()
    model = loaded.model.to(runtime.device)
    store = FeatureStore(model, source, Views(loaded.preprocess), runtime, batch_size=batch_size)
    store._place = None  # neither looked for nor kept
    started = time.perf_counter()
    store.compute()
    return time.perf_counter() - started


def time_probe(weights: Path, folder: Path, batch_size: int) -> tuple[float, float, float]:
    """Return the seconds of a whole probe; of its passes over images; of its classifiers."""
    import vitbase
    from vitbase.evaluation.features import FeatureStore

    passes: list[float] = []
    compute = FeatureStore._compute

    def timed(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            return compute(*args)
        finally:
            passes.append(time.perf_counter() - started)

    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, VITBASE_CACHE=cache),
        mock.patch.object(FeatureStore, "_compute", timed),
    ):
        started = time.perf_counter()
        found = vitbase.probe(weights, folder, batch_size=batch_size)
        seconds = time.perf_counter() - started
    return seconds, sum(passes), found.rows[0].classifiers_seconds


def cost(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    weights = make_weights(name, folder / f"{name}.safetensors")
    images = folder / "images"
    alone: list[float] = []
    whole: list[tuple[float, float, float]] = []
    for number in range(args.rounds):
        for side in sorted(("features", "probe"), reverse=bool(number % 2)):
            if side == "features":
                alone.append(time_features(weights, images, args.batch))
            else:
                whole.append(time_probe(weights, images, args.batch))
    ratios = [each[0] / a for a, each in zip(alone, whole, strict=True)]
    inside = [each[0] / each[1] for each in whole]
    ratio = statistics.median(ratios)
    seconds = [statistics.median(side) for side in (alone, *zip(*whole, strict=True))]
    print(
        f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[3]:.2f} | "
        f"**{ratio:.3f}** ({min(ratios):.3f} to {max(ratios):.3f}) | "
        f"{statistics.median(inside):.3f} ({min(inside):.3f} to {max(inside):.3f}) |",
        flush=True,
    )
    return {
        "name": f"probe/{name}/{args.images}",
        "value": seconds[1],
        "unit": "s",
        "peer": "one pass of features",
        "peer_value": seconds[0],
        "ratio": ratio,
    }


def accuracy(weights: str, args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    import vitbase
    from vitbase.evaluation.features import FeatureStore, Views
    from vitbase.evaluation.figures import wilson
    from vitbase.inspection.probing.images import open_images
    from vitbase.inspection.probing.probe import Plan
    from vitbase.runtime import local_runtime

    options = {"max_images": args.images, "precision": "fp32"}
    row = vitbase.probe(weights, args.data_path, **options).rows[0]
    plan = Plan.of(data_path=args.data_path, **options)
    data, loaded = open_images(plan.config, args.images), vitbase.load_model(weights)
    runtime = local_runtime(precision="fp32")
    found = []
    for source in (data.train, data.val):
        store = FeatureStore(
            loaded.model.to(runtime.device),
            source,
            Views(loaded.preprocess),
            runtime,
            batch_size=64,
        )
        store.find()
        store.compute()
        found.append(store.features.values[0].double().numpy())
    scaler = StandardScaler().fit(found[0])
    started = time.perf_counter()
    peer = LogisticRegression(max_iter=1000).fit(scaler.transform(found[0]), data.train.labels)
    seconds = time.perf_counter() - started
    right = peer.predict(scaler.transform(found[1])) == np.asarray(data.val.labels)
    theirs = wilson(int(right.sum()), len(right))
    print(
        f"| {weights} | {len(data.train):,} | {row.linear.describe()} | {theirs.describe()} | "
        f"{row.squares.describe()} | {row.knn.describe()} | {row.classifiers_seconds:.1f} | "
        f"{seconds:.1f} |",
        flush=True,
    )
    return {
        "name": f"probe/accuracy/{weights}/{len(data.train)}",
        "value": row.linear.value,
        "unit": "top-1",
        "peer": "scikit-learn LogisticRegression",
        "peer_value": theirs.value,
        "ratio": row.linear.value / theirs.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], help="whose cost is measured")
    parser.add_argument("--weights", nargs="*", default=[], help="whose accuracy is measured")
    parser.add_argument("--data_path", default="embedded", help="the images for it")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=70, help="of a JPEG")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if not args.models and not args.weights:
        args.models = ["ViT-Ti_16"]
    rows = []
    if args.models:
        print(f"{args.images} JPEGs of {args.kilobytes} KB, batches of {args.batch}\n")
        print(
            "| model | features alone, s | probe, s | of it classifiers | ratio (rounds) | "
            "against its own passes |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_corpus(folder / "images", args.kilobytes, args.images)
            rows += [cost(name, args, folder) for name in args.models]
    if args.weights:
        print("\n| weights | images | probe | scikit-learn | least squares | kNN | s | s |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        rows += [accuracy(weights, args) for weights in args.weights]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
