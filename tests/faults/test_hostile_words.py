"""What names from outside say to a terminal: nothing, whatever command meets them, and wherever.

One process runs the commands with pipes, another one in a terminal, where rich draws.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from commands import ROOT, environment_of_commands
from hostile_words import MARK
from made_images import encode, photo
from made_protobuf import field
from made_shards import write_tar
from safetensors.torch import save_file

import vitbase
from vitbase.weights.save import save_weights

SPOOF = "vitbase: all is well"
NASTY = f"a\x1b[2J\x1b]0;t\x07\x9b31m\u202eb\r{SPOOF}\n{SPOOF}\x7f\x00\udce9 [bold]".replace(
    "\x00", ""
)
TEXT = NASTY.replace("\udce9", "\u2028")
LONG = "x\x1b[2J" * 16_000
FINE = ["--model", "testing", "--image_size", "32", "--batch_size", "4", "--epoch_size", "1"]
FINE += ["--warmup_epochs", "0", "--device_target", "CPU", "--log_every_steps", "1"]

RICH = re.compile(r"\x1b\[[0-9;]*m|\x1b\[[0-9]*A|\x1b\[2K|\x1b\[\?25[lh]|\x1b]8;[^\x1b]*\x1b\\")
"""What rich and tyro write to a terminal: colours, a line up, a line cleared, the cursor."""


class Place(NamedTuple):
    """Where what commands are given lies."""

    root: Path
    data: Path
    weights: Path


def toml_text(text: str) -> str:
    """A string of TOML in which every letter is escaped."""
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("words") / NASTY
    data = root / "data"
    for number, name in enumerate((f"{NASTY}1", f"{NASTY}2")):
        (data / name).mkdir(parents=True)
        for image in range(8):
            pixels = photo(20 + image, 24, seed=8 * number + image)
            (data / name / f"{NASTY}{image}.jpg").write_bytes(encode(pixels))
        (data / name / f"{NASTY}.txt").write_text("left out")
    shutil.copytree(data, root / "damaged")
    first = root / "damaged" / f"{NASTY}1"
    (first / f"{NASTY}8.jpg").write_bytes(b"no image")
    (first / f"{NASTY}9.jpg").write_bytes((first / f"{NASTY}0.jpg").read_bytes()[:300])
    (first / f"{NASTY}10.jpg").write_bytes((first / f"{NASTY}0.jpg").read_bytes())
    (root / "damaged" / f".{NASTY}").mkdir()
    weights = root / "weights"
    weights.mkdir()
    write_weights(weights)
    write_sources(root)
    write_settings(root)
    return Place(root, data, weights)


def write_weights(folder: Path) -> None:
    tensors = {f"x{TEXT}": torch.zeros(2), "y": torch.zeros(3)}
    save_file(tensors, folder / "names.safetensors", {TEXT: TEXT})
    own = json.dumps({"spec": {TEXT: 1}, "labels": [TEXT], "preprocess": {TEXT: TEXT}})
    save_file({"y": torch.zeros(3)}, folder / "own.safetensors", {"vitbase": own, TEXT: TEXT})
    torch.save({TEXT: torch.zeros(2), "state_dict": {TEXT: torch.zeros(1)}}, folder / "n.pth")
    (folder / "pickle.pth").write_bytes(b"\x80\x02c" + b"os\nsy\x1b[2Jstem\n)R.")
    (folder / "text.pth").write_bytes(TEXT.encode())
    tensor = field(1, TEXT.encode()) + field(2, field(2, TEXT.encode()) + field(3, b"1234"))
    (folder / "m.ckpt").write_bytes(field(1, tensor))
    np.savez(folder / "n.npz", **{TEXT.replace("\r", "").replace("\n", ""): np.zeros(2)})
    for name, index in (
        ("shard", {"weight_map": {TEXT: TEXT}}),
        ("absent", {"weight_map": {TEXT: "model-00001.safetensors"}}),
    ):
        (folder / name).mkdir()
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
    hub = folder / "hub"
    hub.mkdir()
    labels = {"0": TEXT, "1": TEXT + "1"}
    described = {"architectures": [TEXT], "model_type": TEXT, "id2label": labels}
    (hub / "config.json").write_text(json.dumps(described))
    save_file({"vit.x": torch.zeros(3)}, hub / "model.safetensors", {"format": "pt"})
    model = vitbase.create_model("testing", num_classes=2, image_size=32, gelu="erf")
    save_weights(model, folder / "hf", dialect="hf")
    described = json.loads((folder / "hf" / "config.json").read_text("utf-8"))
    (folder / "hf" / "config.json").write_text(json.dumps({**described, "id2label": labels}))


def write_sources(root: Path) -> None:
    jpeg = encode(photo(20, 24, seed=1))
    rows = [f'"table/{TEXT}{n}.jpg","{TEXT}{n % 2}"' for n in range(8)]
    (root / "table").mkdir()
    for number in range(8):
        (root / "table" / f"{TEXT}{number}.jpg").write_bytes(jpeg + bytes([number]))
    for name, lines in {
        "good.csv": ["path,label", *rows],
        "header.csv": [f'"{TEXT}","{TEXT}2"', *rows],
        "absent.csv": ["path,label", f'"{TEXT}.jpg","x"'],
        "twice.csv": ["path,label", rows[0], rows[0]],
        "split.csv": ["path,label,split", f'{rows[0]},"{TEXT}"'],
    }.items():
        text = "\n".join(lines)
        (root / name).write_text(text, encoding="utf-8", newline="")
    for name, members in {
        "tar": [(f"{TEXT}{n}.{s}", c) for n in range(4) for s, c in (("jpg", jpeg), ("cls", b"1"))],
        "tar labels": [("0.jpg", jpeg), ("0.cls", TEXT.encode())],
        "tar no label": [(f"{TEXT}.jpg", jpeg)],
        "tar twice": [(f"{TEXT}.jpg", jpeg), (f"{TEXT}.JPG", jpeg)],
        "tar json": [("0.jpg", jpeg), ("0.json", json.dumps({"label": [TEXT, 5]}).encode())],
    }.items():
        write_tar(root / name / f"train-{NASTY}.tar", members)
    (root / "tar names").mkdir()
    (root / "tar names" / "classnames.txt").write_text(f"{TEXT}\n{TEXT}", encoding="utf-8")
    write_tar(root / "tar names" / "x.tar", [("0.jpg", jpeg), ("0.cls", b"9")])
    (root / "manifest").mkdir()
    write_tar(root / "manifest" / "x.tar", [("0.jpg", jpeg), ("0.cls", b"9")])
    told = {"splits": {"train": {"filenames": [f"../{TEXT}"]}}}
    (root / "manifest" / "manifest.json").write_text(json.dumps(told))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (root / "parquet").mkdir()
    table = pyarrow.table({TEXT: [1, 2], f"{TEXT}2": ["a", TEXT]})
    with (root / "parquet" / "train.parquet").open("wb") as file:
        parquet.write_table(table, file)


def write_settings(root: Path) -> None:
    odd = toml_text(TEXT)
    for name, text in {
        f"{NASTY}.toml": f"[data]\ndata_path = {odd}\nval_data_path = {odd}\n",
        "key.toml": f"[data]\n{odd} = 1\n",
        "section.toml": f"[{odd}]\nx = 1\n",
        "value.toml": f"[data]\nimage_height = {odd}\n[optimizer]\noptimizer = {odd}\n",
        "syntax.toml": f"[data]\nx\x1b[2J = {TEXT}",
        "name.toml": f"[run]\nname = {odd}\n",
    }.items():
        (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    device = [{"device_id": "0", "rank_id": "0"}]
    server = {"server_id": f"{TEXT} x", "device": device}
    whole = {"version": "1.0", "status": "completed", "server_list": [server]}
    for name, table in {
        f"{NASTY}.json": whole,
        "status.json": {**whole, "status": TEXT},
        "version.json": {**whole, "version": TEXT},
        "number.json": {**whole, "server_count": TEXT},
        "twice.json": {**whole, "server_list": [server, server]},
        "old.json": {"group_list": [{"instance_list": [{"server_id": TEXT}]}]},
    }.items():
        (root / name).write_text(json.dumps(table))


def commands(place: Place, run: str) -> list[list[object]]:
    root, data, weights = place
    first = data / f"{NASTY}1" / f"{NASTY}0.jpg"
    output, shards = root / f"run {run}", root / f"shards {run}"
    train: list[object] = ["train", "finetune", *FINE, "--data_path"]
    return [
        [*train, data, "--output_dir", output],
        [*train, data, "--output_dir", output],
        [*train, data, "--output_dir", output, "--lr_init", "0.3"],
        [*train, root / "damaged", "--output_dir", root / f"damaged run {run}"],
        ["eval", "--checkpoint_path", output],
        ["eval", "--checkpoint_path", output, "--json"],
        ["eval", "--checkpoint_path", output, "--val_data_path", root / "good.csv"],
        ["eval", "--checkpoint_path", output, "--per_class", NASTY],
        ["eval", "--checkpoint_path", root / "none"],
        ["eval", "fashion", "--checkpoint_path", weights / "names.safetensors"],
        ["predict", first, data, "--recursive", "--checkpoint_path", output],
        ["train", "finetune", *FINE, "--data_path", root / "good.csv", "--output_dir", f"t {run}"],
        ["predict", first, "--checkpoint_path", output, "--json"],
        ["predict", root / "none.jpg", "--checkpoint_path", output],
        ["predict", root / "damaged", "--recursive", "--checkpoint_path", output],
        ["predict", data / "*1" / "*", "--checkpoint_path", output, "--unsure", "0.9"],
        [
            *("predict", root / "damaged", "--recursive", "--checkpoint_path", output),
            *("--out", root / f"{NASTY}{run}.csv", "--sort_into", root / f"{NASTY}sorted"),
        ],
        ["predict", first, "--checkpoint_path", output, "--out", root / f"{NASTY}{run}.csv"],
        ["predict", root / f"{NASTY}[", "--checkpoint_path", output],
        ["predict", "--list", root / "good.csv", "--checkpoint_path", output],
        ["predict", root / "tar no label", "--checkpoint_path", output],
        ["predict", first, "--checkpoint_path", output, "--runtime", NASTY],
        ["export", output, root / f"{TEXT}{run}.onnx", "--license", NASTY],
        ["export", output, root / f"{NASTY}{run}.onnx"],
        ["export", output, root / NASTY, "--format", NASTY],
        ["export", root / f"{NASTY}none", root / f"{NASTY}.xml"],
        ["predict", first, "--checkpoint_path", root / f"{TEXT}{run}.onnx"],
        ["bench", root / f"{NASTY}none"],
        ["bench", output, "--ways", NASTY],
        ["predict", first, "--checkpoint_path", root / "none"],
        ["predict", first, "--checkpoint_path", output, "--top", NASTY],
        ["weights", "show", output],
        ["weights", "show", output, "--tensors"],
        ["weights", "show", output, "--json"],
        *(
            words
            for path in (*sorted(weights.iterdir()), *sorted(weights.glob("*/*.index.json")))
            for words in (
                ["weights", "show", path],
                ["weights", "show", path, "--debug"],
                ["predict", first, "--checkpoint_path", path],
            )
        ),
        ["weights", "show", f"hf-hub:{NASTY}"],
        ["weights", "show", f"hf-hub:owner/name@{NASTY}"],
        [
            "weights",
            "convert",
            output,
            root / f"w {run}.pth",
            "--dialect",
            "timm",
            "--allow",
            "gelu",
        ],
        ["weights", "convert", output, root / f"w {run}.pth", "--dialect", "timm"],
        ["weights", "convert", output, root / f"w {run}.{NASTY}", "--dialect", NASTY],
        ["data", "check", data],
        ["data", "check", root / "damaged"],
        ["data", "check", root / "damaged", "--json"],
        ["data", "check", data, "--val_data_path", root / "good.csv"],
        ["data", "pack", data, shards],
        ["data", "pack", root / "damaged", root / f"damaged shards {run}"],
        ["data", "check", shards],
        *(["data", "check", path] for path in sorted(root.glob("*.csv"))),
        *(["data", "check", path] for path in sorted(root.glob("tar*"))),
        *(["data", "check", path, "--debug"] for path in sorted(root.glob("tar*"))),
        ["data", "check", root / "manifest"],
        ["data", "check", root / "parquet"],
        ["data", "check", root / "none"],
        ["data", "check", f"hf:{NASTY}"],
        ["data", "check", f"memory://{NASTY}"],
        ["data", "check", f"~{NASTY}/x"],
        ["data", NASTY],
        ["data", "check", data, f"--{NASTY}", "1"],
        ["data", "check", data, "--seed", NASTY],
        ["explain", "finetune", "--data_path", data],
        *(["explain", path] for path in sorted(root.glob("*.toml"))),
        *(["explain", path, "--debug"] for path in sorted(root.glob("*.toml"))),
        *(["train", path, "--help"] for path in sorted(root.glob("*.toml"))),
        ["train", root / f"{NASTY}.toml"],
        ["explain", NASTY],
        ["explain", "fashion", f"--{NASTY}", NASTY],
        ["explain", "fashion", NASTY, NASTY],
        ["explain", "fashion", "--lr_init", NASTY],
        ["explain", "fashion", "--optimizer", NASTY],
        ["explain", "fashion", "--precision", LONG],
        ["explain", LONG],
        ["explain", "fashion", f"--{LONG}", "1"],
        ["explain", "fashion", "--name", NASTY],
        ["recipes", NASTY],
        [NASTY],
        [NASTY, "--debug"],
        [LONG],
        *(
            ["launch", "--rank_table", path, *more, "--print", "--", "train", "fashion"]
            for path in sorted(root.glob("*.json"))
            for more in ([], ["--server_id", f"{TEXT} x"], ["--server_id", NASTY])
        ),
        ["launch", "--rank_table", root / "none", "--", "train"],
        ["launch", "--", NASTY],
        ["launch", "--", f"{NASTY}.py"],
        ["launch", "--secret_file", NASTY, "--rank_table", root / f"{NASTY}.json", "--", "train"],
        ["launch", "--make_rank_table", "--server", NASTY],
        ["launch", "--make_rank_table", "--merge", root / "old.json"],
        ["launch", f"--{NASTY}", "--", "train"],
    ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = environment_of_commands(
        VITBASE_CACHE=str(tmp_path_factory.mktemp("cache")),
        HF_HOME=str(tmp_path_factory.mktemp("hub")),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TERM="xterm-256color",
        PYTHONWARNINGS="default",
        PYTHONUTF8="1",
        COLUMNS="120",
    )
    found["PYTHONPATH"] += f":{ROOT / 'tests'}"
    return found


def in_pipes(words: list[str], environment: dict[str, str], folder: Path) -> bytes:
    with (folder / "told").open("wb") as file:
        subprocess.run(words, env=environment, stdout=file, stderr=file, check=True, cwd=folder)
    return (folder / "told").read_bytes()


def in_a_terminal(words: list[str], environment: dict[str, str], folder: Path) -> bytes:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder
    ) as running:
        os.close(theirs)
        told = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            told += part
        assert running.wait() == 0, told[-3000:]
    os.close(ours)
    return told


@pytest.mark.parametrize("run", [in_pipes, in_a_terminal], ids=["pipes", "terminal"])
def test_no_name_moves_a_cursor_or_says_a_line(
    place: Place,
    environment: dict[str, str],
    tmp_path: Path,
    run: Callable[[list[str], dict[str, str], Path], bytes],
):
    given = [[str(word) for word in words] for words in commands(place, run.__name__)]
    (tmp_path / "commands").write_text(json.dumps(given))
    words = [sys.executable, str(ROOT / "tests" / "hostile_words.py"), str(tmp_path / "commands")]
    told = run(words, environment, tmp_path).decode("utf-8", "surrogateescape")
    if run is in_a_terminal:
        assert "\x1b[?25l" in told  # rich has drawn
        assert f"\r{SPOOF}" not in told
        told = RICH.sub("", told.replace("\r\n", "\n")).replace("\r", "")
    wrong = []
    number = "0"
    for line in told.split("\n"):
        if line.startswith(MARK):
            number = line.split()[1]
            if line.endswith("crash"):
                wrong.append((given[int(number)], "crashed"))
        if not line.isprintable() or line.lstrip().startswith(SPOOF) or len(line) > 25_000:
            wrong.append((given[int(number)], line[:400]))
    assert not wrong, "\n".join(f"{words} ->\n    {line!r}" for words, line in wrong[:25])
    ended = [line for line in told.split("\n") if line.startswith(MARK) and "ended" in line]
    assert len(ended) == len(given)
    check_files(place.root, run.__name__)


def check_files(root: Path, run: str) -> None:
    """What a person would look at with `cat`."""
    for path in (
        root / f"run {run}" / "held_out.txt",
        root / f"run {run}" / "metrics.jsonl",
        root / f"run {run}" / "config.toml",
        *(root / f"shards {run}").glob("*.json"),
        *(root / f"shards {run}").glob("*.txt"),
    ):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        if path.name == "config.toml":  # TOML has no other spelling of bytes that are no UTF-8
            text = text.replace("\udce9", "")
        assert all(line.isprintable() for line in text.split("\n")), path
