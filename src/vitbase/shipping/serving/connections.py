"""Connections that do not wait for ever: uvicorn's protocol, with a time for everything.

uvicorn bounds how long a connection may rest between two requests. Here a head that comes letter by
letter, what is sent after a request was refused, and an answer that nobody takes have a time, too;
and connections are counted.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitbase.shipping.serving.limits import MOST_CONNECTIONS

WRITE_SECONDS = 20.0
"""For a client to take what fills the buffers of its connection."""


class BoundedProtocol(H11Protocol):
    """One connection.

    Attributes:
      head_seconds: for the head of a request to arrive, and for the rest of one that was refused.
    """

    head_seconds = 20.0
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(503, "Too many connections.")
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._reading)
        self._stop(self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Start the time of a head, or of what nobody reads, where one is awaited; or end it."""
        is_head = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        is_rest = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if not (is_head or is_rest):
            self._stop(self._reading)
            self._reading = None
        elif self._reading is None:
            self._reading = self.loop.call_later(self.head_seconds, self.transport.abort)

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # it has failed already
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop(self._writing)
        self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self._writing)
        self._writing = None
        super().resume_writing()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in JSON as all else."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._refuse(400, msg)
        else:  # half of an answer is out
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = h11.Response(status_code=status, headers=headers)
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        raise AssertionError("there are no websockets")  # ws="none"
