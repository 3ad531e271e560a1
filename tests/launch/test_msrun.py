"""What a rank table, or a number of devices, means to msrun; no MindSpore needed."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from commands import run_command

from vitbase.errors import LaunchError
from vitbase.launch import msrun
from vitbase.launch.msrun import msrun_environment, msrun_words
from vitbase.launch.plan import plan_launch
from vitbase.launch.start import plan_for

TRAIN = ["train", "imagenet", "--engine", "mindspore"]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two servers of two devices each, as the seed's README describes them."""
    servers = [
        {
            "server_id": f"10.0.0.{n + 1}",
            "device": [{"device_id": str(i + 4), "rank_id": str(2 * n + i)} for i in range(2)],
        }
        for n in range(2)
    ]
    content = {"version": "1.0", "server_count": "2", "status": "completed"}
    (tmp_path / "table.json").write_text(json.dumps({**content, "server_list": servers}))
    return str(tmp_path / "table.json")


@pytest.mark.parametrize("server", [0, 1])
def test_a_rank_table_of_two_servers_becomes_arguments_of_msrun(table, server):
    address = f"10.0.0.{server + 1}"
    plan = plan_launch(TRAIN, rank_table=table, server_id=address, port=8118, timeout=60)
    assert msrun_words(plan, "logs") == [
        "--worker_num=4",
        "--local_worker_num=2",
        "--master_addr=10.0.0.1",
        "--master_port=8118",
        f"--node_rank={server}",
        "--cluster_time_out=60",
        "--log_dir=logs",
        "--join=True",
        *("python", "-m", "vitbase", *TRAIN),
    ]
    variables = msrun_environment(plan)
    assert variables["VITBASE_DEVICE_IDS"] == "4,5"
    assert variables["LOCAL_WORLD_SIZE"] == "2"


def test_local_ranks_meet_on_loopback():
    plan = plan_for("mindspore", TRAIN, num_devices=2)
    assert "--master_addr=127.0.0.1" in msrun_words(plan, "logs")
    assert "--worker_num=2" in msrun_words(plan, "logs")
    assert "VITBASE_DEVICE_IDS" not in msrun_environment(plan)


def test_a_processor_is_one_device_where_nobody_says_more():
    plan = plan_for("mindspore", [*TRAIN, "--device_target", "CPU"])
    assert plan.num_devices == 1


def test_the_command_can_be_printed(table, capsys, tmp_path):
    options = ["--rank_table", table, "--server_id", "10.0.0.2", "--print"]
    code, out, _ = run_command(capsys, "launch", *options, "--", *TRAIN)
    assert code == 0
    words = shlex.split(out)
    assert "mindspore.parallel.cluster.run" in words
    assert "--node_rank=1" in words
    script = tmp_path / "train.py"
    script.touch()
    options = ["--num_devices", "2", "--print", "--", script, "--engine=mindspore"]
    code, out, _ = run_command(capsys, "launch", *options)
    assert "mindspore.parallel.cluster.run" in shlex.split(out)
    code, out, _ = run_command(capsys, "launch", "--num_devices", "2", "--print", "--", script)
    assert "torch.distributed.run" in shlex.split(out)


def test_a_port_in_use_is_told_before_anything_starts(tmp_path):
    rows = [
        {"server_id": f"127.0.0.{n}", "device": [{"device_id": "0", "rank_id": str(n - 1)}]}
        for n in (1, 2)
    ]
    table = {"version": "1.0", "server_count": "2", "status": "completed", "server_list": rows}
    (tmp_path / "table.json").write_text(json.dumps(table))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place: dict[str, Any] = {"rank_table": str(tmp_path / "table.json"), "port": port}
        plan = plan_launch(TRAIN, server_id="127.0.0.1", **place)
        with pytest.raises(LaunchError, match=rf"cannot listen at 127\.0\.0\.1 port {port}"):
            msrun.run_msrun(plan)


LOST = "vitbase: error: Rank 0 of 2 lost another rank: connection reset\n"
MISTAKE = "some output\nvitbase: error: There is no\nsuch thing\n[INFO] DISTRIBUTED(1): bye\n"


@pytest.mark.parametrize(
    ("logs", "own", "message", "is_mistake"),
    [
        ({"worker_0": LOST, "worker_1": MISTAKE}, "", "Rank 1: There is no\nsuch thing", True),
        ({"worker_0": LOST, "worker_1": ""}, "", "Rank 0: Rank 0 of 2 lost", False),
        (
            {"worker_0": ""},
            "Worker process 7 exit with exception. Error code: -9.",
            "killed by SIGKILL",
            False,
        ),
        ({"worker_0": "Traceback\nMemoryError"}, "", "MemoryError", False),
    ],
)
def test_the_rank_at_fault_is_named(tmp_path, logs, own, message, is_mistake):
    for name, text in logs.items():
        (tmp_path / f"{name}.log").write_text(text)
    with pytest.raises(msrun._RankFailedError) as raised:
        msrun._raise_first(tmp_path, own)
    assert message in str(raised.value)
    assert raised.value.is_mistake == is_mistake


def test_ranks_are_started_again_after_a_fault_that_may_pass(monkeypatch, capsys):
    tries = []

    def run(plan: Any, folder: Path) -> int:
        tries.append(plan.port)
        if len(tries) < 3:
            raise msrun._RankFailedError("A rank was killed by SIGKILL.", is_mistake=False)
        return 0

    monkeypatch.setattr(msrun, "_run_once", run)
    plan = plan_for("mindspore", TRAIN, num_devices=2, max_restarts=2)
    assert msrun.run_msrun(plan) == 0
    assert capsys.readouterr().err.count("restarting the ranks of this server") == 2
    assert all(port > 0 for port in tries)
    tries.clear()
    with pytest.raises(LaunchError, match="killed by SIGKILL"):
        msrun.run_msrun(plan_for("mindspore", TRAIN, num_devices=2, max_restarts=1))
