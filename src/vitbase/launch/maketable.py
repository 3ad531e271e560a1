"""Makes rank tables: from this machine's devices, from a list of servers, or from tables of one.

What Ascend's own tools do (hccl_tools, merge_hccl), for any kind of device, and for the lists of
servers that cluster managers hand out.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbase.errors import LaunchError
from vitbase.launch.ranktable import parse_rank_table, read_table_file

_ADDRESSES = Path("/etc/hccn.conf")  # of Ascend's devices: lines such as address_0=192.168.100.101
_MOST_SERVERS = 100_000


def make_rank_table(
    servers: Sequence[str] = (),
    *,
    device_ids: str | None = None,
    merge: Sequence[str] = (),
    local_devices: int = 1,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Make a rank table.

    Args:
      servers: each an address and how many devices, such as "10.0.0.1:8"; SLURM's short form
        "node[01-04]:8" stands for several. Without any: the servers of the SLURM or Volcano job
        that this runs in, or else this machine.
      device_ids: of every server, such as "4-7", "0,2" or, as hccl_tools has it, "[4,8)".
      merge: tables of single servers, to become one, in this order.
      local_devices: how many this machine has, for servers that do not say.
      environment: of this process.
    Raises: LaunchError naming what is no server, no devices, or no table.
    """
    if merge:
        if servers or device_ids:
            raise LaunchError("Give --merge, or servers and devices: the tables have theirs.")
        return _merged([Path(path) for path in merge])
    ids = None if device_ids is None else parse_ids(device_ids)
    listed = list(servers) or _of_cluster(environment)
    alone = not listed
    found: dict[str, list[int]] = {}
    for address, count in _expanded(listed or [_own_address()]):
        if address in found:
            raise LaunchError(f"The server {address} is given twice.")
        if ids is not None and count is not None and count != len(ids):
            raise LaunchError(
                f"{address}:{count} and --device_ids {device_ids} give other numbers of devices."
            )
        found[address] = ids or list(range(count or local_devices))
    nics = _device_addresses() if alone else {}
    return _table([(address, numbers, nics) for address, numbers in found.items()])


def parse_ids(text: str) -> list[int]:
    """Read "4-7", "0,2,5-6" or "[4,8)". Raises: LaunchError."""
    half_open = re.fullmatch(r"\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)", text)
    ids: list[int] = []
    if half_open:
        ids = list(range(int(half_open[1]), int(half_open[2])))
    else:
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
            if match is None:
                ids = []
                break
            ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not ids or len(set(ids)) < len(ids):
        raise LaunchError(
            f"--device_ids '{text}' should be such as 0-7, 0,2,4 or [4,8), each once."
        )
    return ids


def expand_hosts(text: str) -> list[str]:
    """Write SLURM's short form of host names out: "a[01-03,7],b" is a01, a02, a03, a7 and b.

    Raises: LaunchError
    """
    if not _HOSTS.fullmatch(text):
        raise LaunchError(f"'{text[:60]}' is no list of servers, such as node[01-04] or 10.0.0.1.")
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        hosts = [""]
        for plain, ranges in re.findall(r"([^\[\]]*)(?:\[([^\]]*)\])?", part):
            hosts = [host + plain for host in hosts]
            if ranges:
                numbers = list(_numbers(ranges, text))
                if len(hosts) * len(numbers) > _MOST_SERVERS:
                    raise LaunchError(f"'{text[:60]}' stands for more servers than there are.")
                hosts = [host + number for host in hosts for number in numbers]
        found += hosts
    return found


_HOST = r"(?:[^\[\],\s]|\[[0-9,-]+\])+"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for piece in ranges.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", piece)
        if match is None:
            raise LaunchError(f"'{text[:60]}' is no list of servers: '{piece[:20]}' in brackets.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < _MOST_SERVERS:
            raise LaunchError(f"'{text[:60]}' is no list of servers: {piece} goes nowhere.")
        for number in range(first, last + 1):
            yield f"{number:0{len(match[1])}}"


def _expanded(listed: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """Yield each server's address, and how many devices it was said to have."""
    for word in listed:
        text, colon, count = word.rpartition(":")
        counted = bool(colon) and count.isascii() and count.isdecimal()
        if counted and text.count(":") and not text.startswith("["):
            counted = False  # an IPv6 address: [fe80::1]:8 says how many
        if not counted:
            text = word
        if counted and not 0 < int(count) <= 10_000:
            raise LaunchError(f"--server {word}: {count} is no number of devices.")
        if text.startswith("[") and ":" in text:
            yield text.strip("[]"), int(count) if counted else None
            continue
        for host in expand_hosts(text):
            yield host, int(count) if counted else None


def _of_cluster(environment: Mapping[str, str]) -> list[str]:
    """Return the servers that a cluster manager says this job has: SLURM, Volcano (Kubernetes)."""
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if nodes:
        each = environment.get("SLURM_GPUS_ON_NODE") or environment.get("SLURM_NTASKS_PER_NODE", "")
        devices = f":{each}" if each.isdecimal() else ""
        return [f"{host}{devices}" for host in expand_hosts(nodes)]
    for name, value in sorted(environment.items()):
        if re.fullmatch(r"VC_[A-Z0-9_]+_HOSTS", name) and value:
            return [host for host in value.split(",") if host]
    return []


def _own_address() -> str:
    """Return the address by which others reach this machine, as far as it can be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it chooses an interface
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _device_addresses() -> dict[int, str]:
    """Return the addresses of Ascend's devices on their own network, where this machine has any."""
    try:
        text = _ADDRESSES.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    rows = re.findall(r"^address_(\d{1,4})\s*=\s*([0-9A-Fa-f.:]+)\s*$", text, re.MULTILINE)
    return {int(number): address for number, address in rows}


def _table(servers: Sequence[tuple[str, list[int], Mapping[int, str]]]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    rank = 0
    for address, ids, nics in servers:
        devices = []
        for number in ids:
            device = {"device_id": str(number), "rank_id": str(rank)}
            if number in nics:
                device = {"device_id": str(number), "device_ip": nics[number], "rank_id": str(rank)}
            devices.append(device)
            rank += 1
        entries.append({"server_id": address, "host_nic_ip": "reserve", "device": devices})
    return _checked(entries)


def _merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Join tables, each with the servers that it has; ranks are counted through them."""
    entries: list[dict[str, Any]] = []
    rank = 0
    for path in paths:
        table = read_table_file(path)
        parse_rank_table(path, table)  # what is wrong in it is named as its own
        for entry in table["server_list"]:
            ordered = sorted(entry["device"], key=lambda device: int(device["rank_id"]))
            devices = [{**d, "rank_id": str(rank + i)} for i, d in enumerate(ordered)]
            rank += len(devices)
            entries.append({**entry, "device": devices})
    return _checked(entries)


def _checked(entries: list[dict[str, Any]]) -> dict[str, Any]:
    table = {
        "version": "1.0",
        "server_count": str(len(entries)),
        "status": "completed",
        "server_list": entries,
    }
    parse_rank_table(Path("the new table"), table)
    return table
