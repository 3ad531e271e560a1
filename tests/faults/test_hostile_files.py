"""Damaged and hostile files of every kind that is read: the project's own errors, and in bounds.

Each format has a process of its own, whose memory is limited; `hostile_files` makes the files.
"""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, environment_of_commands
from hostile_files import BOMBS, FORMATS, GIGABYTES, SECONDS, pax
from made_images import write_idx
from made_shards import JPEG, samples, write_tar

from vitbase.config.config import load_config
from vitbase.disk import LONGEST_IMAGE
from vitbase.errors import ConfigError, DataError, LaunchError, WeightsError
from vitbase.files import parse_json
from vitbase.launch.ranktable import is_own_address, read_rank_table
from vitbase.sources.open import open_source
from vitbase.sources.pickles import read_pickle
from vitbase.sources.shards.scan import read_members
from vitbase.sources.source import no_labels, refuse_repeated
from vitbase.weights.files.open import open_tensors

SCRIPT = ROOT / "tests" / "hostile_files.py"
MANY = 2500

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def attacked(form: str, rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    environment = environment_of_commands()
    environment["PYTHONPATH"] += f":{SCRIPT.parent}"
    words = [sys.executable, str(SCRIPT), form, str(rounds), str(seed), str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # else it has crashed: a negative number is a signal
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(form: str, rounds: int, seed: int, folder: Path) -> None:
    found = attacked(form, rounds, seed, folder)
    assert found["foreign"] == {}
    assert found["longest_seconds"] < SECONDS
    assert found["megabytes"] < GIGABYTES << 10
    # Damage that nothing survives, or that nobody notices, would prove little.
    assert min(found["outcomes"]["read"], found["outcomes"]["refused"]) >= rounds // 100


@pytest.mark.parametrize("form", FORMATS)
def test_some_hostile_files_are_read_or_refused_within_bounds(tmp_path, form):
    check(form, 120, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_many_hostile_files_are_read_or_refused_within_bounds(tmp_path, form):
    check(form, MANY, 1, tmp_path)


# What the attack has found, each for itself.


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_a_pickle_that_takes_stack_memory_or_time(tmp_path, number):
    """The second one ended the process: Python hashes tuples in tuples without a bound."""
    (tmp_path / "x").write_bytes(BOMBS[number])
    if number in {11, 12}:  # a long number as a key is none of CIFAR's
        assert len(read_pickle(tmp_path / "x")) == 1
        return
    with pytest.raises(DataError, match=r"is no pickle, or cut short or damaged|is refused"):
        read_pickle(tmp_path / "x")


def test_a_long_number_as_a_key_of_cifar(tmp_path):
    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(pickle.dumps({10**5000: 1}, 2))
    with pytest.raises(DataError, match="has no 'data' of bytes"):
        open_source(str(tmp_path), "train", "data_path")


@pytest.mark.parametrize("sides", [(2**16, 2**24, 2**24), (2**31, 2**31, 4)])
def test_sides_whose_product_overflows(tmp_path, sides):
    write_idx(tmp_path, compress=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *sides))
    with pytest.raises(DataError, match="its header promises"):
        open_source(str(tmp_path), "train", "data_path")


def test_a_packed_file_that_becomes_gigabytes(tmp_path):
    write_idx(tmp_path)
    bomb = gzip.compress(bytes(1 << 25), 9) * 40
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(DataError, match="it unpacks to more than"):
        open_source(str(tmp_path), "train", "data_path")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[run]\nseed = " + "9" * 5000, "is not valid TOML: Exceeds the limit"),
        ("[run]\nseed = 0x" + "f" * 5000, r"\[run\] Option 'seed' should be a number of 64 bits"),
        ("[data]\nimage_height = 18446744073709551616", "should be a number of 64 bits"),
        ("x = " + "[" * 3000, "is not valid TOML: maximum recursion depth"),
        (".".join("a" * 60_000) + " = 1", "a key of it has more than 50 parts"),
        ('x = {"a".' * 2 + "b." * 99 + "c = 1}", "a key of it has more than 50 parts"),
        ("[data]\ndata_path." + "a." * 40 + "b = 1", "should be a valid string"),
        ("#" * (1 << 18) + "\n", "it has more than 262,144 bytes"),
    ],
)
def test_a_configuration_that_takes_stack_or_time(tmp_path, toml, message):
    (tmp_path / "x.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(tmp_path / "x.toml"))
    assert len(str(caught.value)) < 2000


def test_a_configuration_that_is_no_file():
    with pytest.raises(ConfigError, match=r"x\.toml: no file is called so"):
        load_config("\0x.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "' + b'\\"' * 300_000, "is not valid JSON"),
        (b" " * (1 << 23), "it has more than 4,194,304 bytes"),
    ],
)
def test_a_rank_table_that_takes_time(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(LaunchError, match=message):
        read_rank_table(tmp_path / "x.json")
    with pytest.raises(LaunchError, match="it is a device"):
        read_rank_table("/dev/zero")


def test_an_address_that_is_none():
    assert not is_own_address("\0")
    assert not is_own_address("\ud800")


def shard_with(tmp_path: Path, label: object) -> str:
    members = [("0.jpg", JPEG), ("0.json", json.dumps({"label": label}).encode())]
    write_tar(tmp_path / "train-000.tar", members)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10**30, "0.jpg has no label"),
        ([10**400, 1], "0.jpg has no label"),
        ([10**12], r"0\.jpg has the label 1000000000000, of 1 images: these are no numbers"),
        (-1, "all 1 images have the label -1, for none"),
    ],
)
def test_a_label_that_is_none(tmp_path, label, message):
    with pytest.raises(DataError, match=message):
        open_source(shard_with(tmp_path, label), "train", "data_path")


def test_extended_headers_that_take_time_or_say_no_number(tmp_path):
    plain = write_tar(tmp_path / "x.tar", samples(1)).read_bytes()
    for records in (b"5 a=\n" * 180_000, pax("size", "\xb2"), pax("size", "9" * 5000)):
        header = bytearray(plain[:512])
        header[124:136], header[156] = f"{len(records):011o}\0".encode(), ord("x")
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        content = bytes(header) + records + bytes(-len(records) % 512) + plain
        members = [*read_members(lambda a, b, c=content: c[a:b], len(content), "x.tar")]
        assert [member.name for member in members] == ["0000.jpg", "0000.cls"]


def test_an_image_that_is_longer_than_images_are(tmp_path):
    path = write_tar(tmp_path / "train-000.tar", samples(1))
    with path.open("r+b") as file:
        header = bytearray(file.read(512))
        header[124:136] = b"\x80" + (LONGEST_IMAGE * 8).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        file.seek(-(-len(JPEG + b"0") // 512) * 512, 1)
        rest = file.read()  # its label, and the end
        file.seek(0)
        file.write(header)
        file.seek(512 + LONGEST_IMAGE * 8)  # a hole: the file takes no place on the disk
        file.write(rest)
    with pytest.raises(DataError, match=r"0000\.jpg has 8,589,934,592 bytes, more than an image"):
        open_source(str(tmp_path), "train", "data_path")


@pytest.mark.parametrize("name", ["a\0b.tar", "\ud800.tar", "../x.tar", 5])
def test_a_manifest_that_names_no_files(tmp_path, name):
    write_tar(tmp_path / "train-000.tar", samples(1))
    told = {"splits": {"train": {"filenames": [name]}}}
    (tmp_path / "_info.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="is no name of a file in there"):
        open_source(str(tmp_path), "train", "data_path")


def test_a_table_whose_names_are_none(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"path,label\na\0/b\0.jpg,x\n")
    with pytest.raises(DataError, match="1 of 1 images are not there"):
        open_source(str(tmp_path / "x.csv"), "train", "data_path")
    (tmp_path / "0.jpg").write_bytes(JPEG)
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "x.csv").write_text(f"path,label\n0.jpg,{'9' * 5000}\n1.jpg,1\n")
    assert len(open_source(str(tmp_path / "x.csv"), "train", "data_path").class_names) == 2


def test_a_table_of_labels_that_no_memory_holds():
    with pytest.raises(DataError, match="x: 200,000 images with any of 400,000 classes"):
        no_labels(200_000, 400_000, "x")


def test_repeated_names_take_no_square_of_time():
    names = [*map(str, range(200_000)), "0"]
    with pytest.raises(DataError, match="'0' stands there twice"):
        refuse_repeated(names, "x")
    text = "{" + ",".join(f'"{name}": 0' for name in names) + "}"
    with pytest.raises(ValueError, match="'0' stands there twice"):
        parse_json(text)


def test_values_of_json_are_counted():
    assert parse_json('["a,b[", {"c": 1}]', most=5) == ["a,b[", {"c": 1}]
    with pytest.raises(ValueError, match="more than 3 values"):
        parse_json('["a,b[", {"c": 1}]', most=3)


def test_a_file_of_torchs_that_takes_the_stack(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", BOMBS[1])
        archive.writestr("w/version", "3\n")
    with pytest.raises(WeightsError, match="tuples that stand for too many values"):
        open_tensors(tmp_path / "w.pth")
