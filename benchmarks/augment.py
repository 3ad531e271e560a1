"""Speed of augmentation beside Pillow's, as timm calls it, and torchvision's tensors.

    python benchmarks/augment.py
    python benchmarks/augment.py --size 384 --rounds 9 --json augment.json

Each operation, and each policy with its own random choices, on a photo-like uint8 image of 224 x
224 pixels in RGB; one thread, in one process, taking turns within every round. Ours begins and ends
with an array, Pillow with an image of its own, torchvision (transforms.v2) with a uint8 tensor. A
time is the median over rounds, the ratio the median of the ratios within a round.

`threads` runs RandAugment in as many threads as there are cores: how much faster than in one says
how much of it runs without the interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm_augment
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from vitbase.config.preprocess import default_preprocess
from vitbase.data.order import sample_generator
from vitbase.data.policies import operations, warps
from vitbase.data.policies.policies import ColorJitter, ThreeAugment, apply_steps
from vitbase.data.policies.randaugment import RandAugment

FILL = (124, 116, 104)
Call = Callable[[], Any]
Sides = tuple[Call, Call, Call | None]  # ours, Pillow's, torchvision's


def photo(size: int) -> np.ndarray:
    """Return pixels with the 1/f spectrum of photographs."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(3):
        noise = generator.normal(size=(2, *frequency.shape))
        plane = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency, (size, size))
        planes.append(plane / plane.std() * 50 + 120)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def colour_operations(
    pixels: np.ndarray, image: Image.Image, tensor: torch.Tensor
) -> dict[str, Sides]:
    """Return the sides of each operation on colours."""
    pale = (pixels // 2 + 40).astype(np.uint8)  # an image that autocontrast changes
    pale_image, pale_tensor = Image.fromarray(pale), torch.from_numpy(pale).permute(2, 0, 1)
    factors = {
        "brightness": (operations.brightness, timm_augment.brightness, tvf.adjust_brightness),
        "contrast": (operations.contrast, timm_augment.contrast, tvf.adjust_contrast),
        "saturation": (operations.saturation, timm_augment.color, tvf.adjust_saturation),
        "sharpness": (operations.sharpness, timm_augment.sharpness, tvf.adjust_sharpness),
    }
    found: dict[str, Sides] = {
        "invert": (
            lambda: operations.invert(pixels),
            lambda: timm_augment.invert(image),
            lambda: tvf.invert(tensor),
        ),
        "posterize": (
            lambda: operations.posterize(pixels, 3),
            lambda: timm_augment.posterize(image, 3),
            lambda: tvf.posterize(tensor, 3),
        ),
        "solarize": (
            lambda: operations.solarize(pixels, 100),
            lambda: timm_augment.solarize(image, 100),
            lambda: tvf.solarize(tensor, 100),
        ),
        "solarize_add": (
            lambda: operations.solarize_add(pixels, 90),
            lambda: timm_augment.solarize_add(image, 90),
            None,
        ),
        "autocontrast": (
            lambda: operations.autocontrast(pale),
            lambda: timm_augment.auto_contrast(pale_image),
            lambda: tvf.autocontrast(pale_tensor),
        ),
        "equalize": (
            lambda: operations.equalize(pixels),
            lambda: timm_augment.equalize(image),
            lambda: tvf.equalize(tensor),
        ),
    }
    for name, (ours, theirs, others) in factors.items():
        found[name] = (
            lambda f=ours: f(pixels, 1.7),
            lambda f=theirs: f(image, 1.7),
            lambda f=others: f(tensor, 1.7),
        )
    found["grayscale"] = (
        lambda: operations.grayscale(pixels),
        lambda: timm_augment.desaturate(image, 1.0),
        lambda: tvf.rgb_to_grayscale(tensor, 3),
    )
    found["blur"] = (
        lambda: operations.blur(pixels, 1.1),
        lambda: image.filter(ImageFilter.GaussianBlur(1.1)),
        lambda: tvf.gaussian_blur(tensor, [9, 9], [1.1, 1.1]),
    )
    return found


def moves(pixels: np.ndarray, image: Image.Image, tensor: torch.Tensor) -> dict[str, Sides]:
    """Return the sides of each shear, translation and rotation."""
    found: dict[str, Sides] = {}
    moved = 0.4137 * len(pixels)
    zero: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    for resampling in ("bilinear", "bicubic"):
        pillow = {"resample": Image.Resampling[resampling.upper()], "fillcolor": FILL}
        others: dict[str, Any] = {
            "interpolation": InterpolationMode(resampling),
            "fill": list(FILL),
        }

        def affine(others: dict[str, Any] = others, **changed: Any) -> Call | None:
            if others["interpolation"] == InterpolationMode.BICUBIC:
                return None  # not for tensors
            return lambda: tvf.affine(tensor, **{**zero, **changed}, **others)

        found |= {
            f"shear_x, {resampling}": (
                lambda r=resampling: warps.shear(pixels, "x", 0.27, FILL, r),
                lambda p=pillow: timm_augment.shear_x(image, 0.27, **p),
                affine(shear=[15.1, 0.0], center=[0, 0]),
            ),
            f"shear_y, {resampling}": (
                lambda r=resampling: warps.shear(pixels, "y", 0.27, FILL, r),
                lambda p=pillow: timm_augment.shear_y(image, 0.27, **p),
                affine(shear=[0.0, 15.1], center=[0, 0]),
            ),
            f"translate_x, {resampling}": (
                lambda r=resampling: warps.translate(pixels, "x", moved, FILL, r),
                lambda p=pillow: timm_augment.translate_x_abs(image, moved, **p),
                affine(translate=[moved, 0]),
            ),
            f"translate_y, {resampling}": (
                lambda r=resampling: warps.translate(pixels, "y", moved, FILL, r),
                lambda p=pillow: timm_augment.translate_y_abs(image, moved, **p),
                affine(translate=[0, moved]),
            ),
            f"rotate, {resampling}": (
                lambda r=resampling: warps.rotate(pixels, 27, FILL, r),
                lambda p=pillow: timm_augment.rotate(image, 27, **p),
                affine(angle=27.0),
            ),
        }
    return found


def policies(pixels: np.ndarray, image: Image.Image, tensor: torch.Tensor) -> dict[str, Sides]:
    """Return the sides of each policy; every call makes choices of its own."""
    preprocess = default_preprocess(*pixels.shape[:2], 3)
    position = iter(range(10**9))

    def drawn(policy: Any, apply: bool = False) -> Call:
        def call() -> None:
            generator = sample_generator(0, 0, next(position))
            if apply:
                apply_steps(pixels, policy.draw(generator), FILL)
            else:
                policy(pixels, generator)

        return call

    def timms(words: str, resampling: str | None) -> Call:
        hparams: dict[str, Any] = {"img_mean": FILL}
        if resampling:
            hparams["interpolation"] = Image.Resampling[resampling.upper()]
        policy = timm_augment.rand_augment_transform(words, hparams)
        return lambda: policy(image)

    def three_augments() -> Call:
        first = [
            v2.Grayscale(3),
            lambda image: timm_augment.solarize(image, 128),
            lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2))),
        ]
        jitter = v2.ColorJitter(0.3, 0.3, 0.3)
        return lambda: jitter(random.choice(first)(image))

    def build(magnitude: int, **options: Any) -> Call:
        return drawn(RandAugment("timm", 2, magnitude, preprocess=preprocess, **options))

    torchvisions = v2.RandAugment(2, 9)
    jitter = v2.ColorJitter(0.3, 0.3, 0.3)
    return {
        # Not above 9, and without a spread: at 10 timm asks for 0 bits, which Pillow 13 refuses.
        "RandAugment(2, 9) of timm": (build(9), timms("rand-m9-inc1", None), None),
        "the same, bilinear": (
            build(9, interpolation="bilinear"),
            timms("rand-m9-inc1", "bilinear"),
            None,
        ),
        "RandAugment(2, 9) of torchvision": (
            drawn(RandAugment("torchvision", 2, 9, preprocess=preprocess)),
            lambda: torchvisions(image),
            lambda: torchvisions(tensor),
        ),
        "3-Augment": (drawn(ThreeAugment(0.3), apply=True), three_augments(), None),
        "colour jitter 0.3": (
            drawn(ColorJitter(0.3, 0.3, 0.3), apply=True),
            lambda: jitter(image),
            lambda: jitter(tensor),
        ),
    }


def seconds_for(call: Call, calls: int) -> float:
    """Return the seconds that one of some calls takes."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def compare(name: str, sides: Sides, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Let the sides take turns; print and return a row for each peer."""
    times: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for side, found in zip(sides, times, strict=True):
            if side is not None:
                seconds = seconds_for(side, calls)
                if number:  # the first round warms up
                    found.append(1e6 * seconds)
    cells, rows = [f"{statistics.median(times[0]):.0f}"], []
    for peer, theirs in zip(("Pillow", "torchvision"), times[1:], strict=True):
        if not theirs:
            cells += ["", ""]
            continue
        ratio = statistics.median(b / a for a, b in zip(times[0], theirs, strict=True))
        cells += [f"{statistics.median(theirs):.0f}", f"{ratio:.2f}"]
        rows.append(
            {
                "name": name,
                "value": statistics.median(times[0]),
                "unit": "microseconds",
                "peer": peer,
                "peer_value": statistics.median(theirs),
                "ratio": ratio,
            }
        )
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return rows


def compare_threads(pixels: np.ndarray, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Print how much faster RandAugment is in several threads than in one."""
    policy = RandAugment("timm", 2, 9, preprocess=default_preprocess(*pixels.shape[:2], 3))
    threads = len(os.sched_getaffinity(0))

    def work(number: int) -> None:
        for position in range(calls):
            policy(pixels, sample_generator(number, 0, position))

    gains = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            alone = seconds_for(lambda: [work(number) for number in range(threads)], 1)
            gains.append(alone / seconds_for(lambda: list(pool.map(work, range(threads))), 1))
    gain = statistics.median(gains)
    print(f"\nRandAugment in {threads} threads: {gain:.2f} times as fast as in one")
    row = {"name": f"threads {threads}", "value": gain, "unit": "times", "peer": "one thread"}
    return [{**row, "peer_value": 1.0, "ratio": gain}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20, help="of an operation in a round")
    parser.add_argument("--policy_calls", type=int, default=300, help="of a policy in a round")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    pixels = photo(args.size)
    image = Image.fromarray(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    rows = []
    print("| microseconds | vitbase | Pillow | ratio | torchvision | ratio |")
    print("|---|---|---|---|---|---|")
    for build in (colour_operations, moves):
        for name, sides in build(pixels, image, tensor).items():
            rows += compare(name, sides, args.rounds, args.calls)
    for name, sides in policies(pixels, image, tensor).items():
        rows += compare(name, sides, args.rounds, args.policy_calls)
    rows += compare_threads(pixels, args.rounds, args.policy_calls)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
