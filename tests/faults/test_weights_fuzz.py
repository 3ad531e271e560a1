"""Thousands of damaged weights files: each opens, or is refused with the project's own error.

Seeds are fixed, so a failure comes back; the file that failed is kept, and named. Some damage is
blind (bits, bytes, cuts, copies), some knows the format and gets past the outermost checks.
"""

from __future__ import annotations

import functools
import io
import json
import math
import random
import re
import signal
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from made_damage import NUMBERS, damaged
from made_protobuf import field, varint

import vitbase
from vitbase.config.preprocess import default_preprocess
from vitbase.errors import VitbaseError
from vitbase.model.spec import ViTSpec
from vitbase.model.zoo import build_model
from vitbase.weights.files.open import open_tensors
from vitbase.weights.save import save_weights

SECONDS = 10
"""Of the processor: a file that takes longer hangs; the slowest take some hundredths."""
MEGABYTES = 64
"""All files together may raise the peak of memory by this; each has less than 40 kB."""

DEFLATED_MOST = 1032
"""Bytes that a deflated byte can become at most."""

SIZES: dict[str, Any] = {
    "name": "tiny",
    "patch_size": 4,
    "width": 8,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 8,
    "image_size": (8, 8),
    "num_classes": 3,
}
Mutation = Callable[[random.Random], bytes]


class HangError(BaseException):
    """Not an Exception: the readers catch those of the libraries below them."""


# ---------------------------------------------------------------------------------------- damage


def odd_mindspore(rng: random.Random, tensors: dict[str, np.ndarray]) -> bytes:
    """A checkpoint, whole as a message, in which some tensors are not what they should be."""
    entries = [
        [name, list(array.shape), "Float32", array.tobytes()] for name, array in tensors.items()
    ]
    for _ in range(rng.choice((1, 1, 2, 4))):
        entry = rng.choice(entries)
        kind = rng.randrange(7)
        if kind == 0:
            entry[0] = rng.choice((rng.choice(entries)[0], "", "x" * 3000, "é\n\x1b[31m", "\0"))
        elif kind == 1 and entry[1]:
            entry[1][rng.randrange(len(entry[1]))] = rng.choice(NUMBERS)
        elif kind == 2:
            entry[1] = [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 3, 8, 9, 80)))]
        elif kind == 3:
            entry[2] = rng.choice(("Float16", "Float64", "Int8", "Bool", "str", "", "Float33"))
        elif kind == 4:
            entry[3] = damaged(rng, entry[3])
        elif kind == 5:
            entries.insert(rng.randrange(len(entries)), list(entry))
        else:
            entry[1], entry[3] = [*entry[1], 0], b""
    out = b""
    for name, dims, dtype, content in entries:
        sides = b"".join(b"\x08" + varint(side & (2**64 - 1)) for side in dims)
        if rng.random() < 0.1:  # packed, as protobuf also may
            sides = field(1, b"".join(varint(side) for side in dims))
        tensor = sides + field(2, dtype.encode()) + field(3, content)
        out += field(1, field(1, name.encode()) + field(2, tensor))
    if rng.random() < 0.2:
        out += b"crc_num" + zlib.crc32(out).to_bytes(10, "big")
    return out


DESCRIPTIONS = (
    *("<f4", ">f4", "<f8", ">f2", "|V2", "<c8", "|O", "<U3", "<M8[s]", "|S0", "V0", "<f16"),
    *("<i8", "|b1", "(4,)<f4", "(1000000000,)<f4", "(2,)u1", "f4,f4", "f999999999", "\\x00"),
)
SHAPES = ("()", "(8)", "(8,8)", "(3L,)", "(True,)", "(0,)", "(1.5,)", "[8]", "None", "(" * 300)


def odd_npz(rng: random.Random, tensors: dict[str, np.ndarray]) -> bytes:
    """An archive, whole as such, in which some entries are not what numpy writes."""
    out = io.BytesIO()
    method = rng.choice((0, 0, 8, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    chosen = set(rng.sample(sorted(tensors), rng.choice((1, 1, 2))))
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in tensors.items():
            kind = rng.randrange(4) if name in chosen else -1
            shape, descr, order = str(array.shape), "<f4", False
            if kind == 0:
                numbers = [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 9, 60)))]
                shape = rng.choice((*SHAPES, f"({','.join(map(str, numbers))},)"))
            elif kind == 1:
                descr = rng.choice(DESCRIPTIONS)
            elif kind == 2:
                order = True
            text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"
            header = text.encode("latin1")
            if kind == 3:
                header = damaged(rng, header)
            version = rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\7\7")) if kind == 3 else b"\1\0"
            length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
            content = b"\x93NUMPY" + version + length + header + array.tobytes()
            archive.writestr(f"{name}.npy", content, method if name in chosen else 0)
    return damaged(rng, out.getvalue()) if rng.random() < 0.1 else out.getvalue()


VALUES = (*NUMBERS, None, True, "x", [], {}, [1], 1.5, float("nan"), "F32", [0, 2**40, 2**40], "")


def odd_places(rng: random.Random, header: dict[str, Any]) -> None:
    """Tensors over each other, behind the end, backwards, or of a shape that only seems to fit."""
    one, other = rng.sample([name for name in header if name != "__metadata__"], 2)
    begin, end = header[one]["data_offsets"]
    kind = rng.randrange(5)
    if kind == 0:
        header[one]["data_offsets"] = header[other]["data_offsets"]
    elif kind == 1:
        header[one]["data_offsets"] = [end, begin]
    elif kind == 2:
        header[one]["data_offsets"] = [begin - 4, end + 4]
    elif kind == 3:
        header[one]["shape"] = [2**32, 2**32, (end - begin) // 4]
    else:
        header[one]["shape"] = [0, rng.choice(NUMBERS), 2**40]
        header[one]["data_offsets"] = [begin, begin]


def odd_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A file whose header is JSON, with values that are not what the format or we write."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    own = json.loads(header["__metadata__"]["vitbase"])
    value = rng.choice(VALUES)
    if rng.random() < 0.5:
        inside = rng.choice((own, own["spec"], own["spec"], own["preprocess"]))
        inside[rng.choice(list(inside))] = value
        header["__metadata__"]["vitbase"] = json.dumps(own)
    elif rng.random() < 0.7:
        inside = header[rng.choice(list(header))]
        inside[rng.choice(list(inside))] = value
    else:
        odd_places(rng, header)
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = damaged(rng, text)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def odd_torch(rng: random.Random, data: bytes) -> bytes:
    """A file of torch's, whole as an archive, with a damaged pickle; or a bare one, damaged."""
    if not data.startswith(b"PK"):
        return damaged(rng, data[:4000]) + data[4000:]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, damaged(rng, content) if name.endswith(".pkl") else content)
    return out.getvalue()


# ---------------------------------------------------------------------------------------- attack


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small whole files, by format."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    found = {}
    for name, dialect, gelu in (
        ("w.ckpt", "mindspore", "tanh"),
        ("w.npz", "google", "tanh"),
        ("w.safetensors", "vitbase", "tanh"),
        ("w.pth", "timm", "erf"),
    ):
        path = folder / name
        model = build_model(ViTSpec(**SIZES, gelu=gelu))
        save_weights(model, path, dialect=dialect, preprocess=default_preprocess(8, 8, 3))
        found[path.suffix] = path.read_bytes()
        vitbase.load_model(path, num_heads=2, image_size=(16, 16))  # the libraries' own needs
    bare = io.BytesIO()
    state = torch.load(folder / "w.pth", weights_only=True)
    torch.save(state, bare, _use_new_zipfile_serialization=False)
    return found | {".bin": bare.getvalue()}


def mutations(kind: str, suffix: str, data: bytes) -> Mutation:
    if kind == "blind":
        return lambda rng: damaged(rng, data)
    if suffix == ".ckpt":
        return functools.partial(odd_mindspore, tensors=read_arrays(data, suffix))
    if suffix == ".npz":
        return functools.partial(odd_npz, tensors=read_arrays(data, suffix))
    return functools.partial(odd_safetensors if suffix == ".safetensors" else odd_torch, data=data)


def read_arrays(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        stored = open_tensors(Path(file.name)).tensors
        return {name: tensor.read().numpy() for name, tensor in stored.items()}


def read_all(path: Path) -> None:
    tensors = open_tensors(path).tensors.values()
    # Before anything is read: nothing claims more than can come out of the file.
    most = path.stat().st_size * (DEFLATED_MOST if path.suffix == ".npz" else 1)
    assert all(math.prod(t.shape) * t.dtype.itemsize <= most for t in tensors)
    for tensor in tensors:
        value = tensor.read()
        assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype)


def attack(path: Path, mutation: Mutation, seed: int, rounds: int) -> Counter[str]:
    """Write, open and load damaged files. Returns: how often what ended how."""
    rng = random.Random(seed)
    outcomes = Counter[str]()
    for number in range(rounds):
        path.write_bytes(mutation(rng))
        size = (16, 16) if rng.random() < 0.2 else None
        heads = None if path.suffix in (".npz", ".safetensors") else 2
        for action in (
            read_all,
            functools.partial(vitbase.load_model, num_heads=heads, image_size=size),
        ):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                action(path)
                outcomes["opened"] += 1
            except VitbaseError as error:
                outcomes["refused" if path.name in str(error) else "not named"] += 1
            except BaseException as error:
                raise AssertionError(f"file {number} of seed {seed}, kept as {path}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    return outcomes


@pytest.fixture
def hangs_are_errors() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, stop)
    yield
    signal.signal(signal.SIGPROF, before)


def memory(name: str) -> int:
    """Bytes of memory in use ("VmRSS"), or that were since `clear_refs` was written ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


ATTACKS = (
    *((".ckpt", "blind", 700), (".ckpt", "odd", 800), (".npz", "blind", 900), (".npz", "odd", 600)),
    *((".safetensors", "blind", 100), (".safetensors", "odd", 200)),
    *((".pth", "blind", 60), (".pth", "odd", 80), (".bin", "blind", 60), (".bin", "odd", 80)),
)
MANY = 1250  # twice, blind and odd
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def check(path: Path, mutation: Mutation, seed: int, rounds: int) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of memory so far
    before = memory("VmRSS")
    outcomes = attack(path, mutation, seed, rounds)
    assert memory("VmHWM") - before < MEGABYTES << 20
    assert outcomes["not named"] == 0
    # Damage that nothing survives, or that nobody notices, would prove little.
    assert min(outcomes["opened"], outcomes["refused"]) > rounds // 50


@on_linux
@pytest.mark.usefixtures("hangs_are_errors")
@pytest.mark.parametrize(("suffix", "kind", "rounds"), ATTACKS)
def test_damaged_files_open_or_are_refused_within_bounds(sources, tmp_path, suffix, kind, rounds):
    mutation = mutations(kind, suffix, sources[suffix])
    check(tmp_path / f"damaged{suffix}", mutation, 0, rounds)


@on_linux
@pytest.mark.slow
@pytest.mark.usefixtures("hangs_are_errors")
@pytest.mark.parametrize(("suffix", "kind", "rounds"), ATTACKS)
def test_many_damaged_files_open_or_are_refused(sources, tmp_path, suffix, kind, rounds):
    mutation = mutations(kind, suffix, sources[suffix])
    check(tmp_path / f"damaged{suffix}", mutation, 1, MANY)
