"""Models of the Hugging Face hub: from a cache as its client keeps it, and from a small hub here.

Nothing leaves this machine: the client is offline, or is told that the hub is a server of the test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import load, save

import vitbase
from vitbase.cli.main import main
from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.weights import hub
from vitbase.weights.find import find_weights

OLD, NEW = "a" * 40, "b" * 40
"""Two commits."""

LABELS = tuple("abcdefg")
PREPROCESS = Preprocess(
    height=32, width=32, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, crop_mode="squash",
    crop_ratio=1.0, interpolation="bicubic",
)  # fmt: skip

Files = dict[str, bytes]


def draw_files(folder: Path, dialect: str = "hf", seed: int = 0) -> Files:
    """The files of a repository: a small model as Hugging Face's or timm's folder."""
    torch.manual_seed(seed)
    model = vitbase.create_model("testing", num_classes=7, image_size=32)
    torch.nn.init.normal_(model.head.weight)
    place = folder / f"{dialect}{seed}"
    vitbase.save_weights(model, place, dialect=dialect, preprocess=PREPROCESS, labels=LABELS)
    return {path.name: path.read_bytes() for path in place.iterdir()}


def shard(files: Files) -> Files:
    """The same model in two shards and an index, as `save_pretrained` writes it."""
    tensors = load(files["model.safetensors"])
    shards = {
        f"model-{number + 1:05}-of-00002.safetensors": dict(list(tensors.items())[number::2])
        for number in range(2)
    }
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    others = {name: content for name, content in files.items() if name != "model.safetensors"}
    parts = {file: save(part, {"format": "pt"}) for file, part in shards.items()}
    return {**others, **parts, "model.safetensors.index.json": json.dumps(index).encode()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return draw_files(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return draw_files(tmp_path_factory.mktemp("hub"), seed=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a client that is offline; it reads both once, on import."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def keep(cache: Path, files: Files, commit: str = OLD, name: str = "me/vit", **refs: str) -> Path:
    """Lay files into a cache as the client does: blobs by hash, snapshots that point to them."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir(exist_ok=True)
    for ref, place in (refs or {"main": commit}).items():
        (folder / "refs" / ref).write_text(place)
    return snapshot


def logits(place: str | Path) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        found: torch.Tensor = vitbase.load_model(place).model.eval()(
            torch.randn(2, 3, 32, 32, generator=generator)
        )
    return found


# From the cache


@pytest.mark.parametrize("dialect", ["hf", "timm"])
def test_a_model_in_the_cache_is_opened_with_all_that_lies_beside_it(
    cache: Path, tmp_path: Path, dialect: str
) -> None:
    files = draw_files(tmp_path, dialect)
    snapshot = keep(cache, files)
    assert find_weights("hf-hub:me/vit") == snapshot / "model.safetensors"
    loaded = vitbase.load_model("hf-hub:me/vit")
    assert (loaded.labels, loaded.preprocess) == (LABELS, PREPROCESS)
    assert loaded.spec.num_heads == 2
    assert loaded.spec.gelu == "tanh"
    assert torch.equal(logits("hf-hub:me/vit"), logits(tmp_path / f"{dialect}0"))


def test_shards_in_the_cache_make_the_same_model(cache: Path, files: Files) -> None:
    keep(cache, files)
    snapshot = keep(cache, shard(files), name="me/sharded")
    assert find_weights("hf-hub:me/sharded") == snapshot / "model.safetensors.index.json"
    assert vitbase.load_model("hf-hub:me/sharded").labels == LABELS
    assert torch.equal(logits("hf-hub:me/sharded"), logits("hf-hub:me/vit"))


def test_a_repository_without_an_owner_has_a_name_too(cache: Path, files: Files) -> None:
    snapshot = keep(cache, files, name="vit")
    assert find_weights("hf-hub:vit") == snapshot / "model.safetensors"


def test_torch_files_are_taken_where_there_is_no_safetensors(
    cache: Path, files: Files, tmp_path: Path
) -> None:
    torch.save(load(files["model.safetensors"]), tmp_path / "w.bin")
    others = {name: content for name, content in files.items() if name != "model.safetensors"}
    snapshot = keep(cache, {**others, "pytorch_model.bin": (tmp_path / "w.bin").read_bytes()})
    assert find_weights("hf-hub:me/vit") == snapshot / "pytorch_model.bin"
    assert vitbase.load_model("hf-hub:me/vit").labels == LABELS


@pytest.mark.parametrize(("asked", "commit"), [("v1", OLD), (OLD, OLD), ("main", NEW), (NEW, NEW)])
def test_a_revision_stands_behind_an_at_sign(
    cache: Path, files: Files, newer: Files, asked: str, commit: str
) -> None:
    keep(cache, files, OLD, v1=OLD)
    snapshot = keep(cache, newer, NEW, main=NEW)
    expected = snapshot.parent / commit / "model.safetensors"
    assert find_weights(f"hf-hub:me/vit@{asked}") == expected
    assert find_weights("hf-hub:me/vit") == snapshot / "model.safetensors"


def raised(name: str) -> str:
    with pytest.raises(WeightsError) as caught:
        find_weights(name)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    return message


def test_what_is_not_in_the_cache_is_said_to_be_nowhere(cache: Path, files: Files) -> None:
    message = raised("hf-hub:me/vit")
    assert "HF_HUB_OFFLINE is set" in message
    assert str(cache) in message
    keep(cache, files, v1=OLD)  # another revision does not stand in
    assert "HF_HUB_OFFLINE is set" in raised("hf-hub:me/vit@v2")
    assert list(cache.rglob("*v2*")) == []


def test_shards_that_are_missing_are_named(cache: Path, files: Files) -> None:
    parts = shard(files)
    del parts["model-00002-of-00002.safetensors"]
    keep(cache, parts)
    message = raised("hf-hub:me/vit")
    assert "1 of its 2 shards (model-00002-of-00002.safetensors)" in message
    assert "HF_HUB_OFFLINE is set" in message


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"no json", b'{"weight_map": 3}', b"\xff"])
def test_a_damaged_index_is_an_error(cache: Path, text: bytes) -> None:
    keep(cache, {"model.safetensors.index.json": text})
    problem = "is no index of a sharded checkpoint|is not valid JSON|should hold a JSON object"
    with pytest.raises(WeightsError, match=rf"index\.json ({problem})"):
        find_weights("hf-hub:me/vit")


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:a b/c", "hf-hub:-a", "hf-hub:@v1"]
)
@pytest.mark.usefixtures("cache")
def test_what_is_no_name_is_an_error(name: str) -> None:
    assert "is no name of a model, such as owner/name" in raised(name)


@pytest.mark.usefixtures("cache")
def test_without_the_client_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'vitbase[hub]'" in raised("hf-hub:me/vit")


def test_the_command_line_opens_a_model_of_the_cache(
    cache: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(cache, files)
    main(["weights", "show", "hf-hub:me/vit"])
    shown = capsys.readouterr()
    assert "labels        7: a, b, c, d, …" in shown.out
    assert shown.err == ""
    with pytest.raises(SystemExit) as stopped:
        main(["weights", "show", "hf-hub:me/other"])
    assert stopped.value.code == 2
    failed = capsys.readouterr()
    assert failed.out == ""
    assert failed.err.startswith("vitbase: error: Cannot fetch hf-hub:me/other: ")
    assert failed.err.count("\n") == 1


# From a hub


@dataclasses.dataclass
class Hub:
    """What a hub holds, and what it was asked; enough of its interface for a model."""

    commits: dict[str, Files]
    refs: dict[str, str]
    gated: bool = False
    damaged: bool = False
    asked: list[str] = dataclasses.field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.damaged:
            return 500, {}, b""
        parts = path.strip("/").split("/")
        if path.startswith("/api/models/me/vit"):
            commit = self.find(parts[5] if len(parts) > 5 else "main")
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            names = [{"rfilename": name} for name in self.commits[commit]]
            return 200, {}, json.dumps({"id": "me/vit", "sha": commit, "siblings": names}).encode()
        if parts[:2] != ["me", "vit"]:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        commit, name = self.find(parts[3]), parts[4]
        content = self.commits.get(commit or "", {}).get(name)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit or ""}, b""
        tag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": commit or ""}, content

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@pytest.fixture
def serve(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Start a hub, and tell the client that it is the one."""
    del cache  # an empty one is set
    servers: list[ThreadingHTTPServer] = []

    def start(commits: dict[str, Files], **options: Any) -> Hub:
        holds = Hub(
            commits, {"main": next(reversed(commits)), "v1": next(iter(commits))}, **options
        )

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                holds.asked.append(f"{self.command} {self.path}")
                code, headers, content = holds.answer(self.path)
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        return holds

    close_session()
    yield start
    close_session()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_is_fetched_once_with_all_its_files(
    serve: Callable[..., Hub], cache: Path, files: Files, tmp_path: Path
) -> None:
    holds = serve({OLD: shard(files)})
    found = hub.fetch("hf-hub:me/vit")
    snapshot = cache / "models--me--vit" / "snapshots" / OLD
    assert found == snapshot / "model.safetensors.index.json"
    assert {path.name for path in snapshot.iterdir()} == set(shard(files))
    asked = len(holds.asked)
    assert hub.fetch("hf-hub:me/vit") == found
    again = ["GET /api/models/me/vit", "HEAD /me/vit/resolve/main/config.json"]
    assert holds.asked[asked:] == again
    assert torch.equal(logits("hf-hub:me/vit"), logits_of(files, tmp_path))


def logits_of(files: Files, folder: Path) -> torch.Tensor:
    (folder / "plain").mkdir()
    for name, content in files.items():
        (folder / "plain" / name).write_bytes(content)
    return logits(folder / "plain")


def test_a_branch_that_has_moved_is_followed_and_a_tag_is_not(
    serve: Callable[..., Hub], files: Files, newer: Files
) -> None:
    holds = serve({OLD: files, NEW: newer})
    holds.refs["main"] = OLD
    assert hub.fetch("hf-hub:me/vit").parent.name == OLD
    holds.refs["main"] = NEW
    assert hub.fetch("hf-hub:me/vit").parent.name == NEW
    assert hub.fetch("hf-hub:me/vit@v1").parent.name == OLD
    assert hub.fetch(f"hf-hub:me/vit@{OLD}").parent.name == OLD


def test_a_branch_that_moves_in_between_mixes_no_commits(
    serve: Callable[..., Hub], files: Files, newer: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = serve({OLD: files, NEW: newer})
    holds.refs["main"] = OLD
    answer = holds.answer

    def move_after_the_first_file(path: str) -> tuple[int, dict[str, str], bytes]:
        told = answer(path)
        if path.endswith("config.json"):
            holds.refs["main"] = NEW
        return told

    monkeypatch.setattr(holds, "answer", move_after_the_first_file)
    found = hub.fetch("hf-hub:me/vit")
    assert found.parent.name == OLD
    assert {path.name for path in found.parent.iterdir()} == set(files)


def test_what_was_fetched_is_found_again_when_the_hub_is_gone(
    serve: Callable[..., Hub], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = serve({OLD: files})
    found = hub.fetch("hf-hub:me/vit@main")
    holds.damaged = True
    assert hub.fetch("hf-hub:me/vit@main") == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("hf-hub:me/vit@main") == found


def test_files_that_a_repository_has_not_are_not_asked_for(
    serve: Callable[..., Hub], tmp_path: Path
) -> None:
    holds = serve({OLD: draw_files(tmp_path, "timm")})
    assert hub.fetch("hf-hub:me/vit").name == "model.safetensors"
    wanted = {asked.split("/")[-1] for asked in holds.asked if "/resolve/" in asked}
    assert wanted == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf-hub:me/other", {}, "the hub knows no model 'me/other'"),
        ("hf-hub:me/vit@v9", {}, "me/vit has no branch, tag or commit 'v9'"),
        ("hf-hub:me/vit", {"gated": True}, "me/vit is gated"),
        ("hf-hub:me/vit", {"damaged": True}, "the hub does not answer"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    serve: Callable[..., Hub], files: Files, name: str, options: dict[str, bool], message: str
) -> None:
    holds = serve({OLD: files}, **options)
    assert message in raised(name)
    assert len(holds.asked) <= 2  # it does not ask again and again


def test_a_repository_of_something_else_says_what_it_holds(serve: Callable[..., Hub]) -> None:
    serve({OLD: {"README.md": b"", "weights.h5": b"", "config.json": b"{}"}})
    message = raised("hf-hub:me/vit")
    assert "holds none of model.safetensors, " in message
    assert "It holds: README.md, config.json, weights.h5." in message


def test_a_shard_that_the_hub_lacks_is_named(serve: Callable[..., Hub], files: Files) -> None:
    parts = shard(files)
    del parts["model-00001-of-00002.safetensors"]
    serve({OLD: parts})
    assert "1 of its 2 shards (model-00001-of-00002.safetensors) are not there" in raised(
        "hf-hub:me/vit"
    )


def test_a_hub_that_cannot_be_reached_is_one_message_at_once(
    serve: Callable[..., Hub], files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    serve({OLD: files})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
        assert "the hub does not answer" in raised("hf-hub:me/vit")
    assert capfd.readouterr() == ("", "")
