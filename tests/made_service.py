"""`vitbase serve` in a process of its own, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from commands import environment_of_commands

PATIENCE = 120
"""Seconds that a test waits for what comes at once on an idle machine."""


class Service:
    """A running service: what it has said, and how it is asked."""

    def __init__(self, process: subprocess.Popen[str], port: int, said: list[str]) -> None:
        self.process, self.port, self.said = process, port, said

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        method: str | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Send one request; return its status, what its JSON says (or text), and headers."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(client):
            method = method or ("GET" if body is None else "POST")
            client.request(method, path, body, dict(headers or {}))
            response = client.getresponse()
            return response.status, told(response), dict(response.getheaders())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code, and all that was said since the start."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=PATIENCE)
        self.said.append(out)
        return self.process.returncode, "".join(self.said)


def told(response: http.client.HTTPResponse) -> Any:
    """Return what an answer says."""
    content = response.read()
    if response.getheader("content-type") == "application/json":
        return json.loads(content)
    return content.decode()


@contextlib.contextmanager
def serving(*words: object, **environment: str) -> Iterator[Service]:
    """Run `vitbase serve` with these words, on a port of the system's choice."""
    command = [sys.executable, "-m", "vitbase", "serve", *map(str, words), "--port", "0"]
    env = environment_of_commands(**{"OMP_NUM_THREADS": "2", **environment})
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    try:
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"Serving .* on http://127\.0\.0\.1:(\d+)$", line):
                yield Service(process, int(found[1]), said)
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
