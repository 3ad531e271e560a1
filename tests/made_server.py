"""A web server of a folder, that fails as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    """What it serves, how it fails, and what it was asked."""

    root: Path
    failures: list[str] = field(default_factory=list)  # of the next requests; "": none
    down: str = ""  # how every request fails
    listing: bool = True
    ranges: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list)
    asleep: threading.Event = field(default_factory=threading.Event)  # set: requests hang no more
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    facts: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.facts
        server.requests.append((self.path, self.headers.get("Range", "")))
        failure = server.down or (server.failures.pop(0) if server.failures else "")
        path = server.root / self.path.strip("/")
        if failure.isdigit():
            self.answer(int(failure), b"")
        elif failure == "reset":
            self.close_connection = True
        elif failure == "hang":
            server.asleep.wait(5)
            self.close_connection = True
        elif path.is_dir() and server.listing:
            links = [f'<a href="{p.name}{"/" * p.is_dir()}">.</a>' for p in path.iterdir()]
            self.answer(200, "".join(links).encode())
        elif not path.is_file():
            self.answer(404, b"")
        else:
            self.send_file(path.read_bytes(), failure)

    def send_file(self, content: bytes, failure: str) -> None:
        wanted = self.headers.get("Range")
        if not wanted or not self.facts.ranges:
            return self.answer(200, content)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1]
        if failure == "short":
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return None
        return self.answer(206, part)

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """Serve a folder while the context lasts."""
    facts = Server(root)
    handler = type("Handler", (Handler,), {"facts": facts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        facts.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield facts
        facts.asleep.set()
        running.shutdown()
        thread.join()
