"""Processes in place of threads: the same batches and errors, and nothing that outlives them."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from listening import family_of
from made_images import write_folder
from made_runs import losses_of
from made_server import serving
from ranks import train_on

import vitbase
from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.curation.packing.pack import pack_data
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import IGNORED_LABEL, Batch, TrainLoader
from vitbase.errors import ConfigError, DataError, tell_launcher
from vitbase.sources.folders import read_folder
from vitbase.sources.named import _Joined
from vitbase.sources.open import open_source
from vitbase.sources.source import Source, unlabelled

PREPROCESS = default_preprocess(32, 32, 3)
EVERYTHING = AugmentSection(
    policy="randaugment_timm", color_jitter=0.3, erase_probability=0.5, erase_mode="pixel"
)


def loader(source: Source, augment: AugmentSection = EVERYTHING, **options: Any) -> TrainLoader:
    options = {"seed": 3, "batch_size": 8, "num_workers": 2, **options}
    return TrainLoader(source, TrainTransform(PREPROCESS, augment), **options)


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert (one.step, one.bad) == (other.step, other.bad)
        for name in ("images", "labels", "positions", "readable"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def helpers_of(process: int) -> list[int]:
    """Return the processes that prepare images for one, and that which they are copies of."""
    found = sorted(family_of(process) - {process})
    return [pid for pid in found if b"vitbase.data.processes" in told_of(pid, "cmdline")]


def told_of(process: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{what}").read_bytes()
    except OSError:
        return b""


def wait_until_gone(processes: list[int]) -> None:
    """A zombie is gone, whoever has still to ask for it."""
    deadline = time.monotonic() + 20
    left = processes
    while left and time.monotonic() < deadline:
        states = {pid: told_of(pid, "stat").rpartition(b") ")[2][:1] for pid in left}
        left = [pid for pid, state in states.items() if state not in {b"", b"Z"}]
        time.sleep(0.02)
    assert not left


def test_every_kind_of_source_gives_the_same_batches(photos, tmp_path):
    pack_data(str(photos), tmp_path / "shards")
    pack_data(str(photos), tmp_path / "raw", raw=40)
    files = [str(path) for path in sorted(photos.rglob("*.*"))[:5]]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["one"])}
    rows = {"image": files, "label": [0] * 5}
    saved = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "rows")
    with serving(tmp_path / "shards") as server:
        places = (str(photos), tmp_path / "shards", tmp_path / "raw", tmp_path / "rows", server.url)
        parts = [open_source(str(place), "train", "data_path") for place in places]
        parts.append(open_source("embedded", "train", "data_path").take(np.arange(20)))
        ends = np.cumsum([len(part) for part in parts])
        images = _Joined(tuple(parts), ends)
        source = Source(images, np.arange(ends[-1]), *unlabelled(ends[-1]))
        threads, processes = (loader(source, processes=given) for given in (False, True))
        assert_same([*processes.epoch(0)], [*threads.epoch(0)])
        assert_same([*processes.epoch(1, 2)], [*threads.epoch(1, 2)])  # and again, from within


def test_images_that_cannot_be_read_are_named_as_by_threads(tmp_path):
    root = write_folder(tmp_path, {"a": 20, "b": 20}, (40, 50))
    for name in sorted(root.rglob("*.*"))[::9]:
        name.write_bytes(name.read_bytes()[:200])
    source = read_folder(root, "data_path")
    threads, processes = (loader(source, processes=given) for given in (False, True))
    found = [*processes.epoch(0)]
    assert_same(found, [*threads.epoch(0)])
    assert sum(len(batch.bad) for batch in found) >= 3
    assert all((batch.labels[~batch.readable] == IGNORED_LABEL).all() for batch in found)


class _TwoPartsError(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class _Failing:
    """Images that fail in two ways."""

    def read(self, row: int) -> bytes:
        if row:
            raise ZeroDivisionError("a bug")
        raise _TwoPartsError("a", "bug")

    def describe(self, row: int) -> str:
        return str(row)


@pytest.mark.parametrize(
    ("row", "error"), [(1, ZeroDivisionError), (0, RuntimeError)], ids=["as it is", "as a text"]
)
def test_what_a_helper_raises_comes_out_and_nothing_outlives_the_loader(photos, row, error):
    source = read_folder(photos, "data_path")
    source = replace(source, images=_Failing(), rows=np.full(len(source), row))
    processes = loader(source, num_workers=1, processes=True)
    with pytest.raises(error, match="a bug"):
        next(processes.epoch(0))
    assert processes.helpers is not None
    left = [*family_of(processes.helpers._process.pid)]
    assert len(left) == 2
    del processes
    gc.collect()
    wait_until_gone(left)


def test_where_none_can_be_started_it_is_said(photos, monkeypatch):
    def full() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", full)
    with pytest.raises(DataError, match=r"Too many open files. Give a smaller --num_workers"):
        loader(read_folder(photos, "data_path"), processes=True)


@pytest.mark.slow
def test_one_that_stands_still_does_not_outlive_a_run_that_was_killed(photos, tmp_path):
    words = [sys.executable, "-c", RUN, str(photos), str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert run.poll() is None
            time.sleep(0.05)
        left = helpers_of(run.pid)
        assert len(left) == 3
        for pid in left:
            if told_of(pid, "stat").rpartition(b") ")[2].split()[1] != str(run.pid).encode():
                os.kill(pid, signal.SIGSTOP)
        run.kill()
        run.communicate(timeout=30)  # the pipe is let go
    wait_until_gone(left)


def test_a_helper_that_is_killed_is_told_and_a_launcher_tries_again(photos, tmp_path, monkeypatch):
    processes = loader(read_folder(photos, "data_path"), processes=True)
    with closing(processes.epoch(0)) as batches:
        next(batches)
    assert processes.helpers is not None
    copies = family_of(server := processes.helpers._process.pid) - {server}
    assert len(copies) == 2
    for pid in copies:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"was killed by SIGKILL.*smaller --num_workers") as raised:
        [batch for _ in range(9) for batch in processes.epoch(0)]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    tell_launcher(raised.value)
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert told["message"] == str(raised.value)
    assert told["is_mistake"] is False


RUN = """
import os, sys
from vitbase.cli.main import main
main(["train", "finetune", "--data_path", sys.argv[1], "--output_dir", sys.argv[2], "--model",
      "testing", "--pool", "gap", "--image_size", "32", "--batch_size", "4", "--epoch_size", "9999",
      "--device_target", "CPU", "--pre_trained", "False", "--num_workers", "2",
      "--worker_processes", "True"])
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_none(photos, tmp_path, end):
    """A scheduler asks every process of a job to stop: the run answers as without them."""
    words = [sys.executable, "-c", RUN, str(photos), str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as run:  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 100
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        left = helpers_of(run.pid)
        assert len(left) == 3
        for pid in [run.pid] if end == signal.SIGKILL else [*left, run.pid]:
            os.kill(pid, end)
        _, said = run.communicate(timeout=60)
    wait_until_gone(left)
    assert "Traceback" not in said
    assert run.returncode == (75 if end == signal.SIGTERM else -9), said


def test_a_run_is_the_same_on_two_ranks_and_goes_on_without_them(photos, tmp_path):
    options: dict[str, Any] = {
        **{"data_path": str(photos), "model": "testing", "image_height": 32, "image_width": 32},
        **{"pool": "gap", "device_target": "CPU", "precision": "fp32", "pre_trained": False},
        **{"policy": "randaugment_timm", "global_batch": 8, "batch_size": 4, "epoch_size": 2},
        **{"log_every_steps": 1, "warmup_epochs": 0, "num_workers": 1, "keep_checkpoint_max": 9},
        "checkpoint_every_steps": 2,
    }
    train_on(tmp_path / "threads" / "run", 1, "finetune", **options)
    wanted = pytest.approx(losses_of(tmp_path / "threads" / "run"), abs=1e-5)
    folder = tmp_path / "processes" / "run"
    train_on(folder, 2, "finetune", worker_processes=True, **options)
    assert losses_of(folder) == wanted
    for path in sorted((folder / "checkpoints").glob("train_vit_*"))[1:]:
        path.rename(tmp_path / path.name)
    train_on(folder, 2, "finetune", **options)
    assert losses_of(folder) == wanted


def test_no_file_of_the_working_folder_is_run(photos, tmp_path, monkeypatch):
    for name in ("signal", "enum", "torch", "numpy", "vitbase"):
        (tmp_path / f"{name}.py").write_text("open('it ran', 'w')")
    monkeypatch.chdir(tmp_path)
    processes = loader(read_folder(photos, "data_path"), num_workers=1, processes=True)
    with closing(processes.epoch(0)) as batches:
        next(batches)
    assert not (tmp_path / "it ran").exists()


def test_they_end_with_the_run(photo_config):
    before = helpers_of(os.getpid())
    gc.disable()
    try:
        vitbase.train(photo_config(worker_processes=True, num_workers=1, pre_trained=False))
        assert {*helpers_of(os.getpid())} <= {*before}
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("options", "what"),
    [({"decoder": "device"}, "decoder device"), ({"freeze_backbone": True}, "freeze_backbone")],
)
def test_what_makes_no_sense_is_refused(config, options, what):
    with pytest.raises(ConfigError, match=f"worker_processes has no use with {what}"):
        config(worker_processes=True, **options)


def test_where_threads_wait_for_each_other_it_is_said(photos, monkeypatch):
    monkeypatch.setattr("vitbase.data.loader.available_cores", lambda: 8)
    threads = loader(read_folder(photos, "data_path"), num_workers=8)
    threads.seconds_waited = 5.0
    assert "--worker_processes True" in str(threads.describe_bottleneck(100, 10.0))
    assert "--worker_processes" not in str(threads.describe_bottleneck(100, 100.0))
