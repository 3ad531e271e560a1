"""Rank tables, and ranks started from them: small programs on two servers that are one machine."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import environment_of_commands, run_command
from hypothesis import given
from hypothesis import strategies as st
from ranks import free_port
from torch.distributed import TCPStore

from vitbase.errors import LaunchError
from vitbase.launch import plan as launch
from vitbase.launch import ranks, watch
from vitbase.launch.meeting import Seal
from vitbase.launch.ranktable import is_own_address, read_rank_table

SERVERS = ("127.0.0.1", "127.0.0.2")

# What a rank does: each program gets the folder it may write to.
SHOW = """
import json, os, pathlib, sys
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "OMP_NUM_THREADS",
         "VITBASE_DEVICE_IDS", "TORCHELASTIC_USE_AGENT_STORE"]
row = {name: os.environ.get(name) for name in names} | {"words": sys.argv[2:]}
(pathlib.Path(sys.argv[1]) / f"rank{row['RANK']}.json").write_text(json.dumps(row))
"""
HANG = """
import os, pathlib, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
(folder / f"pid{rank}").write_text(str(os.getpid()))
while not all((folder / f"pid{i}").is_file() for i in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.05)
"""
DIES = HANG + "\nif rank == '3': os.kill(os.getpid(), 9)\ntime.sleep(300)"
COUNT = """
import os, pathlib, sys, time
starts = pathlib.Path(sys.argv[1]) / f"starts{os.environ['RANK']}"
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
"""
DIES_ONCE = (
    COUNT
    + HANG
    + """
if starts.read_text() == "x":
    if rank == "3":
        os.kill(os.getpid(), 9)
    time.sleep(300)  # does not notice by itself that rank 3 is gone
"""
)
FINISHES_HALF = HANG + "\n(folder / f'up{rank}').touch()\nif rank in '01': time.sleep(300)"
RAISES = (
    COUNT
    + HANG
    + """
from vitbase.errors import DataError, tell_launcher
try:
    if rank == "1":
        raise DataError("images/ is empty. Give another --data_path.")
except DataError as error:
    print(f"told: {tell_launcher(error)}")
    sys.exit(2)
time.sleep(300)
"""
)


def table_of(*servers: list[tuple[int, int]], names: tuple[str, ...] = SERVERS) -> dict[str, Any]:
    """Build a table from the (device, rank) pairs of each server."""
    return {
        "version": "1.0",
        "server_count": str(len(servers)),
        "status": "completed",
        "server_list": [
            {
                "server_id": name,
                "host_nic_ip": "reserve",
                "device": [
                    {"device_id": str(i), "device_ip": f"192.1.1.{rank}", "rank_id": str(rank)}
                    for i, rank in devices
                ],
            }
            for name, devices in zip(names, servers, strict=False)
        ],
    }


TWO = table_of([(2, 0), (3, 1)], [(0, 2), (1, 3)])


def write(folder: Path, table: Any, name: str = "table.json") -> Path:
    path = folder / name
    path.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return path


def program(folder: Path, text: str) -> Path:
    path = folder / "rank.py"
    path.write_text(text)
    return path


def start(
    folder: Path, *words: object, ignored: signal.Signals | None = None
) -> subprocess.Popen[str]:
    # This process may itself run in the background or under nohup: the launcher should not.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wrapper = "import os, signal, sys\n" + "".join(
        f"signal.signal({number:d}, signal.{'SIG_IGN' if number == ignored else 'SIG_DFL'})\n"
        for number in numbers
    )
    wrapper += "os.execv(sys.executable, [sys.executable, '-m', 'vitbase', *sys.argv[1:]])"
    return subprocess.Popen(
        [sys.executable, "-c", wrapper, "launch", *map(str, words)],
        cwd=folder,
        env=environment_of_commands(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(capfd: Any, folder: Path, text: str, *options: object) -> list[tuple[int, str, str]]:
    """Run both servers, one of them in this process; return (exit code, output, errors) of each."""
    shared = ["--rank_table", write(folder, TWO), "--port", free_port(), *options]
    words = ["--", program(folder, text), folder]
    second = start(folder, *shared, "--server_id", SERVERS[1], *words)
    first = run(capfd, *shared, "--server_id", SERVERS[0], *words)
    out, err = second.communicate(timeout=120)
    return [first, (second.returncode, out, err)]


def run(capture: Any, *words: object) -> tuple[int, str, str]:
    return run_command(capture, "launch", *words)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_all_gone(folder: Path) -> None:
    pids = [int(file.read_text()) for file in folder.glob("pid*")]
    assert pids
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


# --- tables ---------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Valid tables: ranks in the tools' order or any other, numbers as texts or numbers."""
    names = draw(
        st.lists(st.integers(1, 254).map("10.0.0.{}".format), min_size=1, max_size=5, unique=True)
    )
    each = draw(st.integers(1, 8))
    world = list(range(len(names) * each))
    order = world if draw(st.booleans()) else draw(st.permutations(world))
    servers = []
    for i in range(len(names)):
        ids = draw(st.lists(st.integers(0, 15), min_size=each, max_size=each, unique=True))
        servers.append(list(zip(ids, order[i * each : (i + 1) * each], strict=True)))
    table = table_of(*servers, names=tuple(names))
    if draw(st.booleans()):
        table["server_count"] = len(names)
        for server in table["server_list"]:
            for device in server["device"]:
                device["rank_id"] = int(device["rank_id"])
    return table


@given(table=tables())
def test_a_table_becomes_commands_whose_ranks_are_complete(table, tmp_path_factory):
    read = read_rank_table(write(tmp_path_factory.mktemp("table"), table))
    plans = [
        launch.plan_server(read, ["train", "imagenet"], server_id=server.server_id)
        for server in read.servers
    ]
    words = [dict(w[2:].split("=", 1) for w in plan.torchrun_words("")[:8]) for plan in plans]
    # torchrun numbers the servers in the order of their local addresses.
    order = sorted(range(len(plans)), key=lambda i: words[i]["local_addr"])
    assert order == list(range(len(plans)))
    listed = table["server_list"]
    expected = {
        int(device["rank_id"]): (server["server_id"], int(device["device_id"]))
        for server in listed
        for device in server["device"]
    }
    got = [(server.server_id, i) for server in read.servers for i in server.device_ids]
    assert sorted(got) == sorted(expected.values())
    assert got[0] == expected[0]
    if all(
        max(int(d["rank_id"]) for d in s["device"]) - min(int(d["rank_id"]) for d in s["device"])
        < len(s["device"])
        for s in listed
    ):
        assert got == [expected[rank] for rank in range(len(expected))]
    for plan, options in zip(plans, words, strict=True):
        assert int(options["nnodes"]) == len(listed)
        assert int(options["nproc_per_node"]) * len(listed) == len(expected)
        assert options["rdzv_id"] == words[0]["rdzv_id"]
        if len(plans) == 1:  # nobody else to meet: nothing listens
            assert "store_type=file" in options["rdzv_conf"]
        else:
            assert options["rdzv_endpoint"] == f"{got[0][0]}:{launch.PORT}"
            assert ("is_host=1" in options["rdzv_conf"]) == (plan.server == 0)
        assert plan.torchrun_words("")[8:] == ["-m", "vitbase", "train", "imagenet"]
        ids = plan.environment("")[launch.DEVICE_IDS].split(",")
        assert tuple(map(int, ids)) == read.servers[plan.server].device_ids


def _of_device(field: str, value: Any) -> Any:
    def corrupt(table: dict[str, Any], i: int, j: int) -> None:
        table["server_list"][i]["device"][j][field] = value

    return corrupt


def _drop_device(table: dict[str, Any], i: int, j: int) -> None:
    del table["server_list"][i]["device"][j]


def _move_rank(table: dict[str, Any], i: int, j: int) -> None:
    other = table["server_list"][i - 1]["device"][j - 1]
    table["server_list"][i]["device"][j]["rank_id"] = other["rank_id"]


CORRUPTIONS = {
    "status": lambda table, i, j: table.update(status="initializing"),
    "version": lambda table, i, j: table.update(version="2.0"),
    "server_count": lambda table, i, j: table.update(server_count=str(i + 5)),
    "server_list is": lambda table, i, j: table.pop("server_list"),
    "server_list should": lambda table, i, j: table.update(server_list="x"),
    "server_id": lambda table, i, j: table["server_list"][i].update(
        server_id=table["server_list"][i - 1]["server_id"]
    ),
    "server_id is missing": lambda table, i, j: table["server_list"][i].pop("server_id"),
    "].device": _drop_device,
    "device should": lambda table, i, j: table["server_list"][i].update(device=[]),
    "rank_id is": _move_rank,
    "rank 0|rank 1|rank 2|rank 3": _of_device("rank_id", "7"),
    "rank_id should": _of_device("rank_id", "-1"),
    "rank_id should be a whole number": _of_device("rank_id", None),
    "device_id should": _of_device("device_id", "first"),
    "device_id should be": _of_device("device_id", True),
    "should be an object": lambda table, i, j: table["server_list"].__setitem__(i, 3),
}


@pytest.mark.parametrize("field", CORRUPTIONS)
@given(i=st.integers(0, 1), j=st.integers(0, 1))
def test_a_single_fault_in_a_table_is_refused_and_named(field, i, j, tmp_path_factory):
    table = copy.deepcopy(TWO)
    CORRUPTIONS[field](table, i, j)
    path = write(tmp_path_factory.mktemp("fault"), table)
    with pytest.raises(LaunchError) as refused:
        read_rank_table(path)
    assert str(path) in str(refused.value)
    assert any(part in str(refused.value) for part in field.split("|"))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"version": "1.0",}', "[" * 100_000])
def test_what_is_no_table_is_refused(tmp_path, text):
    with pytest.raises(LaunchError, match=r"table\.json"):
        read_rank_table(write(tmp_path, text))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(LaunchError, match="No such file"):
        read_rank_table(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchError, match="not a text file"):
        read_rank_table(tmp_path / "b.json")


def test_a_server_finds_itself_by_its_addresses(tmp_path):
    for own in ("127.0.0.1", "127.0.0.77", "localhost", socket.gethostname()):
        assert is_own_address(own)
    for other in ("192.0.2.1", "no.such.host.invalid", "", "a b"):
        assert not is_own_address(other)
    table = read_rank_table(
        write(tmp_path, table_of([(0, 0)], [(0, 1)], names=("192.0.2.1", "127.0.0.9")))
    )
    assert table.find_server() == 1
    assert table.find_server("192.0.2.1") == 0
    with pytest.raises(LaunchError, match=r"no server '10\.9\.9\.9'.*127\.0\.0\.9"):
        table.find_server("10.9.9.9")
    with pytest.raises(LaunchError, match=r"none of its servers.*--server_id"):
        table.find_server(is_here=lambda address: False)
    with pytest.raises(LaunchError, match=r"several|at once.*--server_id"):
        table.find_server(is_here=lambda address: True)


def test_a_named_server_has_its_address_beside_its_name(tmp_path):
    table = table_of([(0, 0)], [(0, 1)], names=("node_0", "node_1"))
    for server, address in zip(table["server_list"], SERVERS, strict=True):
        server["host_ip"] = address
    read = read_rank_table(write(tmp_path, {**table, "version": "1.2"}))
    plan = launch.plan_server(read, ["train"], server_id="node_1")
    assert plan.addresses == SERVERS
    assert plan.server == 1


def test_device_ids_are_torchs_own_or_those_a_container_sees(tmp_path, monkeypatch):
    table = read_rank_table(write(tmp_path, table_of([(6, 0), (4, 1)], [(1, 2), (0, 3)])))
    expected = {8: [(6, 4), (1, 0)], 2: [(1, 0), (1, 0)], 0: [(6, 4), (1, 0)]}
    for there, ids in expected.items():
        monkeypatch.setattr(launch, "count_devices", lambda words, there=there: there)
        for name, devices in zip(SERVERS, ids, strict=True):
            assert launch.plan_server(table, ["train"], server_id=name).device_ids == devices
    monkeypatch.setattr(launch, "count_devices", lambda words: 4)
    with pytest.raises(LaunchError, match="device_id 6, but this machine has 4"):
        launch.plan_server(table, ["train"], server_id=SERVERS[0])
    with pytest.raises(LaunchError, match="num_devices 5 is more"):
        launch.plan_local(5, ["train"])
    assert launch.plan_local(None, ["train"]).num_devices == 4


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage: vitbase launch"),
        (["--"], "Usage: vitbase launch"),
        (["--", "trian"], "trian"),
        (["--", "none.py"], "none.py does not exist"),
        (["--", "train", "imagnet"], "Did you mean 'imagenet'"),
        (["--", "train", "imagenet", "--lr_intt", "1"], "Did you mean '--lr_init'|lr_init"),
        (["--rank_tabel", "t.json", "--", "train"], "Did you mean 'rank_table'"),
        (["--rank_table", "t.json", "--", "train"], "t.json cannot be read"),
        (["--server_id", "a", "--", "train"], "server_id"),
        (["--num_devices", "0", "--", "train"], "num_devices"),
        (["--num_devices", "2", "--rank_table", "t.json", "--", "train"], "num_devices"),
        (["--port", "70000", "--", "train"], "port"),
        (["--max_restarts", "-1", "--", "train"], "max_restarts"),
        (["--timeout", "0", "--", "train"], "timeout"),
    ],
)
def test_a_mistake_is_one_message_before_anything_starts(
    capsys, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2
    assert any(part in out + err for part in message.split("|"))
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_print_gives_a_command_that_does_the_same(capsys, tmp_path):
    script = program(tmp_path, SHOW)
    code, out, _ = run(
        capsys, "--num_devices", 2, "--print", "--", script, tmp_path, "a b", "--x=$HOME"
    )
    assert code == 0
    assert list(tmp_path.glob("rank*.json")) == []
    subprocess.run(out, shell=True, check=True, capture_output=True, timeout=120)
    rows = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert [row["RANK"] for row in rows] == ["0", "1"]
    assert rows[0]["words"] == ["a b", "--x=$HOME"]
    assert rows[0]["VITBASE_DEVICE_IDS"] is None


def test_ranks_of_two_servers_are_those_of_the_table(capfd, tmp_path):
    for code, _, err in start_two(capfd, tmp_path, SHOW):
        assert (code, err) == (0, "")
    rows = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(4)]
    assert [row["RANK"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["LOCAL_RANK"] for row in rows] == ["0", "1", "0", "1"]
    assert [row["GROUP_RANK"] for row in rows] == ["0", "0", "1", "1"]
    assert [row["VITBASE_DEVICE_IDS"] for row in rows] == ["2,3", "2,3", "0,1", "0,1"]
    assert {row["WORLD_SIZE"] for row in rows} == {"4"}
    assert {row["MASTER_ADDR"] for row in rows} == {"127.0.0.1"}
    # A restart needs a new store for the ranks: see Plan.environment.
    assert {row["TORCHELASTIC_USE_AGENT_STORE"] for row in rows} == {"False"}


def test_a_rank_that_dies_restarts_all_ranks_of_all_servers(capfd, tmp_path):
    first, second = start_two(capfd, tmp_path, DIES_ONCE, "--max_restarts", 1)
    assert (first[0], second[0]) == (0, 0)
    assert "another server restarts its ranks" in first[2]
    assert "rank 3 on 127.0.0.2 was killed by SIGKILL" in second[2]
    starts = [(tmp_path / f"starts{rank}").read_text() for rank in range(4)]
    assert starts == ["xx"] * 4


def test_a_rank_that_keeps_dying_ends_every_server_and_is_named_on_each(capfd, tmp_path):
    started = time.monotonic()
    for code, _, err in start_two(capfd, tmp_path, DIES, "--max_restarts", 0):
        assert code == 2
        last = err.splitlines()[-1]
        assert last.startswith("vitbase: error: rank 3 on 127.0.0.2 was killed by SIGKILL")
        assert "Traceback" not in err
    assert_all_gone(tmp_path)
    assert time.monotonic() - started < 60  # the others would sleep for 300 s


def test_a_mistake_in_a_rank_is_what_the_user_sees_and_is_not_tried_again(tmp_path):
    process = start(tmp_path, "--num_devices", 2, "--", program(tmp_path, RAISES), tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == "told: True\n"
    assert err == "vitbase: error: rank 1: images/ is empty. Give another --data_path.\n"
    assert [(tmp_path / f"starts{rank}").read_text() for rank in range(2)] == ["x", "x"]
    assert_all_gone(tmp_path)


def test_an_error_of_a_vitbase_command_reaches_the_launcher(tmp_path):
    process = start(tmp_path, "--", "eval", "--checkpoint_path", "/no/such/run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("vitbase: error: rank 0: checkpoint_path /no/such/run")
    assert (out + err).count("does not exist") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_ranks(tmp_path, number):
    script = program(tmp_path, HANG + "(folder / f'up{rank}').touch()\ntime.sleep(300)")
    words = ["--num_devices", 2, "--", script, tmp_path]
    process = start(tmp_path, *words, ignored=signal.SIGHUP)  # as nohup starts it
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("up*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)  # the terminal closes: what nohup is there for
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in err
    assert_all_gone(tmp_path)


def test_a_server_whose_ranks_are_done_still_heeds_signals_and_the_others(tmp_path):
    shared = ["--rank_table", write(tmp_path, TWO), "--port", free_port()]
    words = ["--", program(tmp_path, FINISHES_HALF), tmp_path]
    first, second = (start(tmp_path, *shared, "--server_id", name, *words) for name in SERVERS)
    pids = [tmp_path / "pid2", tmp_path / "pid3"]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("up*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    while any(is_running(int(pid.read_text())) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    assert second.poll() is None  # it waits for the ranks of the first
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 143
    _, err = first.communicate(timeout=60)
    assert first.returncode == 2
    assert err.endswith("vitbase: error: server 127.0.0.2 was stopped by SIGTERM\n")
    assert_all_gone(tmp_path)


def test_run_local_returns_the_exit_code_and_raises_what_a_rank_met(tmp_path):
    assert launch.run_local(2, [str(program(tmp_path, SHOW)), str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("rank*.json"))) == 2
    assert "VITBASE_LAUNCHED" not in os.environ
    failing = program(tmp_path, "import os, sys\nsys.exit(int(os.environ['RANK']) * 7)")
    with pytest.raises(LaunchError, match="rank 1 ended with exit code 7"):
        launch.run_local(2, [str(failing)])


# --- servers that do not meet ---------------------------------------------------------------------


def server(tmp_path: Path, name: str, port: int, *options: object) -> list[object]:
    table = write(tmp_path, TWO)
    shared = ["--rank_table", table, "--port", port, "--server_id", name, *options]
    return [*shared, "--", program(tmp_path, SHOW), tmp_path]


def test_a_port_in_use_is_named(capsys, tmp_path):
    with closing(socket.create_server(("", 0))) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(capsys, *server(tmp_path, SERVERS[0], port))
    assert code == 2
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in err


def test_a_server_that_never_comes_is_named(capsys, tmp_path):
    code, _, err = run(capsys, *server(tmp_path, SERVERS[0], free_port(), "--timeout", 1))
    assert code == 2
    assert "127.0.0.2 did not come within 1 s; 1 of 2 servers are here" in err
    assert list(tmp_path.glob("rank*.json")) == []


def test_a_first_server_that_does_not_answer_is_named(capsys, tmp_path):
    port = free_port()
    code, _, err = run(capsys, *server(tmp_path, SERVERS[1], port, "--timeout", 1))
    assert code == 2
    assert f"127.0.0.1, did not answer on port {port} within 1 s" in err
    assert "refused" in err


def test_a_stranger_on_the_port_of_the_first_server_is_noticed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "ANSWER_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:  # listens, never speaks
        port = stranger.getsockname()[1]
        code, _, err = run(capsys, *server(tmp_path, SERVERS[1], port, "--timeout", 1))
    assert code == 2
    assert f"127.0.0.1:{port} does not answer" in err


def test_servers_with_different_tables_do_not_start(capsys, tmp_path):
    port = free_port()
    other = write(tmp_path, table_of([(0, 0), (1, 1)], [(0, 2), (1, 3)]), "other.json")
    first = start(
        tmp_path,
        *("--rank_table", other, "--port", port, "--server_id", SERVERS[0], "--timeout", 20),
        *("--", program(tmp_path, SHOW), tmp_path),
    )
    code, _, err = run(capsys, *server(tmp_path, SERVERS[1], port, "--timeout", 60))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert code == 2
    assert "give both the same rank table" in err
    assert list(tmp_path.glob("rank*.json")) == []


@pytest.mark.parametrize("second", ["the secret of these servers", "another secret, as long", ""])
def test_servers_know_each_other_by_their_secret(capsys, tmp_path, monkeypatch, second):
    secret = "the secret of these servers"
    port = free_port()
    monkeypatch.setenv("VITBASE_SECRET", secret)
    first = start(tmp_path, *server(tmp_path, SERVERS[0], port, "--timeout", 20))
    monkeypatch.setenv("VITBASE_SECRET", second)
    code, _, err = run(capsys, *server(tmp_path, SERVERS[1], port, "--timeout", 60))
    if second != secret:
        first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert code == (0 if second == secret else 2)
    assert ("secret" in err or "do not fit" in err) == (second != secret)
    assert len(list(tmp_path.glob("rank*.json"))) == (4 if second == secret else 0)


def test_a_server_that_falls_silent_is_named(monkeypatch):
    monkeypatch.setattr(watch, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(watch, "_FAREWELL_SECONDS", 0.1)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = (watch.Watch("127.0.0.1", store.port, SERVERS, i, Seal()) for i in range(2))
    first.start("run")
    second.start("run")
    time.sleep(1)
    assert first.verdict is None
    second._ended.set()  # as if the machine had lost its power
    deadline = time.monotonic() + 30
    while first.verdict is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.stop()
    assert first.verdict is not None
    with pytest.raises(LaunchError, match=r"server 127\.0\.0\.2 has not been heard of"):
        first.verdict.raise_()


def test_a_first_server_that_goes_is_noticed(monkeypatch):
    monkeypatch.setattr(watch, "_BEAT_SECONDS", 0.05)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = (watch.Watch("127.0.0.1", store.port, SERVERS, i, Seal()) for i in range(2))
    first.start("run")
    second.start("run")
    first._ended.set()
    first._thread.join()
    del first, store  # the store closes with its last owner
    deadline = time.monotonic() + 30
    while second.verdict is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert second.verdict is not None
    with pytest.raises(LaunchError, match=r"server 127\.0\.0\.1 is gone"):
        second.verdict.raise_()
    second.stop()
