"""Loading a large model needs little beyond the model itself. Slow: files of 1.2 GB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitbase

LIMIT = 1.3
"""Times the size of the weights, beyond the model."""

LOAD = """
import re, sys
import torch, vitbase

def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) * 1024

vitbase.load_model(sys.argv[1])  # what the libraries need for themselves
before = peak()
model = vitbase.load_model(sys.argv[2]).model
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(peak() - before, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("dialect", "file"),
    [
        ("vitbase", "w.safetensors"),
        ("mindspore", "w.ckpt"),
        ("google", "w.npz"),
        ("timm", "w.pth"),
        ("hf", "folder"),
    ],
)
def test_loading_a_large_model_needs_little_beyond_it(
    dialect: str, file: str, tmp_path: Path
) -> None:
    gelu = "tanh" if dialect in ("mindspore", "google") else "erf"
    for name, variant in (("small", "ViT-Ti_16"), ("large", "ViT-L_16")):
        folder = tmp_path / name
        folder.mkdir()
        model = vitbase.create_model(variant, gelu=gelu)
        vitbase.save_weights(model, folder / file, dialect=dialect, allow=["norm_eps"])
        del model
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD,
            str(tmp_path / "small" / file),
            str(tmp_path / "large" / file),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    needed, size = map(int, done.stdout.split())
    sys.stdout.write(f"{dialect}: {needed / size - 1:.2f} times its size beyond the model\n")
    assert needed - size < LIMIT * size
