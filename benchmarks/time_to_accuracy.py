"""Accuracy on Fashion-MNIST's 10,000 test images after minutes of wall time, beside a plain loop.

    python benchmarks/time_to_accuracy.py /usr/share/datasets/fashion-mnist [--json FILE]

Ours is the command `vitbase train fashion_full`, started as a user would; its clock runs from
the start of the command to its exit, so it holds imports, decoding, checkpoints and, after the
last epoch, the evaluation.
The epochs of each budget are fixed (rungs of ladder.py), so that a run does not depend on the
machine's speed; the wall time it took is printed. The peer is what one writes in an afternoon:
torch's own transformer layers on a convolutional stem, AdamW, random flips, a cosine over the
time it is given, without imports and reading on its clock. Settings of both were chosen on
held-out training images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ladder import RUNGS, read_idx, run
from torch import nn

# Wall seconds -> the rung of ladder.py that fits into them on two cores.
RUNG_OF = {120: "two minutes", 300: "five minutes"}


class PlainViT(nn.Module):
    """Three convolutions to 4x4 tokens, three of torch's transformer layers, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Conv2d(64, 128, 7, stride=7),
        )
        self.positions = nn.Parameter(torch.randn(1, 16, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(
            128, 4, 256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def read_split(data_path: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images [N, 1, 28, 28] and labels [N]."""
    images, labels = read_idx(data_path, split)
    pixels = torch.from_numpy(images.copy())[:, None].float()
    return (pixels / 255 - 0.286) / 0.353, torch.from_numpy(labels.copy()).long()


def run_plain(data_path: str, budget: float, seed: int) -> float:
    """Return the plain loop's top-1 after `budget` seconds of training and evaluation."""
    images, labels = read_split(data_path, "train")
    torch.manual_seed(seed)
    model = PlainViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    training_budget = budget - 4  # what its evaluation of 10,000 images takes
    started = time.perf_counter()
    step = 0
    while (elapsed := time.perf_counter() - started) < training_budget:
        rows = torch.randint(len(images), (64,))
        batch = images[rows]
        flipped = torch.rand(64) < 0.5
        batch[flipped] = batch[flipped].flip(-1)
        progress = elapsed / training_budget
        warmup = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * warmup * 0.5 * (1 + np.cos(np.pi * progress))
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels[rows]).backward()
        optimizer.step()
        step += 1
    images, labels = read_split(data_path, "t10k")
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(dim=1) for part in images.split(500)])
    return float((found == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path", help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(RUNG_OF), help="seconds")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, seeds 0, 1, ...")
    parser.add_argument("--json", help="also write the table to this file")
    options = parser.parse_args()
    rows = []
    print(f"{'budget':>7} {'epochs':>7} {'ours':>8} {'took':>7} {'plain loop':>11} {'points':>7}")
    for budget in options.budgets:
        rung = RUNGS[RUNG_OF[budget]]
        ours, plain, times = [], [], []
        for seed in range(options.repeats):
            done = run(rung, seed, {"data_path": options.data_path}, threads=None)
            ours.append(done.top1)
            times.append(done.wall)
            plain.append(run_plain(options.data_path, budget, seed))
        top1, peer = statistics.median(ours), statistics.median(plain)
        print(
            f"{budget:>5} s {rung.options['epoch_size']!s:>7} {top1:>8.2%} "
            f"{statistics.median(times):>5.0f} s {peer:>11.2%} {100 * (top1 - peer):>+7.2f}   "
            f"(ours {min(ours):.2%} to {max(ours):.2%}, plain {min(plain):.2%} to {max(plain):.2%})"
        )
        rows.append(
            {
                "name": f"fashion_full top-1 after {budget} s",
                "value": top1,
                "unit": "top-1",
                "peer": "plain PyTorch loop",
                "peer_value": peer,
                "ratio": top1 / peer,
            }
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
