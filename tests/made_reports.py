"""Run folders as training and evaluation leave them, of any number of classes, without either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = '<script>alert(1)</script>" onload="x" $\\frac{1}{2}$ \u202e\x1b[2J & \'é\' 猫'
"""A name that would be markup, formula, or a terminal's command."""


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def made_rows(epochs: int, steps: int, every: int, skill: float = 0.8) -> list[dict[str, Any]]:
    """Return rows of a run that learns."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in range(every, steps + 1, every):
            done = ((epoch - 1) * steps + step) / (epochs * steps)
            rows.append(
                {
                    "step": (epoch - 1) * steps + step,
                    "epoch": epoch,
                    "loss": 0.4 + 6.5 * np.exp(-5 * done) + 0.1 * rng.random(),
                    "lr": 0.001 * (1 + np.cos(np.pi * done)) / 2,
                    "images_per_second": 2400 + 100 * rng.random(),
                    "data_wait_fraction": 0.02 * rng.random(),
                    "gradient_norm": 1.0,
                }
            )
        top1 = skill * (1 - np.exp(-5 * epoch / epochs))
        scores = {"eval_top1": top1, "eval_top5": (1 + top1) / 2, "eval_loss": 4 * (1 - top1)}
        counts = {"eval_images": 50_000, "eval_unreadable": 0, "eval_seconds": 20.0}
        rows.append({"step": epoch * steps, "epoch": epoch, **scores, **counts})
    return rows


def made_evaluation(names: list[str], each: int = 50, skill: float = 0.8) -> dict[str, Any]:
    """Return what `report/evaluation.json` holds, of a model that mixes neighbours up."""
    rng = np.random.default_rng(1)
    classes = len(names)
    true = np.repeat(np.arange(classes), each)
    ease = np.clip(skill + 0.25 * rng.standard_normal(classes), 0.1, 0.99)
    near = (true + rng.choice([-2, -1, 1, 2], len(true))) % classes
    far = rng.integers(0, classes, len(true))
    wrong = np.where(rng.random(len(true)) < 0.7, near, far)
    seen = np.where(rng.random(len(true)) < ease[true], true, wrong)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, seen), 1)
    hits = counts.diagonal()
    recall = hits / counts.sum(1)
    precision = hits / np.maximum(counts.sum(0), 1)
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-9)
    top1 = float(hits.sum() / len(true))
    half = 1.96 * float(np.sqrt(top1 * (1 - top1) / len(true)))
    bins = [
        {
            "low": low / 15,
            "high": (low + 1) / 15,
            "count": int(10 + 40 * low**2),
            "confidence": (low + 0.5) / 15,
            "accuracy": ((low + 0.5) / 15) ** power,
        }
        for power in (1.5,)
        for low in range(15)
    ]
    after = [{**one, "accuracy": min(1.0, one["confidence"] * 1.02)} for one in bins]
    return {
        "version": 1,
        "weights": "train_vit_imagenet-156_10009",
        "data": "/data/ILSVRC2012_val",
        "images": len(true),
        "unreadable": 2,
        "classes": names,
        "figures": {
            "top1": {"value": top1, "low": top1 - half, "high": top1 + half},
            "top5": {"value": 0.5 + top1 / 2, "low": 0.49 + top1 / 2, "high": 0.51 + top1 / 2},
            "balanced_accuracy": {"value": top1, "low": top1 - half, "high": top1 + half},
            "loss": {"value": 0.91, "low": 0.9, "high": 0.92},
            "ece": {"value": 0.043, "low": None, "high": None},
            "f1_macro": {"value": float(f1.mean()), "low": top1 - half, "high": top1 + half},
        },
        "per_class": {
            "images": counts.sum(1).tolist(),
            "recall": recall.tolist(),
            "precision": precision.tolist(),
            "f1": f1.tolist(),
        },
        "confusion": [[int(t), int(p), int(counts[t, p])] for t, p in np.argwhere(counts)],
        "calibration": {
            "ece": 0.043,
            "temperature": 1.21,
            "ece_after": 0.011,
            "bins": bins,
            "bins_after": after,
        },
        "seconds": 101.5,
        "images_per_second": 492.6,
        "protocol": None,
    }


def write_shown(folder: Path, names: list[str], count: int = 12) -> None:
    """Write thumbnails of noise, and what was seen in them."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    for kind in ("worst", "hardest", "best"):
        for _ in range(count):
            file = f"{len(images):02}.jpg"
            pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
            picture.save(folder / file)
            label, other = (names[int(n)] for n in rng.integers(0, len(names), 2))
            seen = label if kind == "best" else other
            images.append(
                {
                    "file": file,
                    "id": f"{label}/ILSVRC2012_val_{len(images):08}.JPEG",
                    "label": label,
                    "prediction": seen,
                    "p_label": 0.98 if kind == "best" else 0.01,
                    "top": [[seen, 0.98], [label, 0.01]],
                    "kind": kind,
                }
            )
    write_json(folder / "shown.json", {"version": 1, "images": images})


CONFIG = """[run]
name = "imagenet"
output_dir = "runs/imagenet"
seed = {seed}

[data]
data_path = "/data/ILSVRC2012_train"
batch_size = 128

[optimizer]
lr_init = {lr}

[checkpoint]
keep_checkpoint_max = 5
"""


def make_run(
    run: Path,
    names: list[str],
    *,
    epochs: int = 3,
    steps: int = 100,
    every: int = 10,
    each: int = 50,
    skill: float = 0.8,
) -> Path:
    """Write a whole run folder. Returns: it."""
    (run / "checkpoints").mkdir(parents=True)
    rows = made_rows(epochs, steps, every, skill)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (run / "config.toml").write_text(CONFIG.format(seed=int(skill * 10), lr=0.02), "utf-8")
    write_json(run / "checkpoints" / "best.json", {"checkpoint": "train_vit_x-3_100"})
    write_json(run / "report" / "evaluation.json", made_evaluation(names, each, skill))
    write_json(run / "report" / "environment.json", {"torch": "2.14.1", "device": "CPU"})
    doubt = {"kind": "label", "id": "a/1.jpg", "label": names[0], "prediction": 1, "score": 0.93}
    (run / "report" / "doubts").mkdir()
    write_json(run / "report" / "doubts" / "doubts.json", [doubt] * 30)
    write_shown(run / "report" / "shown", names)
    return run


WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "juniper", "larch", "maple", "oak")


def names_of(classes: int) -> list[str]:
    """Return class names of many lengths."""
    return [
        " ".join(WORDS[(number * k) % 10] for k in range(1, 2 + number % 3)) + f" {number}"
        for number in range(classes)
    ]
