"""`vitbase serve`: a socket, models, and a server that ends without losing what it took."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator, Mapping
from types import FrameType

import uvicorn

from vitbase.data.threads import count_workers, one_core_threads
from vitbase.errors import ConfigError, VitbaseError, WeightsError
from vitbase.evaluation.classifier import Classifier
from vitbase.rendezvous import bound_socket
from vitbase.shipping.serving.app import Service
from vitbase.shipping.serving.connections import BoundedProtocol
from vitbase.shipping.serving.limits import Limits
from vitbase.shipping.serving.metrics import Metrics
from vitbase.shipping.serving.models import Models, Opener

LOOPBACK = "127.0.0.1"

_KEEP_ALIVE = 30
"""Seconds that a connection may rest: longer than clients do, so that it is they who close it."""

_SECONDS_TO_END = 10.0

Tell = Callable[[str], None]


def serve(
    places: Mapping[str, str],
    open_one: Opener,
    limits: Limits,
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    token: bytes | None = None,
    tell: Tell = lambda line: None,
    warn: Tell = lambda line: None,
) -> None:
    """Serve models over HTTP until SIGTERM or SIGINT, and then finish what was taken.

    Args:
      places: of the models, by name.
      open_one: opens one.
      limits: of what is taken.
      host: the address to listen on, and no other.
      port: of it; 0: any.
      token: that requests have to say.
      tell: gets lines about what happens.
      warn: gets lines about what goes wrong.
    Raises: ConfigError if the port is taken; what opening raises, if no model opens.
    """
    with contextlib.closing(_bind(host, port)) as listening:
        metrics = Metrics()
        models = Models(places, open_one, limits, metrics)
        opened = _open_all(models, tell, warn)
        asyncio.run(_serve(models, opened, limits, metrics, listening, token, tell))


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise ConfigError("Option 'port' should be from 0 (any) to 65535.")
    try:
        return bound_socket(host, port)
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot listen on {host}, port {port}: {words}. Give another --port, or --host."
        ) from None


def _open_all(models: Models, tell: Tell, warn: Tell) -> dict[str, Classifier]:
    """Open what opens. Raises: a VitbaseError, if that is nothing."""
    opened: dict[str, Classifier] = {}
    failed: dict[str, VitbaseError] = {}
    for name in models.places:
        try:
            opened[name] = classifier = models.open(name)
        except VitbaseError as error:
            failed[name] = error
            continue
        classes = f"{classifier.num_classes} classes"
        tell(f"Model '{name}': {classifier.path} ({classifier.runtime}, {classes})")
    if not opened and len(failed) == 1:
        raise next(iter(failed.values()))
    lines = [f"Model '{name}' does not open: {error}" for name, error in failed.items()]
    if not opened:
        raise WeightsError("No model opens.", *lines)
    for line in lines:
        warn(f"{line} The others serve.")
    return opened


async def _serve(
    models: Models,
    opened: dict[str, Classifier],
    limits: Limits,
    metrics: Metrics,
    listening: socket.socket,
    token: bytes | None,
    tell: Tell,
) -> None:
    with one_core_threads(count_workers(limits.num_workers)) as decoding:
        for name, classifier in opened.items():
            models.take(name, classifier)
        opened.clear()  # a model that is opened again leaves the memory
        service = Service(models, limits, metrics, decoding, token)
        server = _Server(service, limits)
        try:
            await server.serve([listening], tell)
        finally:
            await models.close()
    tell(describe_end(service.taken, service.answered))


def describe_end(taken: int, answered: int) -> str:
    """Say what became of all requests."""
    return f"Ended: {taken:,} request{'' if taken == 1 else 's'} taken, {answered:,} answered."


class _Server(uvicorn.Server):
    """uvicorn's, with its own ways to start and to be stopped."""

    def __init__(self, service: Service, limits: Limits) -> None:
        seconds = limits.read_timeout + limits.deadline + _SECONDS_TO_END
        config = uvicorn.Config(
            service.app(),
            http=type("Protocol", (BoundedProtocol,), {"head_seconds": limits.read_timeout}),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(seconds),
        )
        super().__init__(config)
        self._service = service
        self._tell: Tell = lambda line: None

    async def serve(  # type: ignore[override]
        self, sockets: list[socket.socket], tell: Tell
    ) -> None:
        self._tell = tell
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        address, port = sockets[0].getsockname()[:2]
        try:
            await super().startup(sockets)
        except OSError as error:  # another has begun to listen there since
            raise ConfigError(
                f"Cannot listen on {address}, port {port}: {error.strerror or error}."
            ) from None
        shown = f"[{address}]" if ":" in address else address
        names = ", ".join(self._service.models.places)
        self._tell(f"Serving {names} on http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.is_ending = True
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Let signals end the server, which is what they ask for: then all is well.

        uvicorn would send itself the signal once more in the end, and so end with its number.
        """
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at once if asked a second time."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
