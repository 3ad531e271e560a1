"""The page on a port of this machine: loopback unless asked, and until somebody stops it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from vitbase.errors import ConfigError
from vitbase.rendezvous import bound_socket
from vitbase.shipping.showing.page import build_page, check_gradio, style, theme
from vitbase.shipping.showing.seen import LONGEST_UPLOAD, open_viewer, write_examples

PORT = 7860
LOOPBACK = "127.0.0.1"

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
"""Of the page: a browser asks nobody else for anything."""


def show(
    checkpoint: str | Path,
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    tell: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Show a model on a page until SIGINT or SIGTERM.

    Args:
      checkpoint: anything `checkpoint_path` takes.
      host: address of this machine to listen on.
      port: 0 is any that is free.
      tell: gets lines, the first of them the address.
      options: as of `open_viewer`.
    Raises: ConfigError if gradio is not installed, or the port is taken; as `open_viewer`.
    """
    check_gradio()
    with _bound(host, port) as listener, tempfile.TemporaryDirectory(prefix="vitbase-") as folder:
        viewer = open_viewer(checkpoint, **options)
        # What is sent is kept there by gradio, which reads this when it is imported.
        os.environ |= {**_QUIET, "GRADIO_TEMP_DIR": f"{folder}/uploads"}
        places = write_examples(viewer, checkpoint, Path(folder))
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        lines = [
            f"Weights: {viewer.loaded.path}",
            f"Demo: http://{shown}:{number} (Ctrl-C ends it)",
        ]
        if not ipaddress.ip_address(address).is_loopback:
            lines.append("Everybody who reaches this address can use it: there is no password.")
        server = _server(_guarded(build_page(viewer, places), host), lambda: [*map(tell, lines)])
        with _ended_by_signals(server):
            server.run(sockets=[listener])


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"Option 'port' should be from 0 to 65535 (got {port}).")
    try:
        listener = bound_socket(host, port)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot listen on port {port} of {host}: {why}. Give another --port, or --host."
        ) from None
    with listener:
        yield listener


def _guarded(page: Any, host: str) -> Any:
    """Return the page as an application that answers to its own names alone."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LONGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=style(),
    )
    app.add_middleware(_Headers)
    if host in {LOOPBACK, "localhost", "::1"}:
        # A page of others, whose name leads here, is not answered.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost", "[::1]"])
    return app


class _Headers:
    """Adds the policy of the page to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, sending)


def _server(app: Any, listening: Callable[[], object]) -> Any:
    """Return what serves an application until it is told to exit; it handles no signal.

    Args:
      listening: called when it answers.
    """
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            listening()

    return Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="on"
        )
    )


@contextlib.contextmanager
def _ended_by_signals(server: Any) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the server, and nothing else."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Open pages hold a stream each; that these are cut would be reported as errors.
        logging.disable()
        server.handle_exit(number, frame)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for one, handler in before.items():
            signal.signal(one, handler)
