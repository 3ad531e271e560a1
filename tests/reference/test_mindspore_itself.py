"""MindSpore opens what is written for it. Slow: MindSpore comes into an environment of its own.

`VITBASE_MINDSPORE_PYTHON` names a Python that has MindSpore already, to spare the installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from test_mindspore import META, TOLERANCE, largest_difference, start, take_over, train_steps

import vitbase
from vitbase.training.mindspore_state import read_mindspore_state
from vitbase.weights.files.open import open_tensors
from vitbase.weights.load import open_weights
from vitbase.weights.origins.dialect import to_theirs
from vitbase.weights.origins.mindspore import MINDSPORE

HERE = Path(__file__).parent
READ = """
import sys
import mindspore, numpy
found = mindspore.load_checkpoint(sys.argv[1])
numpy.savez(sys.argv[2], **{name: value.asnumpy() for name, value in found.items()})
"""
WRITE = """
import sys
import mindspore, numpy
kept = numpy.load(sys.argv[1])
found = [{"name": name, "data": mindspore.Tensor(kept[name])} for name in kept.files]
mindspore.save_checkpoint(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def mindspore(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("VITBASE_MINDSPORE_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("mindspore")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    needed = ["mindspore==2.10.0", "numpy<2"]  # its operators were built with numpy 1
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    return python


def run(python: str, program: str | Path, *arguments: object) -> None:
    code = [str(program)] if isinstance(program, Path) else ["-c", program]
    words = [python, *code, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="MindSpore has no build for this system")
def test_mindspore_reads_what_was_converted_for_it(mindspore: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vitbase.create_model("ViT-Ti_16", num_classes=10, head_init_std=1.0)
    vitbase.save_weights(model, tmp_path / "ours.safetensors")
    converted = tmp_path / "ours.ckpt"
    vitbase.convert_weights(tmp_path / "ours.safetensors", converted, dialect="mindspore")
    run(mindspore, READ, converted, tmp_path / "read.npz")
    written = open_tensors(converted).tensors
    with np.load(tmp_path / "read.npz") as read:
        assert set(read.files) == set(written)
        for name, stored in written.items():
            assert read[name].dtype == np.float32
            assert np.array_equal(read[name], stored.read().numpy()), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="MindSpore has no build for this system")
def test_mindspore_writes_the_same_bytes(mindspore: str, tmp_path: Path) -> None:
    values = {
        "scalar": np.float32(3.5).reshape(()),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "counts": np.arange(4, dtype=np.int32),
        "yes": np.array([True, False]),
        "double": np.linspace(0, 1, 5),
    }
    np.savez(tmp_path / "values.npz", **values)
    run(mindspore, WRITE, tmp_path / "values.npz", tmp_path / "theirs.ckpt")
    theirs = open_tensors(tmp_path / "theirs.ckpt").tensors
    assert set(theirs) == set(values)
    for name, value in values.items():
        assert np.array_equal(theirs[name].read().numpy(), value), name
    from made_weights import write_mindspore

    write_mindspore(tmp_path / "ours.ckpt", {name: t.read() for name, t in theirs.items()})
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="MindSpore has no build for this system")
def test_a_training_continues_here_as_mindspore_continues_it(
    mindspore: str, tmp_path: Path
) -> None:
    folder, updates = HERE / "mindspore_tiny", 8
    checkpoint, data = folder / "train.ckpt", folder / "expected.npz"
    out = tmp_path / "theirs.npz"
    run(mindspore, HERE / "continue_in_mindspore.py", checkpoint, data, updates, META["lr"], out)
    with np.load(data) as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model, optimizer = start(checkpoint.name)
    state = read_mindspore_state(open_weights(checkpoint, num_heads=META["heads"]))
    take_over(model, optimizer, state)
    losses = train_steps(model, optimizer, expected, updates)
    with np.load(out) as arrays:
        theirs = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    assert largest_difference(torch.tensor(losses), theirs.pop("losses")) < TOLERANCE
    for name, value in model.named_parameters():
        momentum = optimizer.state[value]["momentum_buffer"]
        for prefix, ours in (("", value.detach()), ("moments.", momentum)):
            for part, tensor in to_theirs(MINDSPORE, name, ours, META["heads"]).items():
                assert largest_difference(tensor, theirs.pop(prefix + part)) < TOLERANCE, part
    assert not theirs
