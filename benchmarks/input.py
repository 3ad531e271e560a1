"""Speed of the input pipeline beside timm's, torchvision's, DALI's and MindSpore's.

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

DALI and MindSpore come with requirements of their own: name a Python that has them in
`DALI_PYTHON` and `MINDSPORE_PYTHON`.

Without `--folder`, photographs are made: the 1/f spectrum of natural images, 500 x 375 pixels, at
the qualities that give files of 70 KB and of 110 KB (ImageNet's mean).
"""

from __future__ import annotations

import argparse
import io
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, UINT8 = "vitbase", "vitbase uint8"
CONTENDERS = (
    "vitbase",
    "vitbase uint8",
    "timm",
    "timm uint8",
    "torchvision PIL",
    "torchvision v2",
    "DALI",
    "MindSpore",
    "decode",
)
PIPELINES = ("train", "randaugment", "randaugment bicubic", "eval")
PYTHONS = {"DALI": "DALI_PYTHON", "MindSpore": "MINDSPORE_PYTHON"}


# The corpora


def make_corpus(folder: Path, kilobytes: int, count: int = 256) -> Path:
    """Write photo-like JPEGs of one size in bytes, in two class folders."""
    import numpy as np

    generator = np.random.default_rng(kilobytes)
    for number in range(count):
        height, width = (375, 500) if number % 4 else (500, 375)
        place = folder / f"class_{number % 2}" / f"{number:05}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_encode(_photo(generator, height, width), 1000 * kilobytes))
    return folder


def _photo(generator: Any, height: int, width: int) -> Any:
    import numpy as np

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def plane(deviation: float) -> Any:
        noise = generator.normal(size=(2, *frequency.shape))
        values = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency, (height, width))
        return values / values.std() * deviation

    luma, blue, red = plane(50) + 120, plane(12), plane(12)
    channels = (luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue)
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def _encode(pixels: Any, wanted: int) -> bytes:
    """Encode at the quality that comes nearest to a size in bytes."""
    from PIL import Image

    low, high, best = 20, 99, b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if abs(len(data) - wanted) < abs(len(best) - wanted):
            best = data
        low, high = (quality + 1, high) if len(data) < wanted else (low, quality - 1)
    return best


# The contenders: each yields numbers of images, for ever


def vitbase_batches(folder: str, pipeline: str, workers: int, as_floats: bool) -> Iterator[int]:
    from vitbase.data.augment import EvalTransform, TrainTransform, normalize
    from vitbase.data.kinds.folders import read_folder
    from vitbase.data.loader import EvalLoader, TrainLoader
    from vitbase.options import AugmentSection
    from vitbase.preprocess import default_preprocess

    preprocess = default_preprocess(SIZE, SIZE, 3)
    if "bicubic" in pipeline:
        preprocess = preprocess.model_copy(update={"interpolation": "bicubic"})
    source = read_folder(Path(folder), "folder")
    epoch = 0
    while True:
        if pipeline == "eval":
            loader: Any = EvalLoader(
                source, EvalTransform(preprocess), batch_size=BATCH, num_workers=workers
            )
            batches = iter(loader)
        else:
            options: dict[str, Any] = {}
            if "randaugment" in pipeline:
                options = {"policy": "randaugment_timm", "randaugment_magnitude": 9.0}
            transform = TrainTransform(preprocess, AugmentSection(**options))
            loader = TrainLoader(source, transform, seed=0, batch_size=BATCH, num_workers=workers)
            batches = loader.epoch(epoch)
        for batch in batches:
            if as_floats:
                normalize(batch.images, preprocess)
            yield len(batch.labels)
        epoch += 1


def timm_batches(folder: str, pipeline: str, workers: int, as_floats: bool) -> Iterator[int]:
    import torch
    from timm.data import create_dataset, create_loader

    training = pipeline != "eval"
    loader = create_loader(
        create_dataset("", folder),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=training,
        use_prefetcher=True,
        no_aug=False,
        re_prob=0.0,
        color_jitter=None,
        auto_augment="rand-m9-n2-inc1" if "randaugment" in pipeline else None,
        interpolation="bicubic" if "bicubic" in pipeline else "bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        crop_pct=0.875,
        device=torch.device("cpu"),
        persistent_workers=True,
        pin_memory=False,
    )
    if not as_floats:
        loader = loader.loader  # what its prefetcher gets
    while True:
        for images, _ in loader:
            yield len(images)


def torchvision_batches(folder: str, pipeline: str, workers: int, new: bool) -> Iterator[int]:
    import torch
    from torchvision import transforms as v1
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import v2

    kit: Any = v2 if new else v1
    between = (
        v2.InterpolationMode.BICUBIC if "bicubic" in pipeline else v2.InterpolationMode.BILINEAR
    )
    if pipeline == "eval":
        steps = [kit.Resize(256, antialias=True), kit.CenterCrop(SIZE)]
    else:
        steps = [kit.RandomResizedCrop(SIZE, interpolation=between), kit.RandomHorizontalFlip()]
        if "randaugment" in pipeline:
            steps.append(kit.RandAugment(2, 9, interpolation=between))
    if new:
        steps.append(v2.ToDtype(torch.float32, scale=True))
    else:
        steps.append(v1.PILToTensor())
        steps.append(v1.ConvertImageDtype(torch.float32))
    transform = kit.Compose([*steps, kit.Normalize(MEAN, STD)])
    read: dict[str, Any] = {}
    if new:
        read["loader"] = lambda path: decode_image(read_file(path), ImageReadMode.RGB)
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, transform, **read),
        batch_size=BATCH,
        shuffle=pipeline != "eval",
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for images, _ in loader:
            yield len(images)


def dali_batches(folder: str, pipeline: str, workers: int) -> Iterator[int]:
    from nvidia.dali import fn, pipeline_def, types

    if "randaugment" in pipeline:
        raise SystemExit("not compared")

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def flow() -> Any:
        files, labels = fn.readers.file(file_root=folder, random_shuffle=True, name="reader")
        if pipeline == "eval":
            images = fn.decoders.image(files, device="cpu")
            images = fn.resize(images, resize_shorter=256, antialias=True)
            mirror: Any = 0
        else:
            images = fn.decoders.image_random_crop(
                files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[0.75, 4 / 3]
            )
            images = fn.resize(images, resize_x=SIZE, resize_y=SIZE, antialias=True)
            mirror = fn.random.coin_flip()
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            crop=(SIZE, SIZE),
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
            mirror=mirror,
        )
        return images, labels

    running = flow()
    running.build()
    while True:
        images, _ = running.run()
        yield len(images)


def mindspore_batches(folder: str, pipeline: str, workers: int) -> Iterator[int]:
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    ds.config.set_num_parallel_workers(workers)
    ds.config.set_enable_shared_mem(False)
    images = ds.ImageFolderDataset(folder, shuffle=pipeline != "eval", num_parallel_workers=workers)
    normalize = vision.Normalize([255 * m for m in MEAN], [255 * s for s in STD])
    if pipeline == "eval":
        steps = [vision.Decode(), vision.Resize(256), vision.CenterCrop(SIZE)]
    else:
        between = vision.Inter.BICUBIC if "bicubic" in pipeline else vision.Inter.BILINEAR
        crop = vision.RandomCropDecodeResize(SIZE, interpolation=between)
        steps = [crop, vision.RandomHorizontalFlip()]
        if "randaugment" in pipeline:
            steps.append(vision.RandAugment(2, 9, interpolation=between))
    images = images.map(
        [*steps, normalize, vision.HWC2CHW()], "image", num_parallel_workers=workers
    )
    images = images.batch(BATCH, drop_remainder=True)
    while True:
        for batch in images.create_tuple_iterator(output_numpy=True, num_epochs=1):
            yield len(batch[0])


def decode_batches(folder: str, workers: int) -> Iterator[int]:
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    files = [path.read_bytes() for path in sorted(Path(folder).rglob("*.JPEG"))]

    def decode(number: int) -> None:
        simplejpeg.decode_jpeg(files[number % len(files)])

    at = 0
    with ThreadPoolExecutor(workers) as pool:
        while True:
            list(pool.map(decode, range(at, at + BATCH)))
            at += BATCH
            yield BATCH


def batches_of(name: str, folder: str, pipeline: str, workers: int) -> Iterator[int]:
    makers: dict[str, Callable[[], Iterator[int]]] = {
        "vitbase": lambda: vitbase_batches(folder, pipeline, workers, True),
        "vitbase uint8": lambda: vitbase_batches(folder, pipeline, workers, False),
        "timm": lambda: timm_batches(folder, pipeline, workers, True),
        "timm uint8": lambda: timm_batches(folder, pipeline, workers, False),
        "torchvision PIL": lambda: torchvision_batches(folder, pipeline, workers, False),
        "torchvision v2": lambda: torchvision_batches(folder, pipeline, workers, True),
        "DALI": lambda: dali_batches(folder, pipeline, workers),
        "MindSpore": lambda: mindspore_batches(folder, pipeline, workers),
        "decode": lambda: decode_batches(folder, workers),
    }
    return makers[name]()


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
        sys.stderr.write(f"{name}, {pipeline}: {done.stderr.strip().splitlines()[-1:]}\n")
        return {}
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare(
    corpus: str, folder: str, pipeline: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Let the contenders take turns; return and print a row for each and each number of cores."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name in args.contenders:
            for cores in args.cores:
                result = run_one(name, folder, pipeline, cores, args.seconds)
                if result:
                    found.setdefault((name, cores), []).append(result)
    print(f"\n{corpus}, {pipeline}\n")
    print(f"| contender | cores | images/s | per core | memory | {OURS} / it (rounds) | scaling |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (name, cores), results in found.items():
        rates = _rates(results)
        # What a device is sent is compared with what a device is sent.
        ours = _rates(found.get((UINT8 if name.endswith("uint8") else OURS, cores), []))
        fewest = _rates(found.get((name, min(args.cores)), []))
        memory = max(result["megabytes"] for result in results)
        rate = statistics.median(rates)
        print(
            f"| {name} | {cores} | {rate:.0f} | {rate / cores:.0f} | {memory:.0f} MB | "
            f"{_ratio(ours, rates)} | {_ratio(rates, fewest)} |",
            flush=True,
        )
        rows.append(
            {
                "name": f"{corpus}, {pipeline}, {cores} cores",
                "value": statistics.median(ours) if ours else None,
                "unit": "images/s",
                "peer": name,
                "peer_value": rate,
                "ratio": statistics.median(map(operator.truediv, ours, rates)) if ours else None,
            }
        )
    return rows


def _rates(results: list[dict[str, float]]) -> list[float]:
    return [result["images_per_second"] for result in results]


def _ratio(rates: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(rates, others, strict=False)]
    if not ratios or rates == others:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="class folders of JPEGs; none: made photographs")
    parser.add_argument("--kilobytes", type=int, nargs="*", default=[70, 110])
    parser.add_argument("--pipelines", nargs="*", default=list(PIPELINES), choices=PIPELINES)
    parser.add_argument("--cores", type=int, nargs="*", default=[2])
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        result = measure(args.run, args.folder, args.pipelines[0], args.cores[0], args.seconds)
        print(json.dumps(result), flush=True)
        os._exit(0)  # the workers of some contenders do not end by themselves
    rows = []
    with tempfile.TemporaryDirectory() as made:
        corpora = {"folder": args.folder} if args.folder else {}
        for kilobytes in [] if args.folder else args.kilobytes:
            name = f"{kilobytes} KB"
            corpora[name] = str(make_corpus(Path(made) / name.replace(" ", "_"), kilobytes))
        for corpus, folder in corpora.items():
            for pipeline in args.pipelines:
                rows += compare(corpus, folder, pipeline, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
