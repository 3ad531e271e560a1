"""Files that somebody has made to do harm, by format, and the readers that must stand them.

Some mutations are blind, others keep what is outermost valid (lengths, checksums, archives) and lie
inside. Each file is read whole, as a run would. A process of its own runs each format, so that its
memory is its own, and what it takes is bounded:

    python tests/hostile_files.py FORMAT ROUNDS SEED FOLDER
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from made_damage import NUMBERS, damaged
from made_images import idx
from made_shards import JPEG, samples, write_tar

from vitbase.config.config import load_config
from vitbase.config.shipped import read_recipe_text, recipe_names
from vitbase.errors import VitbaseError
from vitbase.sources.imagenet.classes import imagenet_synsets
from vitbase.sources.open import open_source
from vitbase.sources.source import Source

SECONDS = 10
"""Of the processor: a file that takes longer hangs. A busy machine may take six times as many."""
GIGABYTES = 2
"""That a file may take, beside what the process had."""

Write = Callable[[random.Random, Path], None]
Read = Callable[[Path], object]


class Format(NamedTuple):
    """How files of a format are made, in an empty folder, and how they are read from it."""

    write: Write
    read: Read


class HangError(BaseException):
    """Not an Exception: the readers catch those of the libraries below them."""


NAMES = (
    *("", " ", ".", "..", "/", "/etc/passwd", "../../x", "a/../b.jpg", "\0", "a\0b.jpg", "\ud800"),
    *("\udcff", "two\nlines", "\r", "\x1b[2J", "\x9b31m", "\u202ereversed", "x" * 5000, "é" * 300),
    *("CON", "~", "-rf", "a" * 200 + ".jpg", "0", "-1", "²", "٣", "1_0", "9" * 30, "9" * 5000),
    *("nan", "None", "*.tar", "{x}", "%s%n", "[bold]", "\ufeff", "x.tar", "https://x/y", "hf:x"),
)
VALUES = (
    *NUMBERS,
    *(-(2**63), -(2**64), 10**30, 10**400, 1e300, -0.0, 1.5, float("nan"), float("inf")),
    *(None, True, False, [], {}, [[]], [1], [None], {"a": 1}, [0, 2**40], ["a", 1], [{}], [["a"]]),
    *NAMES,
)


def any_json(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Change something somewhere in a value of JSON."""
    if depth > 6 or not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        changed = list(value)
        place = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            del changed[place]
        elif kind == 1:
            changed.insert(place, changed[rng.randrange(len(changed))])
        else:
            changed[place] = any_json(rng, changed[place], depth + 1)
        return changed
    altered = dict(value)
    key = rng.choice(list(altered))
    kind = rng.randrange(8)
    if kind == 0:
        del altered[key]
    elif kind == 1:
        altered[rng.choice(NAMES)] = altered.pop(key)
    else:
        altered[key] = any_json(rng, altered[key], depth + 1)
    return altered


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """Write JSON as `json` would; now and then what it would not."""
    text = json.dumps(value)
    kind = rng.randrange(12)
    if kind == 0:
        text = "[" * 5000 + text
    elif kind == 1:
        text = text.replace("{", '{"a": ' + '{"a": ' * 100, 1)
    elif kind == 2:
        text = re.sub(r"\d+", "9" * 6000, text, count=1)
    elif kind == 3:
        return damaged(rng, text.encode())
    return text.encode()


def read_source(place: Path) -> None:
    """Read everything that a run would of a data set."""
    for split in ("train", "val"):
        read_all(open_source(str(place), split, "data_path"))


def read_all(source: Source) -> None:
    assert len(source) == len(source.labels)
    if source.labels.ndim == 1:
        assert 0 <= source.labels.min() <= source.labels.max() < len(source.class_names)
    for index in range(len(source)):
        source.images.size(int(source.rows[index]))
        for look in (source.name, source.describe, source.read):
            with contextlib.suppress(VitbaseError):
                np.array(look(index))  # pixels are touched only so


# --------------------------------------------------------------------------------------- config

ODD_TOML = (
    *("9" * 5000, "-1", "1e999", "nan", "-inf", "0x" + "f" * 5000, "1_000_000_000_000_000_000_000"),
    *(
        "true",
        "[]",
        "{}",
        "[[]]",
        "[" * 3000,
        "{a = " * 200 + "1" + "}" * 200,
        "1979-05-27T07:32:00Z",
    ),
    *(
        "[" * 300 + "]" * 300,
        "'x'",
        "''",
        '"\\u0000"',
        '"\\u001b[2J"',
        '"\\u202e"',
        "07:32:00",
        '"""',
    ),
    *("{a = 1}", "[1, 'a']", "[[1, 2], [3]]", "1.0", "'" + "y" * 9000 + "'", '"\\ud800"', "0", "2"),
    *("18446744073709551616", "-9223372036854775809", "1e-320", '"\\U0010ffff"', "'9'", "'auto'"),
)


def write_toml(rng: random.Random, folder: Path) -> None:
    text = TOML[rng.randrange(len(TOML))]
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(lines))
        key, equals, _ = lines[place].partition("=")
        kind = rng.randrange(9)
        if kind == 0:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif kind == 1:
            lines[place] = f"[{rng.choice(NAMES)}]".replace("\ud800", "x")
        elif kind == 2:
            lines[place] = ".".join("a" * rng.choice((1, 2000))) + " = 1"
        elif kind == 3:
            lines[place] = json.dumps(rng.choice(NAMES)) + " = " + rng.choice(ODD_TOML)
        elif equals:
            lines[place] = f"{key}= {rng.choice(ODD_TOML)}"
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.25:
        data = damaged(rng, data)
    (folder / "x.toml").write_bytes(data)


def read_toml(folder: Path) -> None:
    config = load_config(str(folder / "x.toml"))
    (folder / "again.toml").write_bytes(config.to_toml().encode("utf-8", "surrogateescape"))
    assert load_config(str(folder / "again.toml")) == config
    config.replace(image_height=64, image_width=64, output_dir="x")


TOML = [
    *(read_recipe_text(name) for name in recipe_names()[:6]),
    load_config("imagenet").to_toml(),
    load_config("finetune", data_path="/data", class_weights="balanced").to_toml(),
]


# ------------------------------------------------------------------------------------------ IDX


def write_idx(rng: random.Random, folder: Path) -> None:
    suffix = rng.choice(("", ".gz"))
    chosen = rng.randrange(4)
    number = 0
    for prefix, count in (("train", 9), ("t10k", 6)):
        pixels = np.arange(count * 20, dtype=np.uint8).reshape(count, 4, 5)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = idx(array)
            if number == chosen:
                content = odd_idx(rng, array)
            if suffix:
                content = gzip.compress(content, mtime=0)
                if number == chosen and rng.random() < 0.2:
                    content = damaged(rng, content)
                elif number == chosen and rng.random() < 0.02:
                    content += gzip_bomb()
            (folder / f"{prefix}-{kind}-ubyte{suffix}").write_bytes(content)
            number += 1
    if rng.random() < 0.3:
        lines = [rng.choice(NAMES) for _ in range(rng.choice((1, 3, 4)))]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        (folder / "labels.txt").write_bytes(damaged(rng, text) if rng.random() < 0.5 else text)


@functools.cache
def gzip_bomb() -> bytes:
    """Three megabytes that become three gigabytes."""
    return gzip.compress(bytes(1 << 25), 9) * 100


@functools.cache
def list_bomb() -> bytes:
    """A list of twenty million lists, which would take more than a gigabyte."""
    return zlib.compress(b"[" + b"[]," * 20_000_000 + b"[]]", 1)


def odd_idx(rng: random.Random, array: np.ndarray) -> bytes:
    content = bytearray(idx(array))
    kind = rng.randrange(5)
    if kind == 0:
        return damaged(rng, bytes(content))
    if kind == 1:  # sides whose product wraps to what is there, or to nothing
        sides = rng.choice(
            (
                (2**31, 2**31, 4),
                (2**32 - 1,) * 3,
                (2**16, 2**24, 2**24),
                (0, 5, 5),
                (2**32 - 1, 1, 1),
            )
        )
        return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *sides[: array.ndim])
    if kind == 2:
        place = 4 + 4 * rng.randrange(array.ndim)
        content[place : place + 4] = struct.pack(">I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    elif kind == 3:
        content[2:4] = bytes((rng.choice((8, 9, 11, 13, 14)), rng.randrange(256)))
    else:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


# ---------------------------------------------------------------------------------------- CIFAR


class _Call:
    """Pickled, a call of something."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


BOMBS = (
    b"\x80\x02" + b")" + b"\x85" * 300_000 + b".",  # tuples in tuples
    b"\x80\x02}(" + b")" + b"\x85" * 300_000 + b"K\x01u.",  # as the key of a dict
    b"\x80\x02}" + b"r\xff\xff\xff\x3f.",  # a memo of 2**30 places
    b"\x80\x02}p268435456\n.",
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02}" + b"(" * 200_000 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"cos\nsystem\n(S'true'\ntR.",
    b"I" + b"9" * 6000 + b"\n.",
    b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + b"K\x01s.",  # a long number as a key
    b"\x80\x02}\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"K\x01s.",
)


def write_cifar(rng: random.Random, folder: Path) -> None:
    fine, pickled = rng.random() < 0.4, rng.random() < 0.8
    count = rng.choice((1, 2, 5))
    names = ["train", "test"] if fine else [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    names += ["meta" if fine else "batches.meta"]
    chosen = rng.choice(names)
    for name in names:
        pixels = np.frombuffer(rng.randbytes(count * 3072), np.uint8).reshape(count, 3072)
        labels = [rng.randrange(10) for _ in range(count)]
        if not pickled:
            records = b"".join(
                bytes([0] * fine + [label]) + row.tobytes()
                for label, row in zip(labels, pixels, strict=True)
            )
            content = "\n".join(f"name {n}" for n in range(100)).encode()
            if "meta" not in name:
                content = records
            suffix = "fine_label_names.txt" if name == "meta" else f"{name}.txt"
            target = f"{name}.bin" if "meta" not in name else suffix
            (folder / target).write_bytes(damaged(rng, content) if name == chosen else content)
            continue
        batch: dict[Any, Any] = {b"data": pixels, b"fine_labels" if fine else b"labels": labels}
        if "meta" in name:
            key = b"fine_label_names" if fine else b"label_names"
            batch = {key: [f"name {n}".encode() for n in range(100 if fine else 10)]}
        content = odd_cifar(rng, batch) if name == chosen else pickle.dumps(batch, 2)
        (folder / name).write_bytes(content)


def odd_cifar(rng: random.Random, batch: dict[Any, Any]) -> bytes:
    kind, protocol = rng.randrange(6), rng.choice((0, 1, 2, 3, 4, 5))
    if kind == 0:
        return rng.choice(BOMBS)
    if kind == 1:
        return damaged(rng, pickle.dumps(batch, protocol))
    key = rng.choice(list(batch))
    odd = rng.choice((*VALUES, b"", b"\x1b", 10**5000, object, OSError("x"), {1}, frozenset({1})))
    if kind == 2:
        value = batch[key]
        if isinstance(value, list) and value:
            batch[key] = [*value[:-1], odd]
        else:
            batch[key] = odd
    elif kind == 3:
        reduced = rng.choice(
            (
                (os.system, ("true",)),
                (eval, ("1",)),
                (np.zeros, (10**12,)),
                (bytearray, (2**40,)),
                (np.ndarray, ((2**40,),)),
                (np.dtype, ("O",)),
                (range, (2**60,)),
            )
        )
        batch[key] = _Call(*reduced)
    elif kind == 4:
        array = rng.choice(
            (
                np.zeros((2, 3072), object),
                np.zeros((2, 3072), np.float64),
                np.zeros((2, 3071), np.uint8),
                np.zeros((0, 3072), np.uint8),
                np.zeros((3072,), np.uint8),
                np.asfortranarray(np.zeros((2, 3072), np.uint8)),
                np.zeros((2, 3072), "S1"),
                np.zeros((2, 3072), ">u2"),
                np.zeros(2, [("a", "u1")]),
            )
        )
        batch[key] = array
    else:
        try:
            batch[odd] = 1
        except TypeError:
            batch = {"odd": odd}
    # A surrogate alone cannot be pickled: it stays what it was.
    try:
        content = pickle.dumps(batch, protocol)
    except (UnicodeEncodeError, ValueError):
        content = rng.choice(BOMBS)
    if rng.random() < 0.3:  # the opcodes themselves
        out = bytearray(content)
        for _ in range(rng.choice((1, 2, 4))):
            out[rng.randrange(min(len(out), 300))] = rng.choice(
                b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c"
                b"\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98"
            )
        content = bytes(out)
    return content


# ----------------------------------------------------------------------------------------- tars


def a_header(rng: random.Random, name: str, size: int) -> bytearray:
    """A tar header in which a field may be odd; its checksum is right all the same."""
    info = tarfile.TarInfo("x")
    info.size = size
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = name.encode("utf-8", "replace")[:100].ljust(100, b"\0")
    kind = rng.randrange(8)
    if kind == 0:
        block[156] = rng.choice(b"0123456789xXgLKSVMD\0\x1b")
    elif kind == 1:  # a size: negative, huge, no number, spaces
        block[124:136] = rng.choice(
            (
                b"\xff" * 12,
                b"\x80" + b"\0" * 3 + b"\xff" * 8,
                b"77777777777\0",
                b"-0000000001\0",
                b" " * 12,
                b"\0" * 12,
                b"9" * 12,
                b"0o17\0" + b" " * 7,
                b"1" + b"\0" * 11,
            )
        )
    elif kind == 2:
        block[345:500] = rng.choice(NAMES).encode("utf-8", "replace")[:155].ljust(155, b"\0")
    elif kind == 3:
        block[257:265] = rng.choice((b"ustar  \0", b"ustar\x0000", b"\0" * 8, b"x" * 8))
    elif kind == 4:
        block[157:257] = b"/etc/passwd".ljust(100, b"\0")
        block[156] = rng.choice(b"12")
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    block[148:156] = f"{total:06o}\0 ".encode()
    return block


def a_pax_header(rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"30 path=../../../etc/passwd\n",
            b"",
            b"0 path=x\n",
            b"9999999 path=x\n",
            b"-5 path=x\n",
            b"11 path=a\0\n",
            b"14 size=\xc2\xb2\xc2\xb2\n",
            pax("size", "9" * 5000),
            pax("size", "-1"),
            pax("size", "²"),
            pax("size", str(rng.choice(NUMBERS))),
            pax("path", rng.choice(NAMES)),
            pax("path", "a/" * 3000 + "x.jpg"),
            pax("GNU.sparse.major", "1"),
            pax("hdrcharset", "BINARY"),
            b"5 a=\n" * 180_000,
        )
    )


def pax(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode("utf-8", "surrogatepass")
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def odd_tar(rng: random.Random) -> bytes:
    out = b""
    for number in range(rng.choice((1, 2, 4))):
        label: Any = number % 3
        if rng.random() < 0.5:
            label = rng.choice(VALUES)
        if rng.random() < 0.2:
            kind = rng.choice("xgLK")
            content = (
                a_pax_header(rng) if kind in "xg" else rng.choice(NAMES).encode("utf-8", "replace")
            )
            block = a_header(random.Random(0), "././@PaxHeader", len(content))
            block[156] = ord(kind)
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            block[148:156] = f"{total:06o}\0 ".encode()
            out += bytes(block) + padded(content)
        name = f"{number:04}" if rng.random() < 0.8 else rng.choice(NAMES)
        suffix = rng.choice(("cls", "json", "txt", "json", "CLS"))
        if suffix == "json":
            fields: dict[str, Any] = {"label": label, "filename": rng.choice(NAMES)}
            if rng.random() < 0.3:
                fields = any_json(rng, fields)
            text = json_bytes(rng, fields)
        else:
            text = str(label).encode("utf-8", "surrogatepass")
        members = [(f"{name}.jpg", JPEG), (f"{name}.{suffix}", text)]
        for called, content in members:
            if rng.random() < 0.25:
                out += bytes(a_header(rng, called, len(content))) + padded(content)
            else:
                quiet = random.Random(0)
                block = a_header(quiet, called, len(content))
                out += bytes(block) + padded(content)
    out += bytes(rng.choice((1024, 1024, 1024, 512, 0, 10240)))
    return damaged(rng, out) if rng.random() < 0.3 else out


def write_shards(rng: random.Random, folder: Path) -> None:
    (folder / "train-000000.tar").write_bytes(odd_tar(rng))
    good = write_tar(folder / "x", samples(3)).read_bytes()
    (folder / "x").unlink()
    (folder / "val-000000.tar").write_bytes(good)


def write_raw_shards(rng: random.Random, folder: Path) -> None:
    """Shards of decoded pixels, in which headers of images lie; now and then those of the tar."""
    for split in ("train", "val"):
        members: list[tuple[str, bytes]] = []
        for number in range(3):
            sides = [rng.choice((4, 5, *NUMBERS)) if rng.random() < 0.3 else 4 for _ in range(2)]
            content = b"P%d\n%d %d\n255\n" % (rng.choice((6, 6, 5, 7)), *sides)
            content += bytes(rng.choice((48, 48, 48, 16, 0, 47, 60)))
            if rng.random() < 0.2:
                content = damaged(rng, content)
            members.append((f"{number}.raw.{rng.choice(('ppm', 'ppm', 'pgm'))}", content))
            members.append((f"{number}.cls", b"%d" % number))
        path = write_tar(folder / f"{split}-000000.tar", members)
        if rng.random() < 0.3:
            path.write_bytes(damaged(rng, path.read_bytes()))


def write_index(rng: random.Random, folder: Path) -> None:
    """Shards that are whole, and an index beside them that lies; its checksum is right."""
    members = samples(4)
    if rng.random() < 0.3:
        members = [(name.replace("jpg", "raw.ppm"), content) for name, content in members]
    for split in ("train", "val"):
        write_tar(folder / f"{split}-000000.tar", members)
    open_source(str(folder), "train", "data_path")
    path = folder / "shards-train.index"
    path.write_bytes(odd_index(rng, path.read_bytes()))


def odd_index(rng: random.Random, whole: bytes) -> bytes:
    body = whole[8 + 32 :]
    length = int.from_bytes(body[:8], "little")
    described, columns = json.loads(body[8 : 8 + length]), body[8 + length :]
    samples_there = described["shards"][0]["samples"]
    kind = rng.randrange(6)
    if kind == 0:
        return damaged(rng, whole)
    if kind == 1:
        described = any_json(rng, described)
    elif kind == 2:
        columns = damaged(rng, columns)
    elif kind == 3:  # numbers of the columns
        at = rng.randrange(0, 24 * samples_there, 4)
        width = rng.choice((4, 8))
        number = rng.choice((*NUMBERS, *(-number for number in NUMBERS)))
        odd = (number & (256**width - 1)).to_bytes(width, "little")
        columns = columns[:at] + odd + columns[at + width :]
    else:
        shard = described["shards"][0]
        names = columns[24 * samples_there : 24 * samples_there + shard["names"]]
        value: Any = rng.choice(
            ([], {}, [[]] * 4, [["a"]] * 4, ["ab"] * 4, [[1, 2]] * 4, None, [["a", "b"]] * 3)
        )
        packed = zlib.compress(json_bytes(rng, value))
        if rng.random() < 0.1:
            packed = list_bomb()
        if kind == 4:
            columns = columns[: 24 * samples_there] + packed
            shard["names"], shard["texts"] = len(packed), 0
        else:
            labels = [rng.choice(VALUES) for _ in range(samples_there)]
            texts = zlib.compress(json.dumps(labels).encode())
            if rng.random() < 0.2:
                texts = packed
            columns = columns[: 24 * samples_there] + names + texts
            shard["texts"] = len(texts)
        if rng.random() < 0.3:
            shard["left_out"] = rng.choice(
                ([], ["x"], ["1"], ["x", "y"], [[], []], "12", ["²", "a"])
            )
    text = json.dumps(described).encode()
    if rng.random() < 0.1:
        text = damaged(rng, text)
    body = len(text).to_bytes(8, "little") + text + columns
    return whole[:8] + sha256(body).digest() + body


# --------------------------------------------------------------------------------------- labels


def write_labels(rng: random.Random, folder: Path) -> None:
    """A table, or ImageNet's images side by side with a file of labels, or names beside shards."""
    rng.choice((write_table, write_flat, write_names))(rng, folder)


def put_images(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)


CELLS = (
    *NAMES,
    *("a|b", ";;", "a;", "|", "0;1;2", '"', '"a', "a,b", "'", "train", "val", "0.5", "true", "1"),
    "|".join(str(n) for n in range(3000)),
)


def write_table(rng: random.Random, folder: Path) -> None:
    put_images(folder, ["a/0.jpg", "a/1.jpg", "b/2.jpg", "3.jpg"])
    header = ["path", "label", "split"]
    rows = [["a/0.jpg", "x", "train"], ["a/1.jpg", "y", "train"], ["b/2.jpg", "x", "val"]]
    rows += [["3.jpg", "y", "val"]]
    if rng.random() < 0.3:
        header = ["path", "x", "y"]
        rows = [[row[0], "1", "0"] for row in rows]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice((header, *rows, *rows))
        kind = rng.randrange(6)
        if kind == 0:
            row.append(rng.choice(CELLS))
        elif kind == 1 and row:
            row.pop()
        elif row:
            row[rng.randrange(len(row))] = rng.choice(CELLS)
    rows.insert(0, header)
    if rng.random() < 0.2:
        rows += [[f"{n}.jpg", f"a{n}|b{n}", "train"] for n in range(2000)]
    text = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    if rng.random() < 0.25:
        text = damaged(rng, text)
    (folder / "x.csv").write_bytes(text)


def write_flat(rng: random.Random, folder: Path) -> None:
    images = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5)]
    put_images(folder, [f"flat/{name}" for name in images])
    name = rng.choice(
        (
            "LOC_val_solution.csv",
            "val.txt",
            "ILSVRC2012_validation_ground_truth.txt",
            "my_synsets.txt",
            "val.csv",
        )
    )
    labels = [rng.choice(imagenet_synsets()) for _ in images]
    if "ground" in name:
        labels = [str(rng.randrange(1, 1001)) for _ in images]
    place = rng.randrange(len(labels))
    labels[place] = rng.choice(CELLS)
    if name.endswith("csv"):
        lines = ["ImageId,PredictionString"]
        lines += [f"{image},{label}" for image, label in zip(images, labels, strict=True)]
    elif name == "val.txt":
        lines = [f"{image} {label}" for image, label in zip(images, labels, strict=True)]
    else:
        lines = labels
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / "flat" / name).write_bytes(damaged(rng, text) if rng.random() < 0.4 else text)
    if rng.random() < 0.2:
        odd = f"n01440764 {rng.choice(CELLS)}\n".encode("utf-8", "surrogatepass")
        (folder / "flat" / "map_clsloc.txt").write_bytes(odd)


def write_names(rng: random.Random, folder: Path) -> None:
    for split in ("train", "val"):
        write_tar(folder / f"{split}-000000.tar", samples(3))
    name = rng.choice(
        ("classnames.txt", "manifest.json", "_info.json", "info.json", "manifest.json")
    )
    names = [rng.choice(NAMES) for _ in range(rng.choice((1, 3, 3, 4)))]
    if name.endswith("txt"):
        text = "\n".join(names).encode("utf-8", "surrogatepass")
        text = damaged(rng, text) if rng.random() < 0.4 else text
    else:
        size = (folder / "train-000000.tar").stat().st_size
        shard = {"name": "train-000000.tar", "bytes": size}
        told: Any = {
            "class_names": ["a", "b", "c"],
            "splits": {
                "train": {"shards": [shard], "num_samples": 3, "complete": True},
                "validation": {"filenames": ["val-000000.tar"], "num_samples": 3},
            },
        }
        for _ in range(rng.choice((1, 1, 3))):
            told = any_json(rng, told)
        text = json_bytes(rng, told)
    (folder / name).write_bytes(text)


def read_labels(folder: Path) -> None:
    if (folder / "flat").is_dir():
        read_all(open_source(str(folder / "flat"), "val", "val_data_path"))
        return
    place = folder / "x.csv" if (folder / "x.csv").exists() else folder
    read_source(place)


# ---------------------------------------------------------------------------------- rank tables


def write_rank_table(rng: random.Random, folder: Path) -> None:
    servers = [
        {
            "server_id": f"10.0.0.{server}",
            "container_ip": f"10.1.0.{server}",
            "device": [
                {"device_id": str(device), "rank_id": str(2 * server + device), "device_ip": "x"}
                for device in range(2)
            ],
        }
        for server in range(2)
    ]
    table: Any = {
        "version": rng.choice(("1.0", "1.2")),
        "status": "completed",
        "server_count": "2",
        "server_list": servers,
    }
    if rng.random() < 0.15:
        ranks = [{"rank_id": n, "local_id": n, "device_id": n} for n in range(3)]
        table = {"version": "2.0", "status": "completed", "rank_count": 3, "rank_list": ranks}
    elif rng.random() < 0.1:
        instances = [{"server_id": "a", "devices": [1, 2]}]
        table = {"status": "x", "group_list": [{"instance_list": instances}]}
    for _ in range(rng.choice((1, 1, 2, 4))):
        table = any_json(rng, table)
    content = json_bytes(rng, table)
    if rng.random() < 0.2:
        content = rng.choice((b'"' + b'\\"' * 200_000, b"//" * 100_000, b'"' * 99_999, b"\xff\xfe"))
        content = rng.choice((b"", b'{"a":')) + content
    (folder / "table.json").write_bytes(content)


def read_table(folder: Path) -> None:
    from vitbase.launch.plan import plan_server
    from vitbase.launch.ranktable import is_own_address, read_rank_table

    table = read_rank_table(folder / "table.json")
    assert table.digest
    odd = [
        name
        for server in table.servers
        for name in (server.address, *server.names)
        if not re.fullmatch(r"[\w.]{1,30}", name)
    ]
    for name in odd:  # others would be looked up in a network
        is_own_address(name if "\0" in name or len(name) > 300 else "127.0.0.1")
    first = table.servers[0].server_id
    plan = plan_server(table, ["train", "fashion"], server_id=first)
    assert plan.command()


FORMATS = {
    "toml": Format(write_toml, read_toml),
    "idx": Format(write_idx, read_source),
    "cifar": Format(write_cifar, read_source),
    "tar": Format(write_shards, read_source),
    "index": Format(write_index, read_source),
    "raw": Format(write_raw_shards, read_source),
    "labels": Format(write_labels, read_labels),
    "rank_table": Format(write_rank_table, read_table),
}


# ------------------------------------------------------------------------------------ the attack


def attack(name: str, rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write and read damaged files.

    Returns: how often what ended how ("read", "refused"); the foreign errors, each with the number
      of the first file that met it; the longest time, and the most memory that was taken.
    """
    form = FORMATS[name]
    outcomes = Counter[str]()
    foreign: dict[str, str] = {}
    longest = 0.0
    before = memory("VmRSS")
    for number in range(rounds):
        rng = random.Random(f"{seed} {number}")
        place = folder / str(number)
        place.mkdir()
        os.environ["VITBASE_CACHE"] = str(folder / f"cache {number}")
        form.write(rng, place)
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(6 * SECONDS)
        try:
            try:
                form.read(place)
            finally:
                signal.alarm(0)
                signal.setitimer(signal.ITIMER_PROF, 0)
            outcomes["read"] += 1
        except VitbaseError as error:
            outcomes["refused"] += 1
            if len(str(error)) > 20_000:
                foreign.setdefault("a message that nobody reads", f"{number}: {str(error)[:300]}")
        except BaseException as error:
            outcomes["foreign"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "vitbase" in frame.filename]
            where = f"{own[-1].filename.rpartition('vitbase/')[2]}:{own[-1].name}" if own else "?"
            kind = f"{type(error).__name__} in {where}"
            foreign.setdefault(kind, f"file {number} of seed {seed}: {str(error)[:200]}")
        longest = max(longest, time.process_time() - started)
        remove(place)
        remove(folder / f"cache {number}")
    return {
        "outcomes": outcomes,
        "foreign": foreign,
        "longest_seconds": round(longest, 2),
        "megabytes": (memory("VmHWM") - before) >> 20,
    }


def remove(folder: Path) -> None:
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in folders:
            os.rmdir(os.path.join(root, name))
    if folder.exists():
        folder.rmdir()


def memory(name: str) -> int:
    """Bytes of memory in use ("VmRSS"), at most ("VmHWM"), or asked for ("VmSize")."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    name, rounds, seed, folder = sys.argv[1:]

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    if name == "rank_table":
        import vitbase.launch.plan  # noqa: F401 (loads torch, whose memory is not the file's)
    limit = memory("VmSize") + (GIGABYTES << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found = attack(name, int(rounds), int(seed), Path(folder))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
