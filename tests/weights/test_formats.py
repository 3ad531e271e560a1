"""Weights files that are unusual, and whole: each format reads what its own system may write."""

from __future__ import annotations

import argparse
import datetime
import enum
import io
import json
import random
import tempfile
import types
import zipfile
import zlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_protobuf import field
from made_weights import State, read_state, write_bare, write_mindspore, write_whole_network
from safetensors.torch import save_file

import vitbase
from vitbase.errors import WeightsError
from vitbase.weights.files import mindspore
from vitbase.weights.files.npz import write_npz
from vitbase.weights.files.open import open_tensors
from vitbase.weights.files.safetensors import write_safetensors

WRITERS: dict[str, Callable[[Path, State], None]] = {
    "mindspore": write_mindspore,
    "npz": write_npz,
    "safetensors": lambda path, state: write_safetensors(path, state, {}),
    "torch": lambda path, state: torch.save(state, path),
    "bare torch": write_bare,
}
every_format = pytest.mark.parametrize("kind", WRITERS)
both_torch = pytest.mark.parametrize("kind", ["torch", "bare torch"])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A whole network, by timm's names."""
    return read_state(write_whole_network(tmp_path_factory.mktemp("whole") / "w.safetensors"))


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name


# ------------------------------------------------------------------------------- every format


@every_format
@pytest.mark.parametrize("suffix", [".ckpt", ".npz", ".safetensors", ".pth", ".index.json", ""])
def test_the_format_is_found_by_content_whatever_the_suffix(state, tmp_path, kind, suffix):
    path = tmp_path / f"w{suffix}"
    WRITERS[kind](path, state)
    assert open_tensors(path).format == kind.removeprefix("bare ")
    assert vitbase.load_model(path).report.dialect == "timm"


@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_floats_load_as_float32(state, tmp_path, kind, dtype):
    stored = {name: value.to(dtype) for name, value in state.items()}
    WRITERS[kind](tmp_path / "w", stored)
    assert_same(read_state(tmp_path / "w"), stored)
    loaded = vitbase.load_model(tmp_path / "w").model.state_dict()
    for name in ("norm.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], stored[name].float())


DTYPES = {
    "mindspore": sorted(set(mindspore._DTYPES.values()), key=str),
    "npz": [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(getattr(torch, f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)),
        *(torch.complex64, torch.complex128),
    ],
}
DTYPES["safetensors"] = DTYPES["mindspore"]
DTYPES["torch"] = DTYPES["bare torch"] = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
NAMES = st.text("abz019._/é", min_size=1, max_size=12).filter(lambda name: name.strip("./"))
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@every_format
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_written_is_read_back_bit_for_bit(kind, data):
    described = data.draw(
        st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES[kind])), min_size=1)
    )
    seed = data.draw(st.integers(0, 99))
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, dtype) in described.items():
        values = torch.from_numpy(random.integers(0, 2, shape))
        # Strides, too, may be unusual.
        tensors[name] = values.to(dtype).transpose(0, -1) if shape else values.to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        WRITERS[kind](first, tensors)
        # Names that a prefix has in common belong to a wrapper; see below.
        assert_same(read_state(first), tensors)
        WRITERS[kind](second, tensors)
        if "torch" not in kind:  # torch writes the file's name into it
            assert first.read_bytes() == second.read_bytes()


@every_format
def test_the_order_of_the_tensors_is_that_of_the_file(tmp_path, kind):
    names = ["b", "c", "a"] if kind != "safetensors" else ["a", "b", "c"]  # which sorts them
    WRITERS[kind](tmp_path / "w", {name: torch.zeros(2) for name in names})
    assert list(open_tensors(tmp_path / "w").tensors) == names


# -------------------------------------------------------------------------------------- torch


@both_torch
@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: {"model": s, "epoch": 3}, "taken from its entry 'model'"),
        (lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1)}, "'state_dict'"),
        (lambda s: {"model": {"norm.bias": s["norm.bias"]}, "model_ema": s}, "'model_ema'"),
        (lambda s: {"student": {}, "teacher": s}, "'teacher'"),
        (lambda s: {"model": {"state_dict": s}, "optimizer": {}}, "'model.state_dict'"),
        (lambda s: {f"module.{n}": v for n, v in s.items()}, "prefix 'module.' removed"),
        (lambda s: {f"_orig_mod.{n}": v for n, v in s.items()}, "prefix '_orig_mod.' removed"),
        (
            lambda s: {"ema": {"n_averaged": torch.tensor(5)} | {f"module.{n}": s[n] for n in s}},
            "prefix 'module.' removed",
        ),
        (
            lambda s: {"net": {f"module._orig_mod.{n}": v for n, v in s.items()}},
            "prefix 'module._orig_mod.' removed",
        ),
        (lambda s: {**s, "epoch": 3, "best": None, 7: [1.5]}, None),
    ],
    ids=range(10),
)
def test_weights_are_found_in_what_training_scripts_save(state, tmp_path, kind, wrap, note):
    WRITERS[kind](tmp_path / "w.pth", wrap(state))
    found = read_state(tmp_path / "w.pth")
    assert_same({name: value for name, value in found.items() if name != "n_averaged"}, state)
    report = vitbase.load_model(tmp_path / "w.pth").report
    assert any(note in said for said in report.notes) if note else report.notes == ()


class Where(enum.Enum):
    HERE = 1


def beside() -> dict[str, Any]:
    """What scripts save beside the weights."""
    counts: defaultdict[str, list[int]] = defaultdict(list)
    counts["a"].append(1)
    return {
        "accuracy": np.float64(0.5),
        "steps": np.int64(3),
        "done": np.bool_(True),
        "history": np.arange(6.0).reshape(2, 3),
        "names": np.array(["a", "b"]),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "rng": random.Random(0).getstate(),
        "path": Path("runs/here"),
        "other path": PureWindowsPath("c:/runs"),
        "args": argparse.Namespace(out=Path("x"), best=np.float32(1), sizes=[(1, 2)]),
        "more": types.SimpleNamespace(a=1),
        "when": datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "ordered": OrderedDict(a=1),
        "counts": counts,
        "last": deque([1, 2], maxlen=3),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "version": torch.__version__,
        "kind": float,
        "set": {1, 2},
    }


@both_torch
@pytest.mark.parametrize("key", beside())
def test_harmless_things_beside_the_weights_are_passed_over(state, tmp_path, kind, key):
    WRITERS[kind](tmp_path / "w.pth", {"model": state, key: beside()[key]})
    assert_same(read_state(tmp_path / "w.pth"), state)


@both_torch
def test_what_is_no_such_thing_is_refused_by_its_type(state, tmp_path, kind):
    WRITERS[kind](tmp_path / "w.pth", {"model": state, "where": Where.HERE})
    with pytest.raises(WeightsError, match=r"Where'\. It was not run"):
        read_state(tmp_path / "w.pth")


@both_torch
def test_tensors_may_share_storage_and_be_parts_of_it(tmp_path, kind):
    base = torch.arange(24.0)
    tensors = {
        "whole": base,
        "again": base,
        "part": base[4:10],
        "transposed": base.view(4, 6).T,
        "parameter": torch.nn.Parameter(base.view(2, 12)),
        "nothing": base[:0],
        "one": base[7],
    }
    WRITERS[kind](tmp_path / "w.pth", tensors)
    found = read_state(tmp_path / "w.pth")
    assert_same(found, {name: value.detach() for name, value in tensors.items()})
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_one_file(state, tmp_path, suffix):
    kind = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    weight_map = {}
    for number in range(3):
        shard = f"part-{number}{suffix}"
        part = {name: state[name] for name in list(state)[number::3]}
        write = save_file if suffix == ".safetensors" else torch.save
        write(part, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = tmp_path / f"{kind}.index.json"
    index.write_text(json.dumps({"weight_map": {name: weight_map[name] for name in state}}))
    assert_same(read_state(index), state)
    assert vitbase.load_model(index).report.notes == ("3 shards",)
    (tmp_path / "config.json").write_text('{"num_classes": 7}')
    assert open_tensors(index).config == {"num_classes": 7}


# ---------------------------------------------------------------------------------------- npz


def write_npy(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content)


def npy(array: np.ndarray, version: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


EXAMPLE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "content",
    [
        npy(np.asfortranarray(EXAMPLE), (1, 0)),
        npy(EXAMPLE.astype(">f4"), (1, 0)),
        npy(np.asfortranarray(EXAMPLE.astype(">f4")), (2, 0)),
        npy(EXAMPLE, (2, 0)),
        npy(EXAMPLE, (3, 0)),
        # Python 2 wrote its long numbers so.
        npy(EXAMPLE, (1, 0)).replace(b"(2, 3), ", b"(2L, 3L)"),
    ],
    ids=["fortran", "big-endian", "both", "version 2", "version 3", "Python 2"],
)
def test_arrays_of_any_order_and_age_are_read(tmp_path, content):
    write_npy(tmp_path / "w.npz", content)
    assert_same(read_state(tmp_path / "w.npz"), {"a": torch.from_numpy(EXAMPLE)})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_may_pack_an_archive_and_store_scalars(tmp_path, save):
    save(tmp_path / "w.npz", scalar=np.float32(2.5), a=EXAMPLE, zeros=np.zeros((300, 300)))
    expected = {
        "scalar": torch.tensor(2.5),
        "a": torch.from_numpy(EXAMPLE),
        "zeros": torch.zeros(300, 300, dtype=torch.float64),
    }
    assert_same(read_state(tmp_path / "w.npz"), expected)


def test_an_npz_is_written_as_numpy_does(state, tmp_path):
    write_npz(tmp_path / "ours.npz", state)
    np.savez(tmp_path / "theirs.npz", **{name: value.numpy() for name, value in state.items()})
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()


# ----------------------------------------------------------------------------------- MindSpore


def entry(tag: str, tensor: bytes) -> bytes:
    return field(1, field(1, tag.encode()) + field(2, tensor))


FLOAT = field(2, b"Float32")
CONTENT = field(3, EXAMPLE.tobytes())
DIMS = field(1, 2) + field(1, 3)


@pytest.mark.parametrize(
    "data",
    [
        entry("a", DIMS + FLOAT + CONTENT),
        entry("a", field(1, b"\2\3") + FLOAT + CONTENT),
        entry("a", CONTENT + FLOAT + DIMS),
        field(1, field(2, DIMS + FLOAT + CONTENT) + field(1, b"a")),
        entry("a", field(12, 7) + DIMS + FLOAT + CONTENT) + field(9, b"new") + field(10, 2**63),
        entry("a", DIMS + FLOAT + field(3, EXAMPLE.tobytes()[:9]))
        + entry("a", DIMS + FLOAT + field(3, EXAMPLE.tobytes()[9:])),
        entry("notes", field(1, 0) + field(2, b"str") + field(3, b"lr 0.1"))
        + entry("a", DIMS + FLOAT + CONTENT),
    ],
    ids=["plain", "packed", "other order", "name last", "unknown fields", "two parts", "a note"],
)
@pytest.mark.parametrize("checked", [False, True], ids=["", "with a checksum"])
def test_all_that_protobuf_may_write_for_a_checkpoint_is_read(tmp_path, data, checked):
    if checked:
        data += b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
    (tmp_path / "w.ckpt").write_bytes(data)
    assert_same(read_state(tmp_path / "w.ckpt"), {"a": torch.from_numpy(EXAMPLE)})


@pytest.mark.parametrize("dims", [b"", field(1, 0)], ids=["no dims", "MindSpore 1"])
def test_scalars_of_mindspore_have_no_dims(tmp_path, dims):
    data = entry("step", dims + field(2, b"Int32") + field(3, (7).to_bytes(4, "little")))
    (tmp_path / "w.ckpt").write_bytes(data)
    assert_same(read_state(tmp_path / "w.ckpt"), {"step": torch.tensor(7, dtype=torch.int32)})


def test_large_tensors_of_mindspore_are_written_in_parts(state, tmp_path, monkeypatch):
    monkeypatch.setattr(mindspore, "_SLICE_BYTES", 1000)
    write_mindspore(tmp_path / "w.ckpt", state)
    data = (tmp_path / "w.ckpt").read_bytes()
    parts = state["patch_embed.proj.weight"].numel() * 4 / 1000
    assert data.count(b"patch_embed.proj.weight") == int(parts) + 1
    assert_same(read_state(tmp_path / "w.ckpt"), state)
