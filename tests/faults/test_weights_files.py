"""Weights files that are damaged, hostile or of something else: each error names file and tensor.

A name tells the dialect and the content the format, so one state of timm's names serves them all.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import tracemalloc
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_protobuf import field, varint
from made_weights import State, read_state, write_bare, write_mindspore, write_whole_network
from safetensors.torch import save_file
from torch import Tensor

import vitbase
from vitbase.errors import CheckpointError, VitbaseError, WeightsError
from vitbase.weights.files.npz import write_npz
from vitbase.weights.files.open import open_tensors
from vitbase.weights.save import save_weights

QKV = "blocks.0.attn.qkv.weight"
MOST_BYTES = 64 << 20
"""What Python and numpy may allocate to refuse a file, whatever it claims."""


def write_sharded(path: Path, state: State) -> None:
    """Write an index, and beside it two shards: model-1.safetensors and so on, or .bin."""
    suffix = ".bin" if path.name.startswith("pytorch") else ".safetensors"
    names = list(state)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        shard = f"model-{number}{suffix}"
        write = torch.save if suffix == ".bin" else save_file
        write({name: state[name] for name in half}, path.with_name(shard))
        weight_map |= dict.fromkeys(half, shard)
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMATS: dict[str, Callable[[Path, State], None]] = {
    "w.ckpt": write_mindspore,
    "w.npz": write_npz,
    "w.safetensors": lambda path, state: save_file(state, path),
    "w.pth": lambda path, state: torch.save(state, path),
    "w.pt": write_bare,
    "model.safetensors.index.json": write_sharded,
    "pytorch_model.bin.index.json": write_sharded,
}
every_format = pytest.mark.parametrize("name", FORMATS)
both_torch = pytest.mark.parametrize("name", ["w.pth", "w.pt"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> State:
    path = write_whole_network(tmp_path_factory.mktemp("whole") / "w.safetensors")
    vitbase.load_model(path)  # what is imported on the way is not to be counted later
    return read_state(path)


@pytest.fixture
def state(whole: State) -> State:
    """A state to spoil: tensors by timm's names."""
    return {name: value.clone() for name, value in whole.items()}


def refusal(path: Path, named: str | None = None, **options: Any) -> str:
    """Load what must be refused. Returns: the message, which names the file, or `named`."""
    tracemalloc.start()
    try:
        with pytest.raises(VitbaseError) as caught:
            vitbase.load_model(path, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    message = str(caught.value)
    assert (named or path.name) in message
    return message


# --------------------------------------------------------------------- faults of the tensors


def fill_one(value: float) -> Callable[[State], None]:
    return lambda state: state[QKV][3].fill_(value)


def replace(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    return lambda state: state.update({name: change(state[name])})


def become_another_network(state: State) -> None:
    state.clear()
    state.update({"conv1.weight": torch.zeros(4, 3, 7, 7), "layer1.0.bn1.bias": torch.zeros(4)})


SPOILT: dict[str, tuple[Callable[[State], object], tuple[str, ...]]] = {
    "nan": (fill_one(math.nan), (f"'{QKV}'", "not finite")),
    "infinite": (fill_one(-math.inf), (f"'{QKV}'", "not finite")),
    "infinite in float32": (
        replace("norm.bias", lambda value: value.double() + 1e300),
        ("'norm.bias'", "not finite"),
    ),
    "integers": (replace(QKV, lambda value: value.to(torch.int8)), (f"'{QKV}'", "torch.int8")),
    "missing": (lambda state: state.pop("norm.bias"), ("'norm.bias'", "missing")),
    "unknown": (
        lambda state: state.update({"blocks.0.attn.q_norm.weight": torch.ones(5)}),
        ("'blocks.0.attn.q_norm.weight'", "normalises queries"),
    ),
    "shape": (
        replace("norm.bias", lambda value: torch.zeros(11)),
        ("'norm.bias'", "(11,)", "(10,)"),
    ),
    "rank": (
        replace("head.weight", lambda value: value[..., None]),
        ("'head.weight'", "(7, 10, 1)"),
    ),
    "nothing in it": (replace(QKV, lambda value: value[:0]), (f"'{QKV}'", "(0, 10)")),
    "another network": (become_another_network, ("'conv1.weight'", "Vision Transformer")),
}


@every_format
def test_the_unspoilt_state_loads_in_every_format(state, tmp_path, name):
    FORMATS[name](tmp_path / name, state)
    loaded = vitbase.load_model(tmp_path / name)
    assert torch.equal(loaded.model.state_dict()["norm.bias"], state["norm.bias"])


@every_format
@pytest.mark.parametrize("fault", SPOILT)
def test_a_faulty_tensor_is_named_in_every_format(state, tmp_path, name, fault):
    spoil, fragments = SPOILT[fault]
    spoil(state)
    FORMATS[name](tmp_path / name, state)
    message = refusal(tmp_path / name)
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("size", [None, (64, 64)], ids=["own size", "resized"])
@pytest.mark.parametrize("shape", [(1, 5, 1), (1, 5, 11), (2, 5, 10), (1, 6, 10), (5, 10)])
def test_positions_of_a_wrong_shape_are_refused_though_they_are_resampled(
    state, tmp_path, shape, size
):
    state["pos_embed"] = torch.zeros(shape)
    save_file(state, tmp_path / "w.safetensors")
    assert "'pos_embed'" in refusal(tmp_path / "w.safetensors", image_size=size)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [(lambda value: value * math.nan, "not finite"), (lambda value: value[:-1], "(9,)")],
    ids=["nan", "shape"],
)
def test_of_tensors_that_are_joined_the_faulty_one_is_named(tmp_path, change, fragment):
    model = vitbase.create_model("testing", num_classes=7, image_size=32, gelu="tanh")
    save_weights(model, tmp_path / "whole.ckpt", dialect="mindspore")
    stored = open_tensors(tmp_path / "whole.ckpt").tensors
    joined = {name: tensor.read() for name, tensor in stored.items()}
    name = "transformer.encoder.layer.0.attn.value.bias"
    joined[name] = change(joined[name])
    write_mindspore(tmp_path / "w.ckpt", joined)
    message = refusal(tmp_path / "w.ckpt")
    assert f"'{name}'" in message
    assert fragment in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("MultiHeadDotProductAttention_1/query/kernel", (10, 10)),
        ("MultiHeadDotProductAttention_1/query/bias", (10,)),
        ("MultiHeadDotProductAttention_1/out/kernel", (10, 10)),
        ("LayerNorm_0/scale", (2, 5)),
        ("MlpBlock_3/Dense_0/kernel", (10, 10, 1)),
    ],
)
def test_flax_tensors_of_another_rank_are_refused(tmp_path, name, shape):
    model = vitbase.create_model("testing", num_classes=7, image_size=32, gelu="tanh")
    save_weights(model, tmp_path / "whole.npz", dialect="google")
    with np.load(tmp_path / "whole.npz") as file:
        arrays = {key: file[key] for key in file.files}
    name = f"Transformer/encoderblock_0/{name}"
    arrays[name] = arrays[name].reshape(shape)
    np.savez(tmp_path / "w.npz", **arrays)
    assert f"'{name}'" in refusal(tmp_path / "w.npz")


@pytest.mark.parametrize("odd", ["a\nb\x1b[31m", "x" * 5000], ids=["unprintable", "long"])
def test_impossible_names_are_not_printed(state, tmp_path, odd):
    write_npz(tmp_path / "w.npz", {odd: torch.zeros(1), **state})
    message = refusal(tmp_path / "w.npz")
    assert "impossible name" in message
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("depth", 10**9, "depth is 1000000000"),
        ("width", 2**62, "width is 4611686018427387904"),
        ("num_registers", 2**62, "tokens"),
        ("mlp_dim", 7, "blocks.0.mlp.fc1"),
        ("norm_eps", "small", "norm_eps"),
        ("class_token", 10**9, "class_token"),
        ("image_size", [2**24, 2**24], "tokens"),
    ],
)
def test_our_own_metadata_are_not_trusted_with_sizes(tmp_path, key, value, fragment):
    model = vitbase.create_model("testing", num_classes=7, image_size=32)
    save_weights(model, tmp_path / "whole.safetensors")
    file = open_tensors(tmp_path / "whole.safetensors")
    own = json.loads(file.metadata["vitbase"])
    own["spec"][key] = value
    tensors = {name: stored.read() for name, stored in file.tensors.items()}
    save_file(tensors, tmp_path / "w.safetensors", {"vitbase": json.dumps(own)})
    assert fragment in refusal(tmp_path / "w.safetensors")


# ------------------------------------------------------------------- files that are not whole


@every_format
@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.9, 0.9999])
def test_a_cut_file_is_named_in_every_format(state, tmp_path, name, part):
    path = tmp_path / name
    FORMATS[name](path, state)
    cut = path if path.suffix != ".json" else max(tmp_path.glob("model-2.*"))
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * part)])
    refusal(path, named=cut.name)


@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors", "w.pt"])
def test_of_a_cut_file_the_first_tensor_that_is_cut_is_named(state, tmp_path, name):
    path = tmp_path / name
    FORMATS[name](path, {"first": torch.zeros(100), "second": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-1000])
    assert "'second'" in refusal(path)
    FORMATS[name](path, {"first": torch.zeros(1000), "second": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1000])
    assert "'first'" in refusal(path)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "it is empty"),
        (b"epoch 1, loss 2.3\n", "it is text, starting with 'epoch 1"),
        (b"\nepoch 1, loss 2.3\n" * 20, "it is text"),
        ("<!DOCTYPE html> … Größe".encode(), "it is text, starting with '<!DOCTYPE"),
        (b'{"model": "vit"}', "it is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"# xet version 0\nfilesize = 1\nhash = 'x'\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00 a gzip", "starts with the bytes"),
        (b"\x00" * 1000, "starts with the bytes"),
        (b"\x0a\x00" * 10, "MindSpore"),
        (b"PK\x05\x06" + b"\0" * 18, "holds nothing"),
    ],
)
@pytest.mark.parametrize("name", ["w.ckpt", "w.npz"])
def test_files_of_something_else_are_told_apart(tmp_path, name, content, fragment):
    (tmp_path / name).write_bytes(content)
    assert fragment in refusal(tmp_path / name)


def test_an_archive_of_something_else_says_of_what(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("notes.txt", "no weights")
    assert "'notes.txt'" in refusal(tmp_path / "w.pth")


def test_a_folder_without_weights_is_named(tmp_path):
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no weights")
    for name in ("empty", "notes"):
        with pytest.raises(CheckpointError, match=rf"{name} holds no checkpoint and no weights"):
            vitbase.load_model(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        vitbase.load_model(tmp_path / "w.ckpt")


# ------------------------------------------------------------------------- sharded checkpoints

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", [INDEX, "pytorch_model.bin.index.json"])
def test_half_a_sharded_checkpoint_names_the_first_tensor_and_the_shard(state, tmp_path, name):
    write_sharded(tmp_path / name, state)
    shard = max(tmp_path.glob("model-2.*"))
    shard.unlink()
    message = refusal(tmp_path / name)
    assert f"'{list(state)[len(state) // 2]}'" in message
    assert f"{shard.name} is not there (1 of 2 shards" in message


def test_a_tensor_that_is_not_in_its_shard_is_named(state, tmp_path):
    write_sharded(tmp_path / INDEX, state)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-2.safetensors")
    first = list(state)[len(state) // 2]
    assert f"'{first}' is not in its shard model-2.safetensors" in refusal(tmp_path / INDEX)


@pytest.mark.parametrize(
    "place",
    [
        *("../w.safetensors", "/etc/passwd", "sub/w.safetensors", "..", ".", "", "a\0b"),
        *("x" * 5000, 7, None, ["w"], INDEX, "\ud800"),
    ],
)
def test_an_index_points_at_files_beside_it_only(state, tmp_path, place):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "sub").mkdir()
    for outside in (tmp_path, folder / "sub"):  # they are there, and are not to be opened
        save_file(state, outside / "w.safetensors")
    weight_map = dict.fromkeys(state, "../w.safetensors") | {"norm.bias": place}
    for name in state:
        if name != "norm.bias":
            del weight_map[name]
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    message = refusal(folder / INDEX)
    assert "'norm.bias'" in message
    assert "is no shard" in message


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": ["w"]}', "no weight_map"),
        ('{"weight_map": ', "not valid JSON"),
        ('{"weight_map": {"a": "w", "a": "v"}}', "'a' stands there twice"),
        ('{"weight_map":' + "[" * 100_000, "not valid JSON"),
        ('{"weight_map": ' + "9" * 10_000 + "}", "not valid JSON"),
    ],
    ids=range(7),
)
def test_a_damaged_index_is_named(tmp_path, text, fragment):
    (tmp_path / INDEX).write_text(text)
    assert fragment in refusal(tmp_path / INDEX)


# --------------------------------------------------------------------------------------- code


class Payload:
    """Pickled, a command that runs when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def write_objects(path: Path, content: Any) -> None:
    np.savez(path, **{"norm.bias": np.array([content], dtype=object)})


CARRIERS: dict[str, tuple[str, Callable[[Path, Any], object]]] = {
    "torch": ("w.pth", lambda path, content: torch.save(content, path)),
    "bare torch": ("w.pt", write_bare),
    "torch named .ckpt": ("w.ckpt", lambda path, content: torch.save(content, path)),
    "pickle": ("w.ckpt", lambda path, content: path.write_bytes(pickle.dumps(content, 2))),
    "new pickle": ("w.pkl", lambda path, content: path.write_bytes(pickle.dumps(content, 4))),
    "npz": ("w.npz", write_objects),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, payload: payload,
        lambda state, payload: {**state, "hook": payload},
        lambda state, payload: {"state_dict": state, "pytorch-lightning_version": payload},
        lambda state, payload: {"model": state, "args": Namespace(hook=payload)},
    ],
    ids=["alone", "among the tensors", "lightning", "in a namespace"],
)
def test_code_in_a_file_does_not_run(state, tmp_path, carrier, wrap):
    marker = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it would
    marker.unlink()
    name, write = CARRIERS[carrier]
    write(tmp_path / name, wrap(state, Payload(marker)))
    message = refusal(tmp_path / name)
    assert not marker.exists()
    assert "Lightning" in message or "not run" in message or "'norm.bias' holds Python" in message


@both_torch
def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path, name):
    FORMATS[name](tmp_path / name, {"model": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    message = refusal(tmp_path / name)
    assert "torch.nn.modules.container.Sequential" in message
    assert "state_dict" in message


def pickled_global(module: str, name: str, arguments: bytes = b")") -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + arguments + b"R"


@pytest.mark.parametrize(
    "call",
    [
        pickled_global("numpy", "load"),
        pickled_global("numpy", "fromfile"),
        pickled_global("numpy.core.multiarray", "fromstring"),
        pickled_global("numpy._core.multiarray", "frombuffer"),
        pickled_global("numpy.testing._private.utils", "runstring"),
        pickled_global("numpy.f2py.crackfortran", "getlincoef"),
        pickled_global("pathlib", "os.system"),
        pickled_global("pathlib", "Path.write_text"),
        pickled_global("argparse", "FileType"),
        pickled_global("datetime", "sys"),
        pickled_global("builtins", "getattr"),
        pickled_global("builtins", "eval"),
        pickled_global("collections", "namedtuple"),
    ],
)
def test_other_functions_of_the_modules_of_harmless_things_are_refused(state, tmp_path, call):
    path = tmp_path / "w.pth"
    torch.save({**state, "lr": "XX"}, path)
    patch_pickle(path, b"X\x02\x00\x00\x00XX", call)
    assert "not run" in refusal(path)


@both_torch
@pytest.mark.parametrize(
    "odd",
    [np.array([1, "x"], object), np.zeros(2, [("a", "i4"), ("b", object)])],
    ids=["objects", "objects in records"],
)
def test_arrays_of_objects_are_refused(state, tmp_path, name, odd):
    FORMATS[name](tmp_path / name, {"model": state, "best": odd})
    assert "not run" in refusal(tmp_path / name)


def test_what_an_array_says_of_its_memory_is_not_believed(state, tmp_path):
    """A type of objects that says it is none would have numpy follow any number as an address."""
    path = tmp_path / "w.pth"
    forged = np.dtype([("address", "u8")])
    torch.save({**state, "best": np.zeros(2, forged)}, path)
    patch_pickle(path, b"V8", b"O8")
    assert "dtype-of-objects" in refusal(path)


def test_tuples_of_tuples_do_not_take_exponential_work(state, tmp_path):
    """A key of a dict is hashed: 2 to the power of 60 values."""
    key: tuple[Any, ...] = ()
    for _ in range(60):
        key = (key, key)
    path = tmp_path / "w.pth"
    torch.save({"odd": "XX", **state}, path)
    patch_pickle(path, b"X\x02\x00\x00\x00XX", b"}" + pickle.dumps(key, 2)[2:-1] + b"Ns")
    assert "tuples that stand for too many values" in refusal(path)


# --------------------------------------------------------------------------- claims: torch


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Change the entries of an archive; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            if content is not None:
                archive.writestr(name, content)


def patch_pickle(path: Path, old: bytes, new: bytes) -> None:
    def change(name: str, content: bytes) -> bytes:
        assert old in content or not name.endswith("data.pkl")
        return content.replace(old, new, 1) if name.endswith("data.pkl") else content

    if zipfile.is_zipfile(path):
        rewrite(path, change)
    else:
        path.write_bytes(change("data.pkl", path.read_bytes()))


# Operations of a pickle: K and one byte, M and two, J and four, are numbers; \x85 is a tuple of
# one, \x86 of two. A tensor is: count of its storage ..., offset, sizes, strides.
COUNT = b"M\x39\x05"  # 1337, first the storage's count, then the tensor's size
HUGE = b"J\xff\xff\xff\x7f"


@both_torch
@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        (b"K\x00M\x39\x05\x85", b"K\x00" + HUGE + b"\x85", "claims the shape (2147483647,)"),
        (b"K\x00M\x39\x05\x85", b"K\x01M\x39\x05\x85", "claims the shape (1337,)"),
        (b"K\x00M\x39\x05\x85", b"K\x00J\xff\xff\xff\xff\x85", "not stored as torch does"),
        (b"K\x00M\x39\x05\x85", b"K\x00" + HUGE + HUGE + b"\x86", "not stored as torch does"),
        (COUNT, HUGE, "8,589,93"),
        (COUNT, b"M\x38\x05", "claims the shape (1337,)"),
        (COUNT, b"N", "not stored as torch does"),
    ],
    ids=["size", "offset", "negative", "two sizes, one stride", "large count", "count", "none"],
)
def test_sizes_that_a_pickle_claims_are_checked_before_torch_allocates(
    tmp_path, name, old, new, fragment
):
    path = tmp_path / name
    FORMATS[name](path, {"first": torch.zeros(3), "claims": torch.zeros(1337)})
    patch_pickle(path, old, new)
    message = refusal(path)
    assert "'claims'" in message
    assert fragment in message


@both_torch
def test_a_view_of_the_same_numbers_over_and_over_is_refused(state, tmp_path, name):
    state["pos_embed"] = torch.zeros(1, 1, 1).expand(1, 10**9 + 1, 10)
    FORMATS[name](tmp_path / name, state)
    message = refusal(tmp_path / name)
    assert "'pos_embed' claims the shape (1, 1000000001, 10)" in message


@both_torch
@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: torch.eye(10).to_sparse(), "ordinary, dense"),
        (lambda: torch.empty(10, device="meta"), "ordinary, dense"),
        (lambda: torch.ones(10).to(torch.float8_e4m3fn), "type"),
        (lambda: torch.ones(10, dtype=torch.complex64), "complex64"),
    ],
    ids=["sparse", "meta", "float8", "complex"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(state, tmp_path, name, make, fragment):
    state["norm.bias"] = make()
    FORMATS[name](tmp_path / name, state)
    assert fragment in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [lambda content: None, lambda content: content[:-4], lambda content: content + b"\0" * 4],
    ids=["absent", "short", "long"],
)
def test_contents_of_a_torch_file_that_are_not_whole_name_the_tensor(tmp_path, change):
    path = tmp_path / "w.pth"
    torch.save({"first": torch.zeros(3), "second": torch.zeros(5)}, path)
    rewrite(path, lambda name, content: change(content) if name == "w/data/1" else content)
    assert "'second' should lie in 20 bytes" in refusal(path)


def test_contents_that_a_bare_torch_file_does_not_list_are_not_taken_from_thin_air(tmp_path):
    path = tmp_path / "w.pt"
    write_bare(path, {"first": torch.zeros(3), "second": torch.zeros(5)})
    data = path.read_bytes()
    # The last pickle lists the storages: (MARK, two texts, their PUTs, APPENDS, STOP).
    at = data.rindex(b"\x80\x02]q\x00(")
    path.write_bytes(data[:at] + pickle.dumps([], 2) + data[at:][data[at:].index(b"e.") + 2 :])
    assert "'first' are not there" in refusal(path)


def test_compressed_files_of_torch_are_not_unpacked(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "'w/data.pkl' is not as torch writes it" in refusal(path)


# ----------------------------------------------------------------------------- claims: npz


def npy(
    shape: str = "(10,)", descr: str = "<f4", content: bytes = b"\0" * 40, version: int = 1
) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0, *divmod(len(header), 256)[::-1]]) + header + content


def write_entry(path: Path, content: bytes, method: int = 0, **forged: int) -> None:
    """Write an npz of one entry; `forged` are fields of its record that say something else."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("norm.bias.npy", content, method)
        for key, value in forged.items():
            setattr(archive.filelist[0], key, value)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (npy("(4000000000000,)"), "impossible shape"),
        (npy("(1000000000,)"), "needs 4,000,000,000 bytes, but 40 are there"),
        (npy("(0, 4000000000000)", content=b""), "impossible shape"),
        (npy("(-10,)"), "impossible shape"),
        (npy("(-2, -5)"), "impossible shape"),
        (npy("(9,)"), "needs 36 bytes, but 40 are there"),
        (npy(f"({'1,' * 9}10)"), "has 10 dimensions"),
        (npy("(9" + "9" * 3000 + ",)"), "impossible shape"),
        (npy("(10.0,)"), "damaged"),
        (npy("(" * 300), "damaged"),
        (npy("__import__('os').system('exit')"), "damaged"),
        (npy(descr="|O"), "Python objects"),
        (npy(descr="<U1"), "unknown type"),
        (npy(descr="|S4"), "unknown type"),
        (npy(descr="<M8[s]"), "unknown type"),
        (npy(descr="(2,)u1"), "unknown type"),
        (npy(version=9), "version (9, 0)"),
        (b"\x93NUMPY", "damaged"),
        (b"no array", "damaged"),
    ],
    ids=range(19),
)
def test_an_array_in_an_npz_that_cannot_be_is_named(tmp_path, content, fragment):
    write_entry(tmp_path / "w.npz", content)
    message = refusal(tmp_path / "w.npz")
    assert "'norm.bias'" in message
    assert fragment in message
    assert len(message) < 500


def zeros(megabytes: int) -> bytes:
    """Deflated zeros: one megabyte's stream, which ends on a byte, over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return one * megabytes + packer.flush()


@pytest.mark.parametrize(
    ("megabytes", "claimed", "fragment"),
    [(600, 600 << 20, "would become 629,145,600"), (1, 1 << 40, "claims 1,099,511,627,776 bytes")],
    ids=["bomb", "lie"],
)
def test_an_archive_bomb_is_not_unpacked(tmp_path, megabytes, claimed, fragment):
    path = tmp_path / "w.npz"
    packed = zeros(megabytes)
    write_entry(path, packed, compress_type=zipfile.ZIP_DEFLATED, file_size=claimed)
    assert path.stat().st_size < 1 << 20
    message = refusal(path)
    assert "'norm.bias'" in message
    assert fragment in message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_python_unpacks_without_bounds_is_refused(tmp_path, method):
    write_entry(tmp_path / "w.npz", npy("(4000000,)", content=bytes(16_000_000)), method)
    assert (tmp_path / "w.npz").stat().st_size < 10_000
    assert "'norm.bias' is packed" in refusal(tmp_path / "w.npz")


def test_a_packed_tensor_too_large_for_the_model_is_named_and_not_unpacked(state, tmp_path):
    path = tmp_path / "w.npz"
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez_compressed(path, **arrays | {"norm.bias": np.zeros(30_000_000, np.float32)})
    assert path.stat().st_size < 1 << 20
    message = refusal(path)  # which allocates less than this tensor
    assert "'norm.bias' has shape (30000000,)" in message


@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_bit_in_an_npz_names_the_tensor(state, tmp_path, packed):
    path = tmp_path / "w.npz"
    save = np.savez_compressed if packed else np.savez
    save(path, **{name: value.numpy() for name, value in state.items()})
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{QKV}.npy")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + entry.compress_size - 8] ^= 4
    path.write_bytes(data)
    message = refusal(path)
    assert f"'{QKV}' is damaged" in message


def test_a_name_that_stands_twice_in_an_npz_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("norm.bias.npy", npy())
        archive.writestr("norm.bias", npy())
    assert "'norm.bias' stands there twice" in refusal(tmp_path / "w.npz")


def test_an_encrypted_npz_is_named(tmp_path):
    write_entry(tmp_path / "w.npz", npy(), flag_bits=1)
    assert "'norm.bias' is damaged" in refusal(tmp_path / "w.npz")


# --------------------------------------------------------------------- claims: safetensors


def tensor(begin: Any = 0, end: Any = 40, shape: Any = (10,), dtype: Any = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})


@pytest.mark.parametrize(
    ("header", "fragments"),
    [
        (f'{{"a": {tensor()}, "b": {tensor()}}}', ("'b'", "starts at byte 0")),
        (f'{{"a": {tensor()}, "b": {tensor(20, 60)}}}', ("'b'", "starts at byte 20")),
        (f'{{"a": {tensor()}, "b": {tensor(44, 84)}}}', ("'b'", "starts at byte 44")),
        (f'{{"a": {tensor()}, "b": {tensor(40, 120, [20])}}}', ("'b'", "cut short")),
        (f'{{"a": {tensor()}}}', ("40 bytes follow",)),
        (f'{{"a": {tensor()}, "b": {tensor(40, 80, [11])}}}', ("'b'", "needs 44 bytes")),
        (f'{{"a": {tensor(shape=[-2, -5])}}}', ("'a'", "impossible shape")),
        (f'{{"a": {tensor(0, 0, [0, 2**62])}}}', ("'a'", "impossible shape")),
        (f'{{"a": {tensor(shape=[1] * 9 + [10])}}}', ("'a'", "10 dimensions")),
        (f'{{"a": {tensor(40, 0)}}}', ("'a'",)),
        (f'{{"a": {tensor(-40, 0)}}}', ("'a'",)),
        (f'{{"a": {tensor(0.0)}}}', ("'a'", "lacks")),
        (f'{{"a": {tensor(shape=10)}}}', ("'a'", "lacks")),
        ('{"a": {"dtype": "F32"}}', ("'a'", "lacks")),
        ('{"a": [1, 2]}', ("'a'", "lacks")),
        (f'{{"a": {tensor(dtype="F33")}}}', ("'a'", "unknown type 'F33'")),
        (f'{{"a": {tensor(dtype=["F32"])}}}', ("'a'", "unknown type")),
        (f'{{"a": {tensor()}, "a": {tensor(40, 80)}}}', ("'a' stands there twice",)),
        (f'{{"a": {tensor(0, 80, [20])}, "__metadata__": {{"vitbase": 7}}}}', ("damaged",)),
        ('{"a": ', ("not valid JSON",)),
        ('{"a": ' + "[" * 100_000, ("not valid JSON",)),
        ("{} " + "\xff", ("not valid JSON",)),
    ],
    ids=range(22),
)
def test_a_header_of_safetensors_that_cannot_be_names_the_tensor(tmp_path, header, fragments):
    text = header.encode("latin1")
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(80))
    message = refusal(path)
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("there", [100, 33 << 20])
def test_a_header_of_safetensors_that_is_too_long_is_not_read(tmp_path, there):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((33 << 20).to_bytes(8, "little") + b'{"')
        file.truncate(8 + there)  # without taking room on the disk
    assert "its header" in refusal(path) or there == 100


# ------------------------------------------------------------------------ claims: MindSpore


def value(
    dims: tuple[int, ...] = (10,),
    kind: bytes = b"Float32",
    content: bytes = bytes(40),
    tag: bytes = b"norm.bias",
) -> bytes:
    sides = b"".join(b"\x08" + varint(side % 2**64) for side in dims)
    return field(1, field(1, tag) + field(2, sides + field(2, kind) + field(3, content)))


OTHER = value(tag=b"other")


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (value((2**40,)), "impossible shape (1099511627776,)"),
        (value((2**30,)), "needs 4,294,967,296 bytes, but 40 are there"),
        (value((-10,)), "impossible shape (-10,)"),
        (value((-2, -5)), "impossible shape (-2, -5)"),
        (value((0, 2**40), content=b""), "impossible shape"),
        (value((*[1] * 9, 10)), "10 dimensions"),
        (value((1,) * 1000), "more than 64 entries"),
        (value((11,)), "needs 44 bytes, but 40 are there"),
        (value(kind=b"Float33"), "unknown type 'Float33'"),
        (value(kind=b""), "lacks its name or its type"),
        (value(kind=b"x" * 5000), "a name of 5,000 bytes"),
        (value() + value(), "stands there twice"),
        (value() + OTHER + value(), "stands there twice"),
        (value() + value(kind=b"Int32"), "do not fit together"),
        (value(content=bytes(20)) + OTHER + value(content=bytes(20)), "stands there twice"),
        (value(content=bytes(20)), "needs 40 bytes, but 20 are there"),
        (value()[:-1], "it ends inside an entry of"),
        (field(1, field(1, b"norm.bias") + field(3, b"")), "map parameter"),
        (field(1, field(1, b"norm.bias") + b"\x15\0\0\0\0"), "wire type 5"),
        (field(1, field(1, b"norm.bias") + field(2, b"\x08" + b"\xff" * 10)), "64 bits"),
        (field(1, field(1, b"norm.bias") + field(2, b"\x08" + b"\xff" * 9 + b"\x02")), "64 bits"),
    ],
    ids=range(21),
)
def test_an_entry_of_mindspore_that_cannot_be_is_named(tmp_path, data, fragment):
    (tmp_path / "w.ckpt").write_bytes(data)
    message = refusal(tmp_path / "w.ckpt")
    assert "'norm.bias'" in message
    assert fragment in message
    assert len(message) < 400


def test_a_checksum_of_mindspore_that_does_not_match_is_told(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(value() + b"crc_num" + (7).to_bytes(10, "big"))
    assert "does not match the checksum" in refusal(tmp_path / "w.ckpt")


def test_a_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(value(tag=b"\xff\xfe"))
    assert "MindSpore" in refusal(tmp_path / "w.ckpt")


def test_more_entries_than_any_network_has_are_not_collected(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(value((), b"Int8", b"\0", b"a") * 60_000)
    with pytest.raises(WeightsError, match=r"w\.ckpt.*more than 50,000 entries"):
        vitbase.load_model(tmp_path / "w.ckpt")
