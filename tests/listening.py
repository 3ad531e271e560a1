"""Which addresses processes listen on, as Linux's kernel tells them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path

LISTENING = "0A"


def family_of(pid: int) -> set[int]:
    """Return a process and all that it has started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found, left = set(), [pid]
    while left:
        found.add(one := left.pop())
        left += children.get(one, [])
    return found


def listening_addresses(pids: set[int]) -> set[str]:
    """Return the addresses on which these processes listen, as the kernel tells them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                digits = fields[1].split(":")[0]
                words = [digits[i : i + 8] for i in range(0, len(digits), 8)]
                raw = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.add(str(ipaddress.ip_address(raw)))
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
