"""Every way to run a ViT beside timm's, eager and compiled: the same weights, in turns.

    python benchmarks/inference.py --models ViT-B_16 ViT-S_16 --batch 1 16 --json inference.json
    python benchmarks/inference.py --models --weights runs/fashion
    python benchmarks/inference.py --models ViT-B_16 --profile

Each side is a process of its own that waits while another one computes, and must agree with timm's
eager model before it is timed. timm's sides get normalised float images, ours pixels, which they
normalise. A turn is --seconds long, or one batch, if that takes longer; a ratio is the median over
rounds of the ratio within a round. Each of ours is held against timm's faster one, and those of
less than full precision against our own eager, too.

With --weights, the second table is of accuracy: the model in each format and precision, as
`vitbase export` writes and compares it, on the run's evaluation images (or --val_data_path).

With --profile, the third is of the operators in which ONNX Runtime and OpenVINO spend their time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

TIMM = ("timm eager", "timm compiled")
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2, "int8": 0.5}
"""Of logits, in their deviations; these weights are random."""


def make_weights(name: str, gelu: str, path: Path) -> None:
    """Write random weights, the head's not zero, so that logits differ."""
    import torch

    import vitbase
    from vitbase.config.preprocess import default_preprocess

    torch.manual_seed(0)
    model = vitbase.create_model(name, gelu=gelu, head_init_std=0.05)
    vitbase.save_weights(model, path, preprocess=default_preprocess(*model.spec.image_size, 3))


def timm_network(weights: Path, name: str, gelu: str, compiled: bool) -> Callable[[Any], Any]:
    """Return timm's model with our weights; it takes pixels that were normalised before."""
    import timm
    import torch
    from train_step import PEERS

    import vitbase

    act = "gelu_tanh" if gelu == "tanh" else "gelu"
    model = timm.create_model(PEERS[name], act_layer=act).eval()
    state = vitbase.load_model(weights).model.state_dict()
    model.load_state_dict({k.replace("stem.", "patch_embed."): v for k, v in state.items()})
    computed: Any = torch.compile(model) if compiled else model

    def network(images: Any) -> Any:
        with torch.inference_mode():
            return computed(images)

    return network


def serve(connection: Any, side: str, weights: Path, name: str, gelu: str, batches: Any) -> None:
    """Open a side, say its logits, then compute for some time whenever asked."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import torch

    import vitbase
    from vitbase.data.normalize import normalize
    from vitbase.runtime import local_runtime
    from vitbase.shipping.running.ways import WAYS

    try:
        loaded = vitbase.load_model(weights)
        shape = (*loaded.spec.image_size, loaded.spec.in_channels)
        generator = torch.Generator().manual_seed(1)
        inputs = {
            batch: torch.randint(256, (batch, *shape), dtype=torch.uint8, generator=generator)
            for batch in batches
        }
        if side in TIMM:
            network = timm_network(weights, name, gelu, side == "timm compiled")
            prepare = {b: normalize(x, loaded.preprocess).contiguous() for b, x in inputs.items()}
            inputs = prepare
        else:
            runtime = local_runtime("CPU", precision="fp32")
            network = WAYS[side].network(loaded, runtime)
        logits = {batch: network(images).tolist() for batch, images in inputs.items()}
        connection.send(logits)
        while (asked := connection.recv()) is not None:
            batch, seconds = asked
            spent: list[float] = []
            end = time.perf_counter() + seconds
            while not spent or time.perf_counter() < end:
                started = time.perf_counter()
                network(inputs[batch])
                spent.append(time.perf_counter() - started)
            connection.send(statistics.fmean(spent))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}"[:200])


def measure_peak() -> float:
    """Operations per second of one large matrix product of torch's, the better of three."""
    import torch

    a = torch.randn(2048, 2048)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return float(2 * 2048**3 / min(times[1:]))


def compare(name: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    import numpy as np

    from vitbase.model.cost import count_flops
    from vitbase.model.zoo import variant_spec
    from vitbase.runtime import local_runtime
    from vitbase.shipping.running.ways import WAYS

    weights = folder / f"{name}.safetensors"
    make_weights(name, args.gelu, weights)
    runtime = local_runtime("CPU", precision="fp32")
    ours = [way for way in args.ways or WAYS if WAYS[way].problem(runtime) is None]
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Any] = {}
    processes = []
    reference: Any = None
    for side in (*TIMM, *ours):
        here, there = context.Pipe()
        process = context.Process(
            target=serve, args=(there, side, weights, name, args.gelu, args.batch), daemon=True
        )
        process.start()
        processes.append(process)
        told = here.recv()
        if isinstance(told, str):
            print(f"{side} failed: {told}", flush=True)
            continue
        reference = told if reference is None else reference
        precision = WAYS[side].precision if side in WAYS else "fp32"
        for batch in args.batch:
            expected, found = np.array(reference[batch]), np.array(told[batch])
            gap = abs(expected - found).max() / expected.std()
            assert gap < TOLERANCE[precision], f"{side} differs from timm: {gap}"
        sides[side] = here
    rows: list[dict[str, Any]] = []
    flops = count_flops(variant_spec(name)).forward
    for batch in args.batch:
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        peaks = []
        for number in range(args.rounds):
            peaks.append(measure_peak())
            order = list(sides)
            for side in reversed(order) if number % 2 else order:
                sides[side].send((batch, args.seconds))
                seconds[side].append(sides[side].recv())
        rows += report(name, batch, seconds, flops, max(peaks), args.gelu)
    for connection in sides.values():
        connection.send(None)
    for process in processes:
        process.join()
    return rows


def ratios(base: list[float], side: list[float]) -> list[float]:
    return [theirs / own for theirs, own in zip(base, side, strict=True)]


def report(
    name: str, batch: int, seconds: dict[str, list[float]], flops: float, peak: float, gelu: str
) -> list[dict[str, Any]]:
    import timm

    from vitbase.shipping.running.ways import WAYS

    best_timm = min(TIMM, key=lambda side: statistics.median(seconds.get(side, [1e9])))
    exact = [side for side in seconds if side in WAYS and WAYS[side].is_exact]
    print(f"\n{name}, {gelu} GELU, batch {batch}; timm's faster one: {best_timm}")
    print("| | images/s | of timm's faster one (rounds) | of eager | of the matmul peak |")
    print("|---|---|---|---|---|")
    rows = []
    for side, spent in sorted(seconds.items(), key=lambda pair: statistics.median(pair[1])):
        rate = batch / statistics.median(spent)
        found = ratios(seconds[best_timm], spent)
        of_eager = statistics.median(ratios(seconds["eager"], spent))
        part = f"{rate * flops / peak:.0%}" if side in {*exact, *TIMM} else ""
        print(
            f"| {side} | {rate:.2f} | {statistics.median(found):.2f} ({min(found):.2f} to "
            f"{max(found):.2f}) | {of_eager:.2f} | {part} |",
            flush=True,
        )
        rows.append(
            {
                "name": f"inference/{name}/gelu_{gelu}/batch{batch}/{side}",
                "value": rate,
                "unit": "images/s",
                "peer": f"timm {timm.__version__}, {best_timm}",
                "peer_value": batch / statistics.median(seconds[best_timm]),
                "ratio": statistics.median(found),
            }
        )
    return rows


def accuracy(weights: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    import vitbase
    from vitbase.errors import VitbaseError

    print(f"\n{weights}\n| file | MB | largest difference | same class | top-1 | lost |")
    print("|---|---|---|---|---|---|")
    rows = []
    cases = [
        (suffix, precision, images)
        for suffix in (".onnx", ".xml")
        for precision, images in (
            ("fp32", ()),
            ("fp16", ()),
            ("int8", ()),
            *((("int8", tuple(args.calibration)),) if args.calibration else ()),
        )
    ]
    for number, (suffix, precision, images) in enumerate(cases):
        what = f"{suffix} {precision}" + (" calibrated" if images else "")
        try:
            made = vitbase.export(
                weights,
                folder / f"{number}{suffix}",
                precision=precision,
                calibration=images,
                val_data_path=args.val_data_path,
            )
        except VitbaseError as error:
            print(f"| {what} | refused: {str(error).splitlines()[1:3]} |", flush=True)
            continue
        told = made.to_dict()
        print(
            f"| {what} | {sum(made.sizes) / 1e6:.2f} | {told['difference_in_deviations']:.1g} of "
            f"the deviation | {told['top1_agreement']:.2%} | {told['top1']:.2%} | "
            f"{100 * told['top1_lost']:.2f} points |",
            flush=True,
        )
        rows.append(
            {
                "name": f"inference/accuracy/{Path(weights).name}/{what}",
                "value": told["top1"],
                "unit": "top-1",
                "peer": "the model in float32",
                "peer_value": told["top1_of_the_model"],
                "ratio": told["top1"] / told["top1_of_the_model"],
            }
        )
    return rows


def profile(name: str, args: argparse.Namespace, folder: Path) -> None:
    """Print in which operators the time of an exported model goes."""
    import vitbase
    from vitbase.shipping.exporting.facts import Facts
    from vitbase.shipping.exporting.formats import FORMATS
    from vitbase.shipping.exporting.wanted import Wanted

    weights = folder / f"{name}.safetensors"
    make_weights(name, args.gelu, weights)
    loaded = vitbase.load_model(weights)
    print(f"\n{name}: where the time goes, batch {args.batch[0]}\n| | operators |\n|---|---|")
    for precision in ("fp32", "int8"):
        facts = Facts(name, precision, "inside", loaded.preprocess, 1000)  # type: ignore[arg-type]
        for form, shares in (("onnx", onnx_shares), ("openvino", openvino_shares)):
            path = folder / f"profiled{FORMATS[form].suffix}"
            FORMATS[form].write(Wanted(loaded, facts), path)
            spent = shares(path, args.batch[0], loaded.spec.image_size)
            total = sum(spent.values())
            told = ", ".join(f"{op} {part / total:.1%}" for op, part in spent.most_common(7))
            print(f"| {form} {precision} | {told} |", flush=True)


def random_images(batch: int, size: tuple[int, int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3)).astype(np.uint8)


def onnx_shares(path: Path, batch: int, size: tuple[int, int]) -> Counter[str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(6):
        session.run(None, {"images": random_images(batch, size)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    spent: Counter[str] = Counter()
    for event in nodes[len(nodes) // 3 :]:  # without the first two runs
        spent[event["args"]["op_name"]] += event["dur"]
    return spent


def openvino_shares(path: Path, batch: int, size: tuple[int, int]) -> Counter[str]:
    from vitbase.shipping.exporting.openvino_files import import_openvino

    options = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"}
    model = import_openvino().Core().compile_model(path, "CPU", options)
    request = model.create_infer_request()
    spent: Counter[str] = Counter()
    for number in range(6):
        request.infer({0: random_images(batch, size)})
        for entry in request.get_profiling_info() if number > 1 else ():
            spent[entry.node_type] += entry.real_time.total_seconds()
    return spent


def peers() -> Iterator[str]:
    from train_step import PEERS

    yield from PEERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["ViT-S_16"], choices=[*peers()])
    parser.add_argument("--ways", nargs="*", default=[], help="of ours; default: all there are")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--gelu", default="erf", choices=["tanh", "erf"], help="erf: timm's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--profile", action="store_true", help="where the time goes, and no table")
    parser.add_argument("--weights", nargs="*", default=[], help="whose accuracy is measured")
    parser.add_argument("--val_data_path", help="images for it; default: the run's own")
    parser.add_argument("--calibration", nargs="*", default=[], help="images for int8, besides")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ.setdefault("VITBASE_CACHE", str(folder / "cache"))
        for name in args.models:
            if args.profile:
                profile(name, args, folder)
            else:
                rows += compare(name, args, folder)
        for weights in args.weights:
            rows += accuracy(weights, args, folder)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
