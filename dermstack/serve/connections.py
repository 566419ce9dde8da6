"""Connections of the app: limits on their number and on the time in which a request must come and an answer go.

Without them, connections that never send a request stay open for ever and use up the process's file descriptors.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 100
IDLE_SECONDS = 10.0  # for the head of a request, and for a client that does not take its answer


def serve(app: ASGIApp, listener: socket.socket, *, headers: dict[str, str]) -> None:
    """Answers requests until Ctrl-C, then returns; see `make_server`."""
    try:
        make_server(app, headers=headers).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after its shutdown
        return


def make_server(
    app: ASGIApp,
    *,
    headers: dict[str, str],
    max_connections: int = MAX_CONNECTIONS,
    idle_seconds: float = IDLE_SECONDS,
) -> uvicorn.Server:
    """Returns a server of ``app``. What is no HTTP request gets no answer of ``app``, but one with ``headers``."""

    class Connection(_Connection):
        pass

    Connection.own_headers = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
    Connection.max_connections = max_connections
    Connection.idle_seconds = idle_seconds
    return uvicorn.Server(
        uvicorn.Config(
            app, http=Connection, ws="none", log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=3,
        )
    )  # fmt: skip


class _Connection(H11Protocol):
    """One HTTP/1.1 connection, ended where it stays without a request.

    Where there are too many connections, the one that has waited longest for a request makes room.
    """

    own_headers: list[tuple[bytes, bytes]]
    max_connections: int
    idle_seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._unsent = 0
        self._timer = self.loop.call_later(self._tick_seconds, self._tick)
        if len(self.connections) <= self.max_connections:
            return
        idle = [one for one in self.connections if isinstance(one, _Connection) and not one._busy and one is not self]
        if idle:
            oldest = min(idle, key=lambda one: one._idle_since)
            self.connections.discard(oldest)  # `connection_lost` comes later, and others may come before it
            oldest.transport.abort()
        else:
            self._refuse(503, "Too many connections: try again in a few seconds.", (b"retry-after", b"5"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, with the app's headers."""
        self._refuse(400, msg)

    def _should_upgrade(self) -> bool:
        return False  # there are no websockets here, and nothing to install for them

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered: `Admission` limits how long its body may take."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _tick_seconds(self) -> float:
        return self.idle_seconds / 10

    def _tick(self) -> None:
        """Ends the connection if it has been without a request, and nothing of an answer was taken, for too long."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if self._busy or unsent != self._unsent:
            self._idle_since = now
        self._unsent = unsent
        if now - self._idle_since > self.idle_seconds:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self._tick_seconds, self._tick)

    def _refuse(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        """Answers without the application and closes; only closes where an answer has begun already."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # a running answer must not follow this one
            if self.cycle.response_started:
                self.transport.abort()
                return
        content = text.encode()
        fields = [
            (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"), *self.own_headers, *headers,
        ]  # fmt: skip
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in fields]
        self.transport.write(b"\r\n".join([*lines, b"", content]))
        self.transport.close()
