"""Connections of the local page: how many there may be, how long each may take, and what each answer carries."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dermstack.serve.connections import make_server

HEADERS = {"X-Page": "own"}
LARGE = 32 << 20  # more than the buffers of a socket


async def _answer(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("x" * (LARGE if request.url.path == "/large" else 2))


async def _at_once(request: Request, _: Exception | None = None) -> Response:
    return PlainTextResponse("no")


@contextmanager
def served(max_connections: int = 100, idle_seconds: float = 60.0) -> Iterator[int]:
    """The port of a server in a thread of its own."""
    with started(max_connections, idle_seconds) as (port, _):
        yield port


@contextmanager
def started(max_connections: int = 100, idle_seconds: float = 60.0) -> Iterator[tuple[int, uvicorn.Server]]:
    """The same, and the server."""
    methods = ["GET", "POST"]
    app = Starlette(
        routes=[
            Route("/", _answer, methods=methods), Route("/large", _answer), Route("/now", _at_once, methods=methods)
        ],
        exception_handlers={ClientDisconnect: _at_once},
    )  # fmt: skip
    server = make_server(app, headers=HEADERS, max_connections=max_connections, idle_seconds=idle_seconds)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1], server
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def answered(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def drip(connection: socket.socket, content: bytes) -> None:
    """Sends one byte at a time."""
    for letter in content:
        connection.sendall(bytes([letter]))
        time.sleep(0.05)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_hundreds_of_connections_without_a_request_keep_nobody_out_and_are_ended() -> None:
    with served(max_connections=20, idle_seconds=60) as port, ExitStack() as stack:
        silent = [stack.enter_context(connected(port)) for _ in range(60)]
        for one in silent:
            one.sendall(b"GET / HT")
        with connected(port) as asking:
            asking.sendall(GET)
            assert answered(asking).endswith(b"xx")
        ended = 0
        for one in silent[:40]:  # the oldest made room
            one.settimeout(30)
            assert answered(one) == b""
            ended += 1
        assert ended == 40


def test_a_request_that_does_not_come_to_its_end_is_given_up() -> None:
    with served(idle_seconds=0.5) as port:
        with connected(port) as silent, connected(port) as slow:
            start = time.monotonic()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                drip(slow, b"GET /" + b"a" * 10**4)
            assert answered(silent) == b""
            assert time.monotonic() - start > 0.4
        with connected(port) as again:
            again.sendall(GET.replace(b"close", b"keep-alive"))
            assert answered(again).endswith(b"xx")


@pytest.mark.slow
def test_a_client_that_does_not_take_its_answer_is_given_up() -> None:
    with started(idle_seconds=0.5) as (port, server), connected(port) as deaf:
        deaf.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deaf.recv(1)
        while server.server_state.connections:
            time.sleep(0.05)
        assert len(answered(deaf)) < LARGE


@pytest.mark.slow
def test_an_answer_that_is_taken_slowly_arrives_as_a_whole() -> None:
    with served(idle_seconds=2) as port, connected(port) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        n_bytes = 0
        while part := slow.recv(1 << 20):
            n_bytes += len(part)
            time.sleep(0.01)
        assert n_bytes > LARGE


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 10**6 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
def test_what_is_no_request_gets_a_4xx_with_the_headers(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), served() as port, connected(port) as asking:
        with suppress(ConnectionResetError):
            asking.sendall(sent)
        text = answered(asking)
    assert text.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-page: own\r\n" in text
    assert [record for record in caplog.records if record.exc_info] == []


def test_nonsense_behind_an_answered_head_ends_the_connection_without_a_traceback(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING), served() as port, connected(port) as asking:
        asking.sendall(b"POST /now HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert asking.recv(1 << 16).startswith(b"HTTP/1.1 200")
        asking.sendall(b"no chunk\r\n")
        answered(asking)
    assert [record for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in capfd.readouterr().err


def test_where_all_connections_are_busy_a_new_one_is_told_to_come_again() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    with served(max_connections=2) as port, connected(port) as first, connected(port) as second:
        for one in (first, second):
            one.sendall(head)
            time.sleep(0.5)
        with connected(port) as third:
            text = answered(third)
        assert text.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5\r\n" in text
        assert b"\r\nx-page: own\r\n" in text
        first.sendall(b"12345")
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_an_upgrade_is_answered_as_a_plain_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), served() as port, connected(port) as asking:
        asking.sendall(GET.replace(b"Connection: close", b"Connection: upgrade, close\r\nUpgrade: websocket"))
        assert asking.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert caplog.records == []
