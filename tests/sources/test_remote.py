from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_server import Server, serving
from made_shards import JPEG, samples, write_tar

from vitbase.curation.packing.split import pack_source
from vitbase.errors import DataError, ImageError
from vitbase.sources.shards.source import has_split, open_shards
from vitbase.stores import Backoff, FileFacts, is_transient, is_url, open_store

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as running:
        yield running


@pytest.fixture
def patient() -> tuple[Backoff, list[float]]:
    """A backoff that writes its pauses down instead of making them."""
    pauses: list[float] = []
    return Backoff(attempts=4, request_seconds=5, sleep=pauses.append, draw=lambda: 1.0), pauses


def write_both(root: Path) -> None:
    for number in range(2):
        write_tar(root / f"x-train-{number}.tar", samples(5, f"t{number}-"))
    write_tar(root / "x-val-0.tar", samples(3, "v"))


def read_all(source) -> list[bytes]:
    return [source.read(index) for index in range(len(source))]


EXPECTED = [JPEG + str(number).encode() for number in [*range(5), *range(5)]]


def test_shards_in_memory(tmp_path):
    write_both(tmp_path)
    system = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        system.pipe(f"/test_remote/{path.name}", path.read_bytes())
    url = "memory://test_remote"
    assert has_split(url, "val", "data_path")
    source = open_shards(url, "train", "data_path")
    assert read_all(source) == EXPECTED
    assert source.describe(6) == "memory://test_remote/x-train-1.tar: t1-0001.jpg"
    assert source.labels.tolist() == [0, 1, 2, 0, 1] * 2
    (note,) = source.notes
    assert "the index of its shards is kept in" in note
    assert open_shards(url, "train", "data_path").notes == ()
    system.rm("/test_remote", recursive=True)
    with pytest.raises(ImageError, match=r"memory://test_remote/x-train-0.tar cannot be read"):
        source.read(0)


def test_chains_of_file_systems(tmp_path, server):
    write_both(server.root)
    for kind in ("simplecache", "filecache"):
        source = open_shards(f"{kind}::{server.url}", "train", "data_path")
        assert read_all(source) == EXPECTED
        server.requests.clear()
        assert read_all(source) == EXPECTED
        assert server.requests == []  # the shards are on this machine by now


def test_file_urls_are_this_machine(tmp_path):
    write_both(tmp_path)
    source = open_shards(f"file://{tmp_path}", "train", "data_path")
    assert read_all(source) == EXPECTED
    assert (tmp_path / "shards-train.index").is_file()


def test_shards_behind_a_web_server(server, patient):
    write_both(server.root / "data")
    source = open_shards(f"{server.url}/data/", "train", "data_path", backoff=patient[0])
    assert read_all(source) == EXPECTED
    assert len(open_shards(f"{server.url}/data", "val", "data_path", backoff=patient[0])) == 3
    assert patient[1] == []
    with pytest.raises(DataError, match="there are no tar shards"):
        open_shards(f"{server.url}/other", "val", "data_path", backoff=patient[0])


def test_folders_of_splits_behind_a_web_server(server):
    write_tar(server.root / "train" / "0.tar", samples(3))
    write_tar(server.root / "val" / "0.tar", samples(2))
    assert has_split(server.url, "val", "data_path")
    assert len(open_shards(server.url, "val", "data_path")) == 2


def test_the_index_is_kept_and_renewed(server, cache):
    write_both(server.root)
    open_shards(server.url, "train", "data_path")
    assert len(list((cache / "shards").iterdir())) == 1
    server.requests.clear()
    assert open_shards(server.url, "train", "data_path").notes == ()
    assert not any(part for _, part in server.requests)  # no part of a shard was read
    write_tar(server.root / "x-train-1.tar", samples(50, "n"))
    source = open_shards(server.url, "train", "data_path")
    assert len(source) == 55
    assert "1 of 2 shards have changed" in source.notes[0]


def test_a_scan_reads_headers_not_contents(server):
    large = os.urandom(400_000)
    members = []
    for number in range(8):
        members += [(f"{number}.jpg", large), (f"{number}.cls", b"1")]
    path = write_tar(server.root / "0.tar", members)
    open_shards(server.url, "train", "data_path")
    read = sum(
        int(part.split("-")[1]) + 1 - int(part.removeprefix("bytes=").split("-")[0])
        for _, part in server.requests
        if part
    )
    assert read < path.stat().st_size / 4


def test_packed_shards_need_no_listing_and_no_scan(server, tmp_path):
    write_both(tmp_path / "src")
    before = open_shards(str(tmp_path / "src"), "train", "data_path")
    pack_source_of_bytes(before, server.root)
    server.listing = False
    source = open_shards(server.url, "train", "data_path")
    assert read_all(source) == EXPECTED
    assert source.notes == ()
    reads = [part for path, part in server.requests if path.endswith(".tar") and part]
    assert len(reads) == 10  # one for each image
    assert not has_split(server.url, "val", "data_path")


def pack_source_of_bytes(source, folder) -> None:
    pack_source(source, folder, "train", shard_images=4)


@pytest.mark.parametrize("failure", ["503", "429", "500", "reset", "short"])
def test_a_server_that_recovers_is_asked_again(server, patient, failure):
    write_both(server.root)
    backoff, pauses = patient
    source = open_shards(server.url, "train", "data_path", backoff=backoff)
    server.requests.clear()
    # aiohttp itself asks once more after a lost connection.
    server.failures += [failure] * (6 if failure == "reset" else 3)
    assert source.read(7) == EXPECTED[7]
    assert pauses == [0.5, 1.0, 2.0]
    server.failures += [failure] * 2
    assert source.read(1) == EXPECTED[1]


def test_a_server_that_hangs_is_not_waited_for(server, patient):
    write_both(server.root)
    backoff = replace(patient[0], request_seconds=0.1)
    source = open_shards(server.url, "train", "data_path", backoff=backoff)
    server.failures += ["hang"] * 2
    assert source.read(0) == EXPECTED[0]
    assert len(patient[1]) == 2
    server.down = "hang"
    for action in (
        lambda: source.read(0),
        lambda: open_shards(server.url, "train", "data_path", backoff=backoff),
    ):
        with pytest.raises(DataError, match=r"no answer after 4 attempts .*Timeout"):
            action()


@pytest.mark.parametrize("failure", ["503", "reset"])
def test_opening_is_tried_again_too(server, patient, failure):
    write_both(server.root)
    server.failures += [failure] * 3
    assert len(open_shards(server.url, "train", "data_path", backoff=patient[0])) == 10
    assert patient[1]


@pytest.mark.parametrize("failure", ["503", "reset"])
def test_a_server_that_stays_down_is_named(server, patient, failure):
    write_both(server.root)
    backoff, pauses = patient
    source = open_shards(server.url, "train", "data_path", backoff=backoff)
    server.down = failure
    with pytest.raises(DataError) as caught:
        source.read(0)
    assert not isinstance(caught.value, ImageError)  # no image is skipped for an outage
    text = str(caught.value)
    assert text.startswith(f"{server.url}/x-train-0.tar: no answer after 4 attempts")
    assert "503" in text or "Disconnected" in text
    assert len(pauses) == 3
    with pytest.raises(DataError, match="no answer after 4 attempts"):
        open_shards(server.url, "train", "data_path", backoff=backoff)


def test_nobody_listens(patient):
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x: no answer after 4 attempts"):
        open_shards("http://127.0.0.1:9/x", "train", "data_path", backoff=patient[0])


@pytest.mark.parametrize("failure", ["404", "403", "410"])
def test_what_would_not_help_is_not_tried_again(server, patient, failure):
    write_both(server.root)
    source = open_shards(server.url, "train", "data_path", backoff=patient[0])
    server.down = failure
    with pytest.raises(ImageError, match=r"x-train-0.tar cannot be read"):
        source.read(0)
    assert patient[1] == []


def test_a_server_without_ranges_is_refused(server, patient):
    write_tar(server.root / "0.tar", [("a.jpg", os.urandom(200_000)), ("a.cls", b"1")])
    server.ranges = False
    with pytest.raises(DataError, match=r"0.tar: the server sends whole files where parts are"):
        open_shards(server.url, "train", "data_path", backoff=patient[0])


def test_a_shard_that_changes_behind_the_url(server):
    write_both(server.root)
    source = open_shards(server.url, "train", "data_path")
    write_tar(server.root / "x-train-0.tar", samples(9, "other-"))
    with pytest.raises(ImageError, match="has changed since it was indexed"):
        source.read(0)


def test_a_cut_shard_behind_a_url(server):
    path = write_tar(server.root / "0.tar", samples(5))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"http.*/0.tar is cut short: it ends at byte 3,000"):
        open_shards(server.url, "train", "data_path")


def test_unknown_and_missing_packages(monkeypatch):
    with pytest.raises(DataError, match=r"--data_path nosuch://x: cannot be opened"):
        open_store("nosuch://x", "data_path")

    def refuse(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(DataError, match=r"Install s3fs .*pip install 'vitbase\[cloud\]'"):
        open_store("s3://x", "data_path")


def test_urls():
    assert all(
        map(is_url, ["s3://a/b", "gs://b", "https://x/y", "blockcache::s3://a", "memory://"])
    )
    assert not any(map(is_url, ["/a/b", "a", "C:/x", "./a:b", "", "C:\\x"]))


def test_pauses_double_up_to_a_bound_and_are_spread():
    pauses: list[float] = []
    backoff = Backoff(attempts=8, largest_seconds=4, sleep=pauses.append, draw=lambda: 0.0)

    def fail() -> None:
        raise ConnectionResetError("lost")

    with pytest.raises(DataError, match=r"url: no answer after 8 attempts \(ConnectionResetError"):
        backoff.run(fail, "url")
    assert pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0]
    pauses.clear()
    Backoff(attempts=1, sleep=pauses.append).run(lambda: 1, "url")
    assert pauses == []


class ToldError(Exception):
    def __init__(self, **facts: object) -> None:
        self.__dict__.update(facts)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError("anything else"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError(), False),
        (KeyError(), False),
        (DataError(), False),
        (ToldError(status=503), True),
        (ToldError(code=429), True),
        (ToldError(status=404), False),
        (ToldError(response={"ResponseMetadata": {"HTTPStatusCode": 500}}), True),
        (ToldError(response={"ResponseMetadata": {"HTTPStatusCode": 403}}), False),
    ],
)
def test_what_may_pass(error, transient):
    assert is_transient(error) == transient


def test_facts_are_compared_by_what_both_know():
    facts = FileFacts(5, "ETag:a")
    assert facts.same_as(FileFacts(5, "ETag:a"))
    assert facts.same_as(FileFacts(5, "mtime_ns:1"))
    assert not facts.same_as(FileFacts(5, "ETag:b"))
    assert not facts.same_as(FileFacts(6, "ETag:a"))


def test_takes_and_labels_work_far_away(server):
    write_both(server.root)
    part = open_shards(server.url, "train", "data_path").take(np.array([6, 2]))
    assert read_all(part) == [EXPECTED[6], EXPECTED[2]]
