"""A rank table: the servers and devices of a cluster, as Ascend's tools write them in JSON.

::

    {"version": "1.0", "status": "completed", "server_count": "1", "server_list": [
      {"server_id": "10.0.0.1", "device": [{"device_id": "0", "rank_id": "0"}, ...]}, ...]}

Numbers may be strings, as the tools write them, or numbers, and there may be comments, as their
documentation prints them. Fields that only the devices' own network needs (device_ip, ...) are not
read. Version 2.0 lists ranks instead of servers, and older tables list groups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vitbase.disk import read_regular
from vitbase.errors import LaunchError, shown
from vitbase.files import parse_json

# 1.2 adds fields for super-nodes; those read here mean the same in both.
_VERSIONS = ("1.0", "1.2")
_OF_RANKS = "2.0"
_LONGEST_NAME = 255  # letters, of a host
_LONGEST = 4 << 20  # bytes: those of ten thousand servers
# Where server_id is a mere name, newer tables have the address beside it; a container has its own.
_ADDRESS_FIELDS = ("container_ip", "host_ip", "server_ip", "server_id")


@dataclasses.dataclass(frozen=True)
class Server:
    """A server, and its devices in the order of their ranks.

    Attributes:
      address: by which the others reach it.
      names: all that it is called, among them its addresses inside and outside of a container.
    """

    server_id: str
    address: str
    device_ids: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RankTable:
    """Servers with equally many devices; rank 0 is on the first.

    Ranks are counted through the servers in order. They are the table's own if it numbers one
    server after the other, as the tools do; no result depends on which device has which rank.
    """

    path: Path
    servers: tuple[Server, ...]

    @property
    def digest(self) -> str:
        """A short name of the contents, equal on two servers that have the same table."""
        facts = [(s.server_id, s.address, s.device_ids) for s in self.servers]
        return hashlib.blake2b(repr(facts).encode(), digest_size=4).hexdigest()

    def find_server(
        self, asked: str | None = None, is_here: Callable[[str], bool] | None = None
    ) -> int:
        """Return which of the servers this machine is.

        Args:
          asked: a server_id or an address; None looks for this machine's addresses in the table.
          is_here: whether an address is this machine's; None asks the operating system.
        Raises: LaunchError if none is, or several are.
        """
        names = ", ".join(server.server_id for server in self.servers)
        if asked is not None:
            found = [
                i for i, s in enumerate(self.servers) if asked in {s.server_id, s.address, *s.names}
            ]
            if not found:
                raise LaunchError(
                    f"{self.path} has no server '{asked}'. Give --server_id one of: {names}"
                )
            return found[0]
        is_here = is_here or is_own_address
        found = [
            i
            for i, server in enumerate(self.servers)
            if any(map(is_here, {server.address, *server.names}))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            several = " and ".join(self.servers[i].server_id for i in found)
            raise LaunchError(
                f"{self.path}: this machine is {several} at once. Say which one to start with "
                f"--server_id."
            )
        raise LaunchError(
            f"{self.path}: none of its servers ({names}) is an address of this machine "
            f"({socket.gethostname()}). Say which one it is with --server_id, or correct server_id."
        )


def is_own_address(address: str) -> bool:
    """Tell whether an address or host name is this machine's, on any of its interfaces."""
    with contextlib.suppress(OSError, ValueError):  # of names that are none
        for family, kind, protocol, _, place in socket.getaddrinfo(
            address, None, type=socket.SOCK_STREAM
        ):
            # Only an address of this machine can be bound to: true of every interface, and of
            # all of 127.0.0.0/8, without a list of interfaces that each system keeps elsewhere.
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind((place[0], 0))
                return True
    return False


def read_rank_table(path: str | Path) -> RankTable:
    """Read and check a rank table.

    Raises: LaunchError, naming the field, if the table is not complete, its ranks have gaps or
      repeats, its servers are unequal, or it is no rank table at all.
    """
    path = Path(path)
    return parse_rank_table(path, read_table_file(path))


def parse_rank_table(path: Path, table: Any) -> RankTable:
    """Check a table that was read from a file. Raises: LaunchError as :func:`read_rank_table`."""
    return RankTable(path, _Reader(path).read(table))


def read_table_file(path: Path) -> Any:
    """Read the JSON of a rank table, whatever it says. Raises: LaunchError."""
    try:
        text = read_regular(path, _LONGEST).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise LaunchError(f"The rank table {path} cannot be read: {reason}.") from error
    try:
        return parse_json(_COMMENT.sub(_keep_text, text))
    except ValueError as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise LaunchError(f"The rank table {path} is not valid JSON{where}: {error}.") from error


# A text in quotes, or a comment to the end of its line. A text that does not end reaches to the end
# of its line, too: else each of its quotes would be tried as a beginning.
_COMMENT = re.compile(r'"(?:[^"\\\n]++|\\.)*+(?:"|\\?$)|//[^\n]*', re.MULTILINE)


def _keep_text(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else ""


class _Reader:
    """Reads a table field by field; every complaint names the field."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, table: Any) -> tuple[Server, ...]:
        if isinstance(table, dict) and "server_list" not in table:
            self._refuse_old(table)
        version = self._version(table)
        if version == _OF_RANKS and "rank_list" in table:
            return self._read_ranks(table)
        if version not in _VERSIONS:
            self._refuse("version", f"should be {' or '.join(_VERSIONS)}, but is '{version}'")
        status = self._text(table, "status", "")
        if status != "completed":
            self._refuse(
                "status",
                f"should be 'completed', but is '{status}': the table is still being written. "
                f"Wait until it is complete, or generate it again",
            )
        listed = self._list(table, "server_list", "")
        # Newer documentation calls it optional.
        count = self._number(table, "server_count", "") if "server_count" in table else len(listed)
        if count != len(listed):
            self._refuse("server_count", f"is {count}, but server_list has {len(listed)} servers")
        servers: list[tuple[int, Server]] = []
        seen: dict[int, str] = {}
        for i, entry in enumerate(listed):
            servers.append(self._server(entry, f"server_list[{i}]", seen))
        self._check_equal([server for _, server in servers])
        missing = sorted(set(range(len(seen))) - set(seen))
        if missing:
            self._refuse(
                "rank_id",
                f"should count from 0 to {len(seen) - 1} for {len(seen)} devices, but rank "
                f"{', '.join(map(str, missing[:5]))} is missing and {max(seen)} is there",
            )
        return tuple(server for _, server in sorted(servers, key=lambda item: item[0]))

    def _version(self, table: Any) -> str:
        """Return the version; some write it as a number."""
        value = self._get(table, "version", "")
        return str(value) if type(value) is float else self._text(table, "version", "")

    def _read_ranks(self, table: dict[str, Any]) -> tuple[Server, ...]:
        """Read a table of ranks: each has its device, and counts within its server (local_id)."""
        ranks = []
        for i, entry in enumerate(self._list(table, "rank_list", "")):
            where = f"rank_list[{i}]"
            numbers = (self._number(entry, f, where) for f in ("rank_id", "local_id", "device_id"))
            ranks.append(tuple(numbers))
        ranks.sort()
        if [rank for rank, _, _ in ranks] != list(range(len(ranks))):
            self._refuse("rank_list", f"should have the ranks 0 to {len(ranks) - 1}, each once")
        if [local for _, local, _ in ranks] != list(range(len(ranks))):
            servers = sum(local == 0 for _, local, _ in ranks)
            self._refuse(
                "rank_list",
                f"has {len(ranks)} ranks on {servers} servers, but not the servers' addresses, "
                f"by which they meet. Make a table that has them: vitbase launch "
                f"--make_rank_table --server ADDRESS:{len(ranks) // max(servers, 1)} "
                f"ADDRESS:{len(ranks) // max(servers, 1)} … > table.json",
            )
        here = "127.0.0.1"
        return (Server(here, here, tuple(device for _, _, device in ranks), (here,)),)

    def _refuse_old(self, table: dict[str, Any]) -> None:
        """Say how an old table, of groups and instances, becomes one of today."""
        groups = table.get("group_list")
        if not isinstance(groups, list):
            return
        counts: dict[str, int] = {}
        for group in groups:
            instances = group.get("instance_list") if isinstance(group, dict) else None
            for instance in instances if isinstance(instances, list) else ():
                if isinstance(instance, dict) and isinstance(instance.get("server_id"), str):
                    devices = instance.get("devices")
                    more = len(devices) if isinstance(devices, list) else 1
                    counts[instance["server_id"]] = counts.get(instance["server_id"], 0) + more
        servers = " ".join(f"{name}:{count}" for name, count in counts.items())
        self._refuse(
            "group_list",
            "belongs to the oldest form of rank tables, which lists groups of instances. Make one "
            f"of today's form: vitbase launch --make_rank_table --server {servers or 'ADDRESS:8'} "
            f"> table.json",
        )

    def _server(self, entry: Any, where: str, seen: dict[int, str]) -> tuple[int, Server]:
        """Read a server; return its lowest rank, and it. Ranks are added to those seen."""
        server_id = self._text(entry, "server_id", where)
        found = [entry.get(field) for field in _ADDRESS_FIELDS]
        names = tuple(text.strip() for text in found if isinstance(text, str) and text.strip())
        for name in names:
            if not name.isprintable() or len(name) > _LONGEST_NAME:
                self._refuse(where, f"is called {shown(name)}, which is no name or address")
        devices: list[tuple[int, int]] = []
        for j, device in enumerate(self._list(entry, "device", where)):
            place = f"{where}.device[{j}]"
            device_id = self._number(device, "device_id", place)
            rank = self._number(device, "rank_id", place)
            if rank in seen:
                self._refuse(f"{place}.rank_id", f"is {rank}, which {seen[rank]} has already")
            if device_id in {other for _, other in devices}:
                self._refuse(f"{place}.device_id", f"is {device_id} for a second time in {where}")
            seen[rank] = place
            devices.append((rank, device_id))
        devices.sort()
        ids = tuple(device_id for _, device_id in devices)
        server = Server(server_id, names[0], ids, names)
        return devices[0][0], server

    def _check_equal(self, servers: list[Server]) -> None:
        ids: dict[str, int] = {}
        for i, server in enumerate(servers):
            for field, name in (("server_id", server.server_id), ("address", server.address)):
                if ids.setdefault(name, i) != i:
                    self._refuse(
                        f"server_list[{i}].server_id",
                        f"has the {field} '{name}', which server_list[{ids[name]}] has already",
                    )
            if len(server.device_ids) != len(servers[0].device_ids):
                self._refuse(
                    f"server_list[{i}].device",
                    f"has {len(server.device_ids)} devices, but server_list[0] has "
                    f"{len(servers[0].device_ids)}; all servers should have equally many",
                )

    def _get(self, entry: Any, field: str, where: str) -> Any:
        if not isinstance(entry, dict):
            self._refuse(where or "the table", f"should be an object with the field '{field}'")
        if field not in entry:
            self._refuse(f"{where}.{field}".lstrip("."), "is missing")
        return entry[field]

    def _list(self, entry: Any, field: str, where: str) -> list[Any]:
        value = self._get(entry, field, where)
        if not isinstance(value, list) or not value:
            self._refuse(f"{where}.{field}".lstrip("."), "should be a list with at least one entry")
        return list(value)

    def _text(self, entry: Any, field: str, where: str) -> str:
        value = self._get(entry, field, where)
        if not isinstance(value, str) or not value.strip():
            self._refuse(f"{where}.{field}".lstrip("."), f"should be a text, but is {shown(value)}")
        return str(value).strip()

    def _number(self, entry: Any, field: str, where: str) -> int:
        value = self._get(entry, field, where)
        # isdecimal alone would take digits of other scripts, and int() takes "1_0" and " 1".
        is_text = isinstance(value, str) and value.isascii() and value.isdecimal()
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not (is_text or is_number) or len(str(value)) > 9:
            self._refuse(
                f"{where}.{field}".lstrip("."), f"should be a whole number, but is {shown(value)}"
            )
        return int(value)

    def _refuse(self, field: str, complaint: str) -> NoReturn:
        raise LaunchError(f"The rank table {self._path} is wrong: {field} {complaint}.")
