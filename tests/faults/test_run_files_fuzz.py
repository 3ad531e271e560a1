"""Thousands of damaged files of a run folder: each is read, or refused with the project's error.

Seeds are fixed, so a failure comes back. Some damage is blind (bits, bytes, cuts, copies), some
knows the format and, with a manifest written to match it, reaches what is behind the checksums.
`make test-slow` does it at length.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from made_damage import ODD_TEXTS, damaged, odd_json, odd_json_text, odd_value
from made_runs import TINY

import vitbase
from vitbase.config.complete import complete
from vitbase.config.config import load_config
from vitbase.errors import VitbaseError
from vitbase.runs import lock
from vitbase.runs.checkpoints import find_run_folder, list_checkpoints, write_manifest
from vitbase.runs.folder import RunFolder
from vitbase.runs.lock import RunLock
from vitbase.runs.result import report_finished
from vitbase.runtime import joined_runtime
from vitbase.training.optim import build_optimizer
from vitbase.training.start import check_start, find_run
from vitbase.training.state import RunState, stored_tensors
from vitbase.weights.find import find_weights

SECONDS = 20
"""What takes longer hangs; the slowest take some hundredths."""
MEGABYTES = 64
"""All files together may raise the peak of memory by this; the largest has 100 kB."""


class HangError(BaseException):
    """Not an Exception: readers catch those of the libraries below them."""


@pytest.fixture
def hangs_are_errors() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    """The folder of a run of two epochs, with a lock that nobody holds."""
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(folder), "optimizer": "adamw"}
    vitbase.train(load_config("fashion", **options))
    (folder / lock.LOCK_FILE).write_text(json.dumps(lock._this_process() | {"process": 2**22 + 7}))
    return folder


# ---------------------------------------------------------------------------------------- damage


def odd_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A file whose header says odd things, its length being right; or whose numbers are others."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.5:
        return data[: 8 + length] + damaged(rng, body)[: len(body)].ljust(len(body), b"\xff")
    if rng.random() < 0.5:  # whole, but other tensors than the run's
        name = rng.choice(list(header))
        fact = header.pop(name)
        kind, _, rest = name.partition("/")
        odd = (rng.choice(("step", "exp_avg", "weights", "x", "")), rest), (kind, "head.bias")
        header["/".join(rng.choice(odd))] = fact
    else:
        header = odd_json(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def odd_rows(rng: random.Random, data: bytes) -> bytes:
    rows = data.splitlines()
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(rows))
        kind = rng.randrange(5)
        if kind == 0:
            rows[at] = rows[at][: rng.randrange(len(rows[at]) + 1)]
        elif kind == 1:
            rows[at] = damaged(rng, rows[at])
        elif kind == 2:
            rows.insert(
                at, b'{"step": 1, "x": "' + b"x" * rng.choice((10, 70_000, 300_000)) + b'"}'
            )
        elif kind == 3:
            rows.insert(
                at, rng.choice((b"", b"\xff\xfe", b"null", b"[" * 10_000, b"1e999", b"NaN"))
            )
        else:
            with contextlib.suppress(ValueError, RecursionError):
                rows[at] = odd_json_text(rng, json.loads(rows[at]))
    return b"\n".join(rows) + rng.choice((b"", b"\n"))


def odd_toml(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        name = lines[at].partition(" = ")[0]
        value = rng.choice(
            (
                *("nan", "inf", "-1", "0", "9" * 30, "9" * 5000, "1e400", "0x" + "f" * 300, "true"),
                *("[" * 3000, "[]", "[[[]]]", "{}", "{a = {b = 1}}", '"""x"""', "1979-05-27", "''"),
                *(json.dumps(text) for text in ODD_TEXTS[:-3]),
            )
        )
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, rng.choice(lines))
        elif kind == 2:
            lines.insert(at, rng.choice(("[x]", "[[run]]", "[run]", "a.b.c = 1", "x = 1", "[a.b]")))
        else:
            lines[at] = f"{name.strip('[]')} = {value}"
        lines = lines or [""]
    return ("\n".join(lines) + "\n").encode()


def odd_json_file(rng: random.Random, data: bytes) -> bytes:
    return odd_json_text(rng, json.loads(data))


def odd_lines(rng: random.Random, data: bytes) -> bytes:
    words = data.decode().split()
    words[rng.randrange(len(words))] = str(odd_value(rng))[:5000]
    return " ".join(words).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------ readers


class Readers:
    """What a command does with the files of a run, as far as it reads them."""

    def __init__(self, run: Path) -> None:
        self.config = load_config(str(run / "config.toml"))
        self.newest = list_checkpoints(run / "checkpoints")[-1].path
        self.model = vitbase.load_model(self.newest).model

    def goes_on(self, run: Path) -> str | None:
        """Read what `train` reads, up to the first update, and take that with gradients of 0."""
        folder = RunFolder(run)
        found = find_run(self.config, folder)
        check_start(complete(self.config, found.facts, 1), folder)
        if found.checkpoint is None or found.checkpoint.path != self.newest:
            return "passed over"
        with joined_runtime("CPU", 0, "fp32") as runtime:
            optimizer = build_optimizer(self.model, self.config.optimizer, runtime)
            state = RunState(self.model, optimizer, None, runtime)
            state.restore(stored_tensors(found.checkpoint.path), run)
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        return None

    def is_finished(self, run: Path) -> None:
        folder = RunFolder(run)
        progress = find_run(self.config, folder).progress
        if progress is not None:
            report_finished(folder, progress)

    def cuts_back(self, run: Path) -> None:
        RunFolder(run).cut_metrics_back(6)
        assert all(row["step"] <= 6 for row in map(json.loads, _lines(run / "metrics.jsonl")))

    def opens(self, run: Path) -> None:
        find_run_folder(run)
        find_weights(run)

    def configures(self, run: Path) -> None:
        found = find_run_folder(run)
        load_config(str((found or run) / "config.toml"))

    def locks(self, run: Path) -> None:
        held = RunLock(run)
        held.take()
        held.release()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


CHECKPOINT = "checkpoints/train_vit_fashion-2_6/"
FILES: dict[str, tuple[Callable[[random.Random, bytes], bytes], tuple[str, ...]]] = {
    CHECKPOINT + "manifest.json": (odd_json_file, ("goes_on", "opens")),
    CHECKPOINT + "progress.json": (odd_json_file, ("goes_on", "is_finished", "opens")),
    CHECKPOINT + "training_state.safetensors": (odd_safetensors, ("goes_on",)),
    "checkpoints/best.json": (odd_json_file, ("is_finished", "opens")),
    "metrics.jsonl": (odd_rows, ("is_finished", "cuts_back")),
    "config.toml": (odd_toml, ("configures", "goes_on")),
    "run.lock": (odd_json_file, ("locks",)),
    "run.id": (odd_lines, ("goes_on", "opens")),
}


def attack(run: Path, name: str, seed: int, rounds: int) -> tuple[Counter[str], list[str]]:
    """Damage a file again and again, and read it. Returns: how often what ended how; failures."""
    rng = random.Random(seed)
    odd, readers = FILES[name]
    read = Readers(run)
    path = run / name
    whole = path.read_bytes()
    manifest = read.newest / "manifest.json"
    whole_manifest = manifest.read_bytes()
    outcomes = Counter[str]()
    failures: list[str] = []
    for number in range(rounds):
        mutated = odd(rng, whole) if rng.random() < 0.7 else damaged(rng, whole)
        path.write_bytes(mutated)
        matches = path.parent == read.newest and path != manifest and number % 8
        if matches:
            write_manifest(read.newest)
        for reader in readers:
            if reader in {"cuts_back", "locks"}:  # those write
                path.write_bytes(mutated)
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    outcomes[getattr(read, reader)(run) or "read"] += 1
            except VitbaseError:
                outcomes["refused"] += 1
            except BaseException as error:
                signal.alarm(0)
                failures.append(f"{name} {number} of seed {seed}, {reader}: {error!r:.300}")
            finally:
                signal.alarm(0)
        if matches:
            manifest.write_bytes(whole_manifest)
    return outcomes, failures


def memory(name: str) -> int:
    """Bytes of memory in use ("VmRSS"), or that were since `clear_refs` was written ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def check(finished: Path, tmp_path: Path, name: str, seed: int, rounds: int) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of memory so far
        before = memory("VmRSS")
    outcomes, failures = attack(run, name, seed, rounds)
    assert failures == []
    if sys.platform == "linux":
        assert memory("VmHWM") - before < MEGABYTES << 20
    # Damage that nobody notices would prove little; nobody reads best.json.
    noticed = outcomes["refused"] + outcomes["passed over"]
    assert noticed > rounds // 50 or name in {"checkpoints/best.json", "run.id"}
    assert outcomes["read"] > rounds // 50


@pytest.mark.usefixtures("hangs_are_errors")
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_read_or_refused(finished, tmp_path, name):
    check(finished, tmp_path, name, seed=0, rounds=150)


@pytest.mark.slow
@pytest.mark.usefixtures("hangs_are_errors")
@pytest.mark.parametrize("name", FILES)
def test_thousands_of_damaged_files_of_a_run_are_read_or_refused(finished, tmp_path, name):
    check(finished, tmp_path, name, seed=1, rounds=2500)


def test_the_damage_is_of_every_kind():
    """TOML and JSON that is odd is TOML and JSON still, mostly: it gets past the parser."""
    rng = random.Random(0)
    values: list[Any] = [odd_json(rng, {"a": 1, "b": {"c": [1, 2]}}) for _ in range(300)]
    assert len({json.dumps(value)[:200] for value in values}) > 150
    parsed = 0
    for _ in range(100):
        with contextlib.suppress(ValueError, RecursionError):
            tomllib.loads(odd_toml(rng, b"[run]\nseed = 1\n[checkpoint]\nkeep = 2\n").decode())
            parsed += 1
    assert parsed > 30
