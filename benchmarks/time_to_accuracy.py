"""Accuracy on Fashion-MNIST's 10,000 test images after minutes of wall time, beside a plain loop.

    python benchmarks/time_to_accuracy.py /usr/share/datasets/fashion-mnist [--json FILE]

Ours is the command `vitbase train fashion_full`, started as a user would; its clock runs from
the start of the command to its exit, so it holds imports, decoding, checkpoints and, after the
last epoch, the evaluation.
The epochs of each budget are fixed (they are data, below), so that a run does not depend on the
machine's speed; the wall time it took is printed. The peer is what one writes in an afternoon:
torch's own transformer layers on a convolutional stem, AdamW, random flips, a cosine over the
time it is given, without imports and reading on its clock. Settings of both were chosen on
held-out training images.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Wall seconds -> epochs of recipe `fashion_full` that fit into them on two cores.
EPOCHS = {120: 3, 300: 9}


def run_ours(data_path: str, epochs: int, seed: int) -> tuple[float, float]:
    """Return (top-1, wall seconds) of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "vitbase", "train", "fashion_full"]
        options = {
            "data_path": data_path,
            "epoch_size": epochs,
            "seed": seed,
            "eval_every_epochs": epochs,
            "warmup_epochs": epochs / 10,
            "output_dir": f"{folder}/run",
        }
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        rows = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        evaluations = [json.loads(row) for row in rows if '"eval_top1"' in row]
    return evaluations[-1]["eval_top1"], seconds


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

    def read(kind: str, header: int) -> np.ndarray:
        path = Path(data_path, f"{split}-{kind}-ubyte.gz")
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()

    pixels = torch.from_numpy(read("images-idx3", 16)).view(-1, 1, 28, 28).float()
    return (pixels / 255 - 0.286) / 0.353, torch.from_numpy(read("labels-idx1", 8)).long()


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
    parser.add_argument("--budgets", type=int, nargs="+", default=list(EPOCHS), help="seconds")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, seeds 0, 1, ...")
    parser.add_argument("--json", help="also write the table to this file")
    options = parser.parse_args()
    rows = []
    print(f"{'budget':>7} {'epochs':>7} {'ours':>8} {'took':>7} {'plain loop':>11} {'points':>7}")
    for budget in options.budgets:
        ours, plain, times = [], [], []
        for seed in range(options.repeats):
            top1, seconds = run_ours(options.data_path, EPOCHS[budget], seed)
            ours.append(top1)
            times.append(seconds)
            plain.append(run_plain(options.data_path, budget, seed))
        top1, peer = statistics.median(ours), statistics.median(plain)
        print(
            f"{budget:>5} s {EPOCHS[budget]:>7} {top1:>8.2%} {statistics.median(times):>5.0f} s "
            f"{peer:>11.2%} {100 * (top1 - peer):>+7.2f}   "
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
