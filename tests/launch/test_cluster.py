"""Two servers of a rank table, which are one machine, train together: the seed's own commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, environment_of_commands
from made_images import encode, photo
from made_runs import losses_of
from ranks import free_port

import vitbase

SERVERS = ("127.0.0.1", "127.0.0.2")
OPTIONS: dict[str, Any] = {
    "model": "testing",
    "image_height": 32,
    "image_width": 32,
    "num_train_images": 24,
    "num_val_images": 6,
    "num_classes": 3,
    "batch_size": 2,
    "warmup_epochs": 0,
    "log_every_steps": 1,
    "device_target": "CPU",
    "precision": "fp32",
    "num_workers": 1,
    "pre_trained": False,
}


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A few photographs where ImageNet has its own."""
    for split, count in (("ILSVRC2012_train", 8), ("ILSVRC2012_val", 2)):
        for number, synset in enumerate(("n01440764", "n01443537", "n01484850")):
            folder = tmp_path / split / synset
            folder.mkdir(parents=True)
            for image in range(count):
                seed = 100 * number + 10 * image + len(split)
                data = encode(photo(40, 50, seed=seed))
                (folder / f"{synset}_{image}.JPEG").write_bytes(data)
    return tmp_path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two servers with two devices each."""
    servers = [
        {
            "server_id": server,
            "host_nic_ip": "reserve",
            "device": [
                {"device_id": str(i), "device_ip": f"192.1.{number}.{i}", "rank_id": str(rank)}
                for i, rank in enumerate((2 * number, 2 * number + 1))
            ],
        }
        for number, server in enumerate(SERVERS)
    ]
    rows = {"version": "1.0", "server_count": "2", "status": "completed", "server_list": servers}
    path = tmp_path / "rank_table.json"
    path.write_text(json.dumps(rows))
    return path


def start_servers(table: Path, data: Path, **options: Any) -> list[Path]:
    """Start the seed's script on all servers at once; return their logs."""
    port = free_port()
    started = [start_server(server, table, port, data, **options) for server in SERVERS]
    for server, script in zip(SERVERS, started, strict=True):
        out, err = script.communicate(timeout=120)
        assert script.returncode == 0, out + err
        assert f"train_{server}.log" in out
    return [data / server / f"train_{server}.log" for server in SERVERS]


def start_server(
    server: str, table: Path, port: int, data: Path, **options: Any
) -> subprocess.Popen[str]:
    """Start the seed's script on a server, which has a folder of its own."""
    folder = data / server
    folder.mkdir(exist_ok=True)
    words = [f"--{name}={value}" for name, value in {**OPTIONS, **options}.items()]
    words += [
        f"--data_path={data / 'ILSVRC2012_train'}",
        f"--val_data_path={data / 'ILSVRC2012_val'}",
    ]
    launch_options = f"--server_id {server} --port {port}"
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "run_train.sh"), str(table), "imagenet", *words],
        cwd=folder,
        env=environment_of_commands(OMP_NUM_THREADS="1", LAUNCH_OPTIONS=launch_options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def rank_processes(folder: Path) -> list[int]:
    """Return the processes that work in a folder and are ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            here = (entry / "cwd").resolve() == folder.resolve()
            ranks = b"\0RANK=" in b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if here and ranks:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 and /proc are Linux's")
def test_two_servers_train_as_one_process_does_and_survive_a_killed_rank(imagenet, table, tmp_path):
    logs = start_servers(table, imagenet, epoch_size=10, checkpoint_every_steps=1)
    run = imagenet / SERVERS[0] / "ckpt_parallel"
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and '"epoch": 2' in metrics.read_text(), logs[0])
    victims = rank_processes(imagenet / SERVERS[1])
    os.kill(max(victims), signal.SIGKILL)  # on the other server than the log and the checkpoints
    wait_until(lambda: "Run folder: " in logs[0].read_text(), logs[0])
    told = logs[0].read_text()
    assert "on 4 ranks on CPU" in told
    assert "of 8 images (batch_size 2 x 4 devices)" in told
    assert "Continuing from" in told
    assert "evaluated 6 of 6, each once" in told
    assert not (imagenet / SERVERS[1] / "ckpt_parallel").exists()
    assert (run / "checkpoints" / "train_vit_imagenet-10_3").is_dir()
    alone: dict[str, Any] = {"output_dir": str(tmp_path / "alone"), "batch_size": 8}
    alone |= {"checkpoint_every_steps": None, "resume": False}
    vitbase.train(vitbase.load_config(str(run / "config.toml"), **alone))
    assert losses_of(run) == pytest.approx(losses_of(tmp_path / "alone"), abs=1e-5)
