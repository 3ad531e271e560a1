"""Nothing of a run on one machine listens beyond it, and what is said in a store is no program."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st
from listening import family_of, is_loopback, listening_addresses
from ranks import free_port
from torch.distributed import FileStore, TCPStore
from torch.distributed.elastic.rendezvous.api import RendezvousStateError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState

from vitbase.errors import LaunchError
from vitbase.launch.meeting import (
    JsonBackend,
    Seal,
    open_store,
    read_secret,
    state_from_json,
    state_to_json,
)
from vitbase.rendezvous import bound_socket

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
RANKS = """\
import sys, time
from vitbase.runtime import joined_runtime
with joined_runtime("CPU") as runtime:
    assert runtime.all_gather(runtime.rank) == [0, 1]
    (folder := sys.argv[1]) and open(f"{folder}/met{runtime.rank}", "w").close()
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("preset", [None, "eth0"])
def test_a_run_on_one_machine_listens_on_loopback_alone(tmp_path, preset):
    (tmp_path / "rank.py").write_text(RANKS)
    variables = {**os.environ}
    if preset is not None:
        variables |= {"GLOO_SOCKET_IFNAME": preset, "TP_SOCKET_IFNAME": preset}
    words = ["launch", "--num_devices", "2", "--", "rank.py", str(tmp_path), "2"]
    seen: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-m", "vitbase", *words], cwd=tmp_path, env=variables
    ) as launcher:
        while launcher.poll() is None:
            seen |= listening_addresses(family_of(launcher.pid))
            time.sleep(0.02)
    assert launcher.returncode == 0
    assert {path.name for path in tmp_path.glob("met*")} == {"met0", "met1"}
    assert seen  # the exchange of gradients listens
    assert all(map(is_loopback, seen)), seen


def test_the_printed_command_listens_on_loopback_alone(tmp_path, capsys):
    (tmp_path / "rank.py").write_text(RANKS)
    script = tmp_path / "rank.py"
    code, out, _ = run_command(
        capsys, "launch", "--num_devices", 2, "--print", "--", script, tmp_path, 2
    )
    assert code == 0
    seen: set[str] = set()
    with subprocess.Popen(["bash", "-c", out], cwd=tmp_path, stderr=subprocess.DEVNULL) as started:
        while started.poll() is None:
            seen |= listening_addresses(family_of(started.pid))
            time.sleep(0.02)
    assert started.returncode == 0
    assert {path.name for path in tmp_path.glob("met*")} == {"met0", "met1"}
    assert all(map(is_loopback, seen)), seen


def test_the_first_rank_of_torchrun_listens_at_its_address_alone():
    with bound_socket("127.0.0.1", 0) as made:
        made.listen()
        assert made.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            bound_socket("127.0.0.1", made.getsockname()[1])
    with pytest.raises(OSError, match="assign"):
        bound_socket("192.0.2.1", 0)  # an address of no machine


def test_the_store_of_several_servers_listens_at_the_first_ones_address_alone():
    port = free_port()
    store = open_store("127.0.0.1", port, hosts=True, timeout=10)
    store.set("key", "value")
    assert open_store("127.0.0.1", port, hosts=False, timeout=10).get("key") == b"value"
    assert is_loopback(next(iter(listening_addresses({os.getpid()}))))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)
    with pytest.raises(LaunchError, match=r"cannot listen at 127\.0\.0\.1 port"):
        open_store("127.0.0.1", port, hosts=True, timeout=10)
    del store


class Attack:
    """Unpickled, it leaves a file: what an attacker's program would do."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


def test_a_pickle_in_the_store_is_never_run(tmp_path):
    marker = tmp_path / "attacked"
    payload = base64.b64encode(pickle.dumps(Attack(marker))).decode()
    pickle.loads(base64.b64decode(payload))
    assert marker.exists()  # it is an attack
    marker.unlink()
    store = FileStore(str(tmp_path / "store"))
    backend = JsonBackend(store, "vitbase", Seal())
    store.set("torch.rendezvous.vitbase", payload)
    with pytest.raises(RendezvousStateError, match="damaged"):
        backend.get_state()
    assert not marker.exists()


def test_an_attack_on_the_port_of_a_launch_runs_nothing(tmp_path):
    """The whole: two servers are awaited, and somebody who reaches the port speaks first."""
    marker, port = tmp_path / "attacked", free_port()
    rows = [
        {"server_id": f"127.0.0.{n}", "device": [{"device_id": "0", "rank_id": str(n - 1)}]}
        for n in (1, 2)
    ]
    table = {"version": "1.0", "server_count": "2", "status": "completed", "server_list": rows}
    (tmp_path / "table.json").write_text(json.dumps(table))
    (tmp_path / "rank.py").write_text(RANKS)
    options = ["--rank_table", "table.json", "--server_id", "127.0.0.1", "--port", str(port)]
    words = ["launch", *options, "--timeout", "20", "--", "rank.py", str(tmp_path), "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "vitbase", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        attacker = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        payload = base64.b64encode(pickle.dumps(Attack(marker))).decode()
        (key,) = [k for k in (f"torch.rendezvous.{_run_id(tmp_path)}",) if attacker.check([k])]
        attacker.set(key, payload)
        _, errors = launcher.communicate(timeout=90)
    assert launcher.returncode == 2
    assert "Traceback" not in errors
    assert not marker.exists()


def _run_id(folder: Path) -> str:
    from vitbase.launch.ranktable import read_rank_table

    return f"vitbase-{read_rank_table(folder / 'table.json').digest}"


_NODES = st.builds(_NodeDesc, st.text(max_size=20), st.integers(0, 2**31), st.integers(0, 99))
_MOMENTS = st.datetimes(timezones=st.just(UTC))


@st.composite
def states(draw: st.DrawFn) -> _RendezvousState:
    state = _RendezvousState()
    state.round, state.complete = draw(st.integers(0, 99)), draw(st.booleans())
    state.closed, state.deadline = draw(st.booleans()), draw(st.none() | _MOMENTS)
    state.participants = draw(st.dictionaries(_NODES, st.integers(0, 999), max_size=5))
    state.wait_list = draw(st.sets(_NODES, max_size=5))
    state.redundancy_list = draw(st.sets(_NODES, max_size=5))
    state.last_heartbeats = draw(st.dictionaries(_NODES, _MOMENTS, max_size=5))
    return state


@given(states())
def test_a_rendezvous_state_comes_back_from_json_as_it_was(state):
    again = state_from_json(json.dumps(state_to_json(state)))
    assert vars(again) == vars(state)


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"round": True},
        {"participants": [["a", 1, 0]]},
        {"participants": [["a", 1, 0, "0"]]},
        {"participants": [["a", "1", 0, 0]]},
        {"wait_list": [{}]},
        {"wait_list": "abc"},
        {"deadline": "yesterday"},
        {"deadline": 5},
        {"last_heartbeats": [["a", 1, 0, None]]},
        {"wait_list": [["a", 1, 0]] * 10_001},
    ],
)
def test_a_state_that_is_none_is_refused(tmp_path, change):
    store = FileStore(str(tmp_path / "store"))
    backend = JsonBackend(store, "vitbase", Seal())
    text = json.dumps({**state_to_json(_RendezvousState()), **change})
    store.set("torch.rendezvous.vitbase", base64.b64encode(text.encode()).decode())
    with pytest.raises(RendezvousStateError, match="damaged"):
        backend.get_state()


def test_states_are_exchanged_and_fenced(tmp_path):
    store = FileStore(str(tmp_path / "store"))
    backend = JsonBackend(store, "run", Seal(b"0123456789abcdef"))
    assert backend.get_state() is None
    first = _RendezvousState()
    first.last_heartbeats = {_NodeDesc("a", 1, 0): datetime(2026, 1, 1, tzinfo=UTC)}
    _, token, done = backend.set_state(pickle.dumps(first))
    assert done
    second = _RendezvousState()
    second.round = 1
    _, _, done = backend.set_state(pickle.dumps(second), b"another token")
    assert not done
    bits, _, done = backend.set_state(pickle.dumps(second), token)
    assert done
    assert pickle.loads(bits).round == 1


def test_what_is_not_signed_with_the_servers_secret_is_refused(tmp_path):
    store = FileStore(str(tmp_path / "store"))
    mine = JsonBackend(store, "run", Seal(b"0123456789abcdef"))
    for seal in (Seal(), Seal(b"another secret, as long")):
        theirs = JsonBackend(FileStore(str(tmp_path / f"{id(seal)}")), "run", seal)
        theirs.set_state(pickle.dumps(_RendezvousState()))
        store.set("torch.rendezvous.run", theirs._inner._store.get("torch.rendezvous.run"))
        with pytest.raises(LaunchError, match="not signed with this server's secret"):
            mine.get_state()
    # What was said of one thing is not taken for another.
    seal = Seal(b"0123456789abcdef")
    assert seal.open(seal.close("text", "one").encode(), "one") == "text"
    with pytest.raises(LaunchError, match="not signed"):
        seal.open(seal.close("text", "one").encode(), "other")


def test_where_a_secret_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("VITBASE_SECRET", raising=False)
    assert read_secret(None) is None
    monkeypatch.setenv("VITBASE_SECRET", "sixteen bytes or more")
    assert read_secret(None) == b"sixteen bytes or more"
    (tmp_path / "secret").write_text("another secret, as long\n")
    assert read_secret(str(tmp_path / "secret")) == b"another secret, as long"
    (tmp_path / "secret").write_text("short")
    with pytest.raises(LaunchError, match="has 5 bytes; a secret has at least 16"):
        read_secret(str(tmp_path / "secret"))
    with pytest.raises(LaunchError, match="cannot be read"):
        read_secret(str(tmp_path / "none"))
