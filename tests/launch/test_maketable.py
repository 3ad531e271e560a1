"""Rank tables made here, and those that others write: read, or refused with the way out."""

from __future__ import annotations

import json

import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st

from vitbase.errors import LaunchError
from vitbase.launch.maketable import expand_hosts, make_rank_table, parse_ids
from vitbase.launch.ranktable import RankTable, read_rank_table

NOWHERE: dict[str, str] = {}


def ranks_of(table: dict) -> list[tuple[str, str, str]]:
    return [
        (server["server_id"], device["device_id"], device["rank_id"])
        for server in table["server_list"]
        for device in server["device"]
    ]


@pytest.mark.parametrize(
    ("text", "ids"),
    [("4-7", [4, 5, 6, 7]), ("0,2,5-6", [0, 2, 5, 6]), ("[4,8)", [4, 5, 6, 7]), ("3", [3])],
)
def test_devices_are_written_as_people_write_them(text, ids):
    assert parse_ids(text) == ids


@pytest.mark.parametrize("text", ["", "a", "7-4", "0,0", "[8,4)", "1-", "99999", "0-3,2"])
def test_what_is_no_list_of_devices_is_refused(text):
    with pytest.raises(LaunchError, match="--device_ids"):
        parse_ids(text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("a,b-1", ["a", "b-1"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("n[1,3-4]x,m", ["n1x", "n3x", "n4x", "m"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_slurms_short_forms_are_written_out(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "n[", "n[]", "n[2-1]", "n[a]", "a b", "n[1-999999999]", "]["])
def test_what_is_no_list_of_servers_is_refused(text):
    with pytest.raises(LaunchError, match=r"list of servers|more servers"):
        expand_hosts(text)


def test_a_table_of_listed_servers():
    table = make_rank_table(["10.0.0.1:2", "node[1-2]:2"], environment=NOWHERE)
    assert ranks_of(table) == [
        ("10.0.0.1", "0", "0"),
        ("10.0.0.1", "1", "1"),
        ("node1", "0", "2"),
        ("node1", "1", "3"),
        ("node2", "0", "4"),
        ("node2", "1", "5"),
    ]
    assert (table["version"], table["server_count"], table["status"]) == ("1.0", "3", "completed")


@pytest.mark.parametrize(
    ("environment", "servers"),
    [
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "2"}, {"n1": 2, "n2": 2}),
        ({"SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS_PER_NODE": "3"}, {"n1": 3}),
        ({"SLURM_JOB_NODELIST": "n[1-2]"}, {"n1": 8, "n2": 8}),
        ({"VC_WORKER_HOSTS": "job-worker-0.job,job-worker-1.job", "VC_TASK_INDEX": "0"},
         {"job-worker-0.job": 8, "job-worker-1.job": 8}),
    ],
)  # fmt: skip
def test_a_table_of_a_clusters_job(environment, servers):
    table = make_rank_table(local_devices=8, environment=environment)
    counts = {s["server_id"]: len(s["device"]) for s in table["server_list"]}
    assert counts == servers


@given(st.lists(st.tuples(st.integers(1, 254), st.just(4)), min_size=1, max_size=6, unique=True))
def test_what_is_made_is_read(servers):
    import tempfile
    from pathlib import Path

    table = make_rank_table([f"10.0.0.{n}:{c}" for n, c in servers], environment=NOWHERE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        path.write_text(json.dumps(table))
        read = read_rank_table(path)
    assert [s.address for s in read.servers] == [f"10.0.0.{n}" for n, _ in servers]
    assert all(s.device_ids == (0, 1, 2, 3) for s in read.servers)


def test_tables_of_single_servers_become_one(tmp_path):
    for number in (1, 2):
        table = make_rank_table([f"10.0.0.{number}"], device_ids="4-5", environment=NOWHERE)
        table["server_list"][0]["device"][0]["device_ip"] = f"192.1.1.{number}"
        (tmp_path / f"hccl_{number}.json").write_text(json.dumps(table))
    paths = [str(tmp_path / f"hccl_{number}.json") for number in (1, 2)]
    merged = make_rank_table(merge=paths)
    assert [rank for _, _, rank in ranks_of(merged)] == ["0", "1", "2", "3"]
    assert merged["server_list"][1]["device"][0]["device_ip"] == "192.1.1.2"
    with pytest.raises(LaunchError, match=r"hccl_1\.json|already|second time"):
        make_rank_table(merge=[paths[0], paths[0]])
    with pytest.raises(LaunchError, match=r"none\.json"):
        make_rank_table(merge=[paths[0], str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    ("servers", "options", "message"),
    [
        (["a:2", "a:2"], {}, "given twice"),
        (["a:2"], {"device_ids": "0-3"}, "other numbers of devices"),
        (["a:2", "b:3"], {}, "equally many"),
        (["a:0"], {}, "no number of devices"),
        (["a"], {"merge": ["x.json"]}, "Give --merge, or servers"),
    ],
)
def test_what_makes_no_table_is_refused(servers, options, message):
    with pytest.raises(LaunchError, match=message):
        make_rank_table(servers, environment=NOWHERE, **options)


def test_the_command_prints_a_table_that_the_launcher_takes(capsys, tmp_path):
    words = ["--make_rank_table", "--server", "127.0.0.1:2", "--device_ids", "0-1"]
    code, out, err = run_command(capsys, "launch", *words)
    assert (code, err) == (0, "")
    (tmp_path / "table.json").write_text(out)
    read = read_rank_table(tmp_path / "table.json")
    assert read.servers[0].device_ids == (0, 1)
    code, _, err = run_command(capsys, "launch", "--make_rank_table", "--device_ids", "x")
    assert code == 2
    assert "--device_ids 'x'" in err


# --- tables as others write them ------------------------------------------------------------------

SERVER = {"server_id": "10.0.0.1", "device": [{"device_id": "0", "rank_id": "0"}]}
TABLE = {"version": "1.0", "status": "completed", "server_count": "1", "server_list": [SERVER]}


def read(tmp_path, text: object) -> RankTable:
    path = tmp_path / "table.json"
    path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
    return read_rank_table(path)


def test_the_count_of_servers_may_be_missing(tmp_path):
    table = {key: value for key, value in TABLE.items() if key != "server_count"}
    assert len(read(tmp_path, table).servers) == 1


@pytest.mark.parametrize("version", [1.0, 1.2, "1.2"])
def test_the_version_may_be_a_number(tmp_path, version):
    assert len(read(tmp_path, {**TABLE, "version": version}).servers) == 1


def test_a_mark_of_the_order_of_bytes_is_passed_over(tmp_path):
    assert len(read(tmp_path, b"\xef\xbb\xbf" + json.dumps(TABLE).encode()).servers) == 1


def test_comments_as_the_documentation_prints_them(tmp_path):
    text = b"""{
      "status": "completed",   // whether it can be used: "completed"
      "version": "1.0", // http://example.org/
      "server_list": [ // servers
        {"server_id": "http://name//", "host_ip": "10.0.0.1",
         "device": [{"device_id": "0", "rank_id": "0"} // "quoted
        ]}]
    }"""
    found = read(tmp_path, text)
    assert found.servers[0].server_id == "http://name//"


def test_a_container_has_an_address_of_its_own(tmp_path):
    server = {**SERVER, "server_id": "node", "host_ip": "192.0.2.9", "container_ip": "127.0.0.1"}
    found = read(tmp_path, {**TABLE, "server_list": [server]})
    assert found.servers[0].address == "127.0.0.1"
    assert found.find_server() == 0
    for name in ("node", "192.0.2.9", "127.0.0.1"):
        assert found.find_server(name) == 0


def ranks_table(local_ids: list[int]) -> dict:
    listed = [
        {"rank_id": rank, "device_id": local + 4, "local_id": local, "level_list": []}
        for rank, local in enumerate(local_ids)
    ]
    return {"version": "2.0", "status": "completed", "rank_count": len(listed), "rank_list": listed}


def test_a_table_of_ranks_of_one_server_is_read(tmp_path):
    found = read(tmp_path, ranks_table([0, 1, 2, 3]))
    assert [server.device_ids for server in found.servers] == [(4, 5, 6, 7)]
    assert found.find_server() == 0


def test_a_table_of_ranks_of_several_servers_says_what_it_lacks(tmp_path):
    with pytest.raises(LaunchError, match=r"4 ranks on 2 servers.*--make_rank_table --server"):
        read(tmp_path, ranks_table([0, 1, 0, 1]))


def test_a_table_of_groups_says_what_to_make_of_it(tmp_path):
    instances = [
        {"pod_name": f"p{n}", "server_id": f"10.0.0.{n}", "devices": [{"device_id": "0"}] * 8}
        for n in (1, 2)
    ]
    group = {"group_name": "w", "instance_count": "2", "instance_list": instances}
    old = {"status": "completed", "group_count": "1", "group_list": [group]}
    with pytest.raises(LaunchError, match=r"--server 10\.0\.0\.1:8 10\.0\.0\.2:8 > table\.json"):
        read(tmp_path, old)
    for broken in ([], [3], [{"instance_list": 3}], [{"instance_list": [{"server_id": 3}]}]):
        with pytest.raises(LaunchError, match=r"oldest form.*ADDRESS:8"):
            read(tmp_path, {**old, "group_list": broken})
