"""`vitbase serve` under load for a minute: nothing fails, and memory stands."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_images import encode, photo
from made_looks import build
from made_service import PATIENCE, Service, resident_bytes, serving, told

from vitbase.weights.save import save_weights

IMAGE = encode(photo(50, 70))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("loaded") / "plain.safetensors"
    save_weights(build(), path)
    return path


class Load:
    """Clients that ask one request after the other, until they are stopped."""

    def __init__(self, service: Service, clients: int) -> None:
        self.service = service
        self.statuses: Counter[int] = Counter()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._asking = [self._pool.submit(self._ask_on) for _ in range(clients)]

    def _ask_on(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=PATIENCE)
        with contextlib.closing(client):
            while not self._stop.is_set():
                client.request("POST", "/predict", IMAGE, {"Content-Type": "image/jpeg"})
                response = client.getresponse()
                said = told(response)
                assert len(said["predictions"]) == 5 if response.status == 200 else said["error"]
                with self._lock:
                    self.statuses[response.status] += 1

    def until(self, is_so) -> None:
        """Go on until something is so."""
        end = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < end, self.statuses
            time.sleep(0.02)
            for each in self._asking:
                if each.done():
                    each.result()

    def end(self) -> None:
        self._stop.set()
        self._pool.shutdown()
        for each in self._asking:
            each.result()


@pytest.mark.slow
def test_a_minute_of_load_fails_nowhere_and_takes_no_more_memory(weights):
    with serving(weights, "--runtime", "eager") as service:
        load = Load(service, 16)
        load.until(lambda: load.statuses[200] > 1000)
        before, started = resident_bytes(service.process.pid), time.monotonic()
        load.until(lambda: time.monotonic() > started + 60)
        after = resident_bytes(service.process.pid)
        load.end()
        assert {*load.statuses} == {200}
        assert load.statuses[200] > 2000
        assert service.end()[0] == 0
    assert after < before + (32 << 20), (before, after)
