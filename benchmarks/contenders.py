"""The input pipelines that input.py compares: each yields numbers of images, for ever.

Each imports what it needs by itself: they run under different Pythons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vitbase_batches(
    folder: str, pipeline: str, workers: int, as_floats: bool, processes: bool
) -> Iterator[int]:
    from itertools import count

    from vitbase.config.learning import AugmentSection
    from vitbase.config.preprocess import default_preprocess
    from vitbase.data.augment import EvalTransform, TrainTransform
    from vitbase.data.loader import EvalLoader, TrainLoader
    from vitbase.data.normalize import normalize
    from vitbase.sources.open import open_source

    preprocess = default_preprocess(SIZE, SIZE, 3)
    if "bicubic" in pipeline:
        preprocess = preprocess.model_copy(update={"interpolation": "bicubic"})
    source = open_source(folder, "train", "folder")
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
    passes: Iterator[Any]
    if pipeline == "eval":
        evaluated = EvalLoader(source, EvalTransform(preprocess), **options)
        passes = (iter(evaluated) for _ in count())
    else:
        augment: dict[str, Any] = {}
        if "randaugment" in pipeline:
            augment = {"policy": "randaugment_timm", "randaugment_magnitude": 9.0}
        transform = TrainTransform(preprocess, AugmentSection(**augment))
        trained = TrainLoader(source, transform, seed=0, processes=processes, **options)
        passes = map(trained.epoch, count())
    for batches in passes:
        for batch in batches:
            if as_floats:
                normalize(batch.images, preprocess)
            yield len(batch.labels)


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


def torchvision_batches(
    folder: str, pipeline: str, workers: int, new: bool, decoder: str = "torchvision"
) -> Iterator[int]:
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
    if decoder == "TorchCodec":
        from torchcodec.decoders import decode_image as decode_codec

        read["loader"] = decode_codec
    elif new:
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


def spdl_batches(folder: str, pipeline: str, workers: int) -> Iterator[int]:
    """FFmpeg decodes, crops, resizes (bilinear, which antialiases) and flips in SPDL's threads."""
    import random

    import torch
    from spdl import io
    from spdl.pipeline import PipelineBuilder

    from vitbase.data.augment import draw_window

    if "randaugment" in pipeline:
        raise SystemExit("not compared")
    paths = [str(path) for path in image_files(folder)]
    mean, std = (255 * torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def source() -> Iterator[str]:
        while True:
            if pipeline != "eval":
                random.shuffle(paths)
            yield from paths

    def load(path: str) -> Any:
        packets = io.demux_image(path)
        height, width = packets.height, packets.width
        if pipeline == "eval":
            scale = 256 / min(height, width)
            steps = f"scale={round(width * scale)}:{round(height * scale)}:flags=bilinear"
            steps += f",crop={SIZE}:{SIZE}"
        else:
            window: Any = draw_window((height, width), (0.08, 1.0), random)  # type: ignore[arg-type]
            top, left, rows, columns = window
            steps = f"crop={columns}:{rows}:{left}:{top},scale={SIZE}:{SIZE}:flags=bilinear"
            steps += ",hflip" if random.random() < 0.5 else ""
        return io.decode_packets(packets, filter_desc=f"{steps},format=pix_fmts=rgb24")

    def batch(frames: list[Any]) -> torch.Tensor:
        pixels = io.to_torch(io.convert_frames(frames))
        return (pixels.permute(0, 3, 1, 2).float() - mean) / std

    builder = PipelineBuilder().add_source(source()).pipe(load, concurrency=workers)
    flow = (
        builder.aggregate(BATCH).pipe(batch).add_sink(3).build(num_threads=workers, max_failures=0)
    )
    with flow.auto_stop():
        for images in flow:
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

    from vitbase.data.decode import decode as decode_any

    files = [path.read_bytes() for path in image_files(folder)]

    def decode(number: int) -> None:
        data = files[number % len(files)]
        if data.startswith(b"\xff\xd8"):
            simplejpeg.decode_jpeg(data)
        else:
            decode_any(data)

    at = 0
    with ThreadPoolExecutor(workers) as pool:
        while True:
            list(pool.map(decode, range(at, at + BATCH)))
            at += BATCH
            yield BATCH


def image_files(folder: str) -> list[Path]:
    """Return the image files below a folder, by the suffixes that vitbase takes, sorted."""
    from vitbase.sources.folders import is_image_name

    return sorted(path for path in Path(folder).rglob("*.*") if is_image_name(path.name))


def batches_of(name: str, folder: str, pipeline: str, workers: int) -> Iterator[int]:
    makers: dict[str, Callable[[], Iterator[int]]] = {
        "timm": lambda: timm_batches(folder, pipeline, workers, True),
        "timm uint8": lambda: timm_batches(folder, pipeline, workers, False),
        "torchvision PIL": lambda: torchvision_batches(folder, pipeline, workers, False),
        "torchvision v2": lambda: torchvision_batches(folder, pipeline, workers, True),
        "TorchCodec": lambda: torchvision_batches(folder, pipeline, workers, True, "TorchCodec"),
        "SPDL": lambda: spdl_batches(folder, pipeline, workers),
        "DALI": lambda: dali_batches(folder, pipeline, workers),
        "MindSpore": lambda: mindspore_batches(folder, pipeline, workers),
        "decode": lambda: decode_batches(folder, workers),
    }
    if name.startswith("vitbase"):
        given = (not name.endswith("uint8"), "processes" in name)
        return vitbase_batches(folder, pipeline, workers, *given)
    return makers[name]()
