"""What the system tells of processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                found.setdefault(int(parent), []).append(int(entry.name))
    return found


def children_of(process: int) -> list[int]:
    return _children().get(process, [])


def descendants(process: int) -> list[int]:
    """Return a process and all that came of it, however deep."""
    children = _children()
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def resident_and_open(process: int) -> tuple[int, int]:
    """Return the bytes that a process has in memory, and how many files open. Raises: OSError."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return pages * os.sysconf("SC_PAGE_SIZE"), files
