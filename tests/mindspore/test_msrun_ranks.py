"""Several ranks, started by msrun: the same run; nobody else is let in; failures are named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import losses, rows, start
from listening import family_of, is_loopback, listening_addresses
from ranks import free_port

import vitbase


def test_two_ranks_are_one_process_and_listen_on_loopback_alone(small, command_words, tmp_path):
    """Twenty updates of the same global batch; what listens meanwhile is read off the kernel."""
    one = small("mindspore", output_dir=str(tmp_path / "one"))
    vitbase.train(one)
    two = tmp_path / "two"
    words = command_words(output_dir=two, num_devices=2, batch_size=4, global_batch=8)
    seen: set[str] = set()
    process = start(words)
    while process.poll() is None:
        seen |= listening_addresses(family_of(process.pid))
        time.sleep(0.05)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert "2 ranks on CPU, MindSpore" in told
    assert "After 20 updates" in told
    assert seen  # the scheduler, and the ranks
    assert all(map(is_loopback, seen)), seen
    assert losses(two) == pytest.approx(losses(one.output_dir), abs=1e-5)
    found = [rows(run, "eval_top1") for run in (one.output_dir, two)]
    for mine, theirs in zip(*found, strict=True):
        assert mine["eval_images"] == theirs["eval_images"] == 23
        assert mine["eval_top1"] == theirs["eval_top1"]
        assert mine["eval_loss"] == pytest.approx(theirs["eval_loss"], abs=1e-5)
    # One process goes on where two have been, and finds the run finished.
    again = one.replace(output_dir=str(two), batch_size=8)
    assert vitbase.train(again).updates == 20


def test_the_seeds_launcher_starts_ranks_of_a_rank_table(command_words, tmp_path, imagenet):
    """`bash scripts/run_train.sh TABLE imagenet`, with ENGINE=mindspore."""
    table = {
        "version": "1.0",
        "server_count": "1",
        "status": "completed",
        "server_list": [
            {
                "server_id": "127.0.0.1",
                "device": [{"device_id": str(i), "rank_id": str(i)} for i in range(2)],
            }
        ],
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    script = Path(__file__).parents[2] / "scripts" / "run_train.sh"
    options = command_words(output_dir=tmp_path / "run", batch_size=4, total_steps=2)
    given = options[options.index("imagenet") + 1 :]
    at = given.index("--engine")
    del given[at : at + 2]
    words = ["bash", str(script), str(tmp_path / "table.json"), "imagenet", *given]
    variables = {
        "ENGINE": "mindspore",
        "LOG": str(tmp_path / "train.log"),
        "LAUNCH_OPTIONS": f"--port {free_port()}",
    }
    with start(words, **variables) as process:
        assert process.stdout is not None
        assert "in the background" in process.stdout.read()
    log = tmp_path / "train.log"
    wait_until(lambda: "Run folder" in log.read_text(), 120, log)
    assert "2 ranks on CPU" in log.read_text()
    assert len(losses(tmp_path / "run")) == 2


def wait_until(is_so: Any, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_a_rank_that_is_killed_ends_the_others_and_is_told(command_words, tmp_path):
    words = command_words(
        output_dir=tmp_path / "run", num_devices=2, batch_size=4, epoch_size=500, warmup_epochs=0
    )
    process = start(words)
    told = ""
    assert process.stdout is not None
    for line in process.stdout:
        told += line
        if "  step " in line:
            os.kill(rank_of(process.pid, "1"), signal.SIGKILL)
            break
    family = family_of(process.pid)
    told += process.communicate(timeout=120)[0]
    assert process.returncode == 2, told
    assert told.strip().splitlines()[-1].startswith("vitbase: error: ")
    assert "killed by SIGKILL" in told or "lost another rank" in told
    assert not [pid for pid in family if is_running(pid)]


def rank_of(pid: int, rank: str) -> int:
    """Return the process of a rank, below another.

    msrun starts `tail -f` of a rank's log with the rank's own variables, so they do not suffice.
    """
    for child in family_of(pid):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            named = {f"RANK_ID={rank}".encode(), b"MS_ROLE=MS_WORKER"} <= set(variables)
            if named and b"vitbase" in words:
                return child
    raise AssertionError(f"rank {rank} is not there")


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_mistake_of_the_user_is_told_once(command_words, tmp_path):
    words = command_words(
        output_dir=tmp_path / "run", num_devices=2, batch_size=4, data_path=tmp_path / "none"
    )
    with start(words) as process:
        assert process.stdout is not None
        told = process.stdout.read()
    assert process.returncode == 2
    assert told.count("there is no such folder") == 1, told
    assert not (tmp_path / "run").exists()


def two_servers(tmp_path: Path, port: int, *options: str) -> list[str]:
    """Write a table of two servers on this machine; return the words that start the first."""
    rows = [
        {"server_id": f"127.0.0.{n}", "device": [{"device_id": "0", "rank_id": str(n - 1)}]}
        for n in (1, 2)
    ]
    table = {"version": "1.0", "server_count": "2", "status": "completed", "server_list": rows}
    (tmp_path / "table.json").write_text(json.dumps(table))
    place = ["--rank_table", str(tmp_path / "table.json"), "--server_id", "127.0.0.1"]
    launch = ["launch", *place, "--port", str(port), "--max_restarts", "0", *options]
    return [sys.executable, "-m", "vitbase", *launch]


def test_a_server_that_does_not_come_is_told(command_words, tmp_path):
    train = command_words(output_dir=tmp_path / "run", batch_size=4)[3:]
    with start([*two_servers(tmp_path, free_port(), "--timeout", "15"), "--", *train]) as process:
        assert process.stdout is not None
        told = process.stdout.read()
    assert process.returncode == 2
    assert "did not find the others at 127.0.0.1" in told, told
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_told(command_words, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        train = command_words(output_dir=tmp_path / "run", batch_size=4)[3:]
        with start([*two_servers(tmp_path, port), "--", *train]) as process:
            assert process.stdout is not None
            told = process.stdout.read()
    assert process.returncode == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in told
