"""A hub on loopback that takes models as Hugging Face's does: by HTTP, into memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40
TOKEN = "hf_" + "s3cret" * 6


@dataclass
class Hub:
    """What the hub holds, and what it was asked.

    Attributes:
      repos: files of each repository, by name.
      private: repositories that not everybody sees.
      asked: method and path of each request.
      refuses: path pattern -> (status, body) to answer instead.
    """

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    commits: list[list[str]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        self.tokens.add(token)
        for pattern, (status, text) in self.refuses.items():
            if re.search(pattern, f"{method} {path}"):
                return status, {"error": text.format(token=token)}
        stored = re.fullmatch(r"/store/(\w+)", path)
        if stored:
            assert hashlib.sha256(body).hexdigest() == stored[1]
            self.stored[stored[1]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            assert "---" in json.loads(body)["content"]
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return 200, {"url": f"{self.address}/{name}", "name": name}
        found = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?", path)
        if found is None or found[1] not in self.repos:
            return 404, {"error": "Repository not found"}
        return self._of_repository(found[1], found[2] or "", body)

    def _of_repository(self, name: str, rest: str, body: bytes) -> tuple[int, Any]:
        files = self.repos[name]
        if rest == "/preupload/main":
            asked = json.loads(body)["files"]
            return 200, {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for each in asked
                ]
            }
        if rest == "/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.address}/store/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if rest == "/commit/main":
            lines = [json.loads(line) for line in body.splitlines() if line]
            paths = []
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
                else:
                    continue
                paths.append(value["path"])
            self.commits.append(paths)
            return 200, {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        if rest in {"", "/revision/main"}:
            siblings = [{"rfilename": path} for path in files]
            return 200, {"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
        if rest.startswith("/tree/"):
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items()
            ]
            return 200, tree
        return 404, {"error": f"Not found: {rest}"}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on loopback."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self._chunks())
            path = self.path.partition("?")[0]
            status, found = hub.answer(self.command, path, body, self.headers.get("Authorization"))
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
