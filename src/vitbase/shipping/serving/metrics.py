"""What a service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

NO_MODEL = ""
"""The model of a request that named none that there is: names from outside are not counted by."""


class Metrics:
    """Counters of one service; two in a process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "vitbase_requests", "Requests for predictions.", ("model", "status"), registry=registry
        )
        self.seconds = Histogram(
            "vitbase_request_seconds",
            "From the head of a request to its predictions.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "vitbase_batch_images", "Images.", ("model",), buckets=_IMAGES, registry=registry
        )
        self.batch_seconds = Histogram(
            "vitbase_batch_seconds",
            "Of computing a batch.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "vitbase_waiting_images", "Taken, not computed yet.", ("model",), registry=registry
        )
        self.ready = Gauge("vitbase_ready", "Whether it serves.", ("model",), registry=registry)
        self.reloads = Counter(
            "vitbase_reloads", "Models opened again.", ("model", "result"), registry=registry
        )
        ProcessCollector(registry=registry)

    def of_batches(self, model: str) -> Callable[[int, float], None]:
        """Return what counts the batches of a model."""
        images, seconds = self.batch_images.labels(model), self.batch_seconds.labels(model)

        def count(size: int, spent: float) -> None:
            images.observe(size)
            seconds.observe(spent)

        return count

    def text(self) -> bytes:
        """All of them, in Prometheus's own format."""
        return generate_latest(self.registry)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
