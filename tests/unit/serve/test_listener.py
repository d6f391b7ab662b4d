"""Slow headers end a connection; everything else about it is uvicorn's, on either way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from serve.answer import Answer
from serve.asgi import AppLimits, ScoringApp
from serve.direct import DirectProtocol
from serve.listener import GuardedProtocol

LIMIT_S = 0.3
REQUEST = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module", params=["guarded", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def port(way: str) -> Iterator[int]:
    with served(way, LIMIT_S) as found:
        yield found


@contextmanager
def served(way: str, limit_s: float) -> Iterator[int]:
    """The port of a server that gives headers so much time."""

    async def submit(body: bytes, headers: Mapping[str, str]) -> Answer:
        return Answer(200, b"%d" % len(body))

    limits = AppLimits(body_bytes=1 << 20, discard_bytes=64 << 20, read_s=1.5)
    app: Any = ScoringApp(submit, limits=limits)
    listening = socket.create_server(("127.0.0.1", 0))
    protocol = (
        DirectProtocol.of(app, header_s=limit_s)
        if way == "direct"
        else type("Guarded", (GuardedProtocol,), {"header_s": limit_s})
    )
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol, interface="asgi3", log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.fixture
def client(port: int) -> Iterator[socket.socket]:
    with connected(port) as connection:
        yield connection


def is_closed_in_time(client: socket.socket, begun: float) -> bool:
    """Whether it is closed, and not before the limit that began at ``begun`` or later."""
    while client.recv(1 << 16):
        pass
    return time.monotonic() - begun > LIMIT_S * 0.9


def test_a_client_that_says_nothing_is_cut_off(port: int) -> None:
    begun = time.monotonic()
    with connected(port) as client:
        assert is_closed_in_time(client, begun)


def test_headers_that_trickle_are_cut_off(port: int) -> None:
    begun = time.monotonic()
    with connected(port) as client:

        def trickle() -> None:
            client.sendall(REQUEST.removesuffix(b"\r\n\r\n{}") + b"\r\nx-long: ")
            while time.monotonic() - begun < 10:
                client.sendall(b"a")
                time.sleep(LIMIT_S / 20)

        with pytest.raises(ConnectionError):
            trickle()
    assert time.monotonic() - begun > LIMIT_S * 0.9


def test_a_later_request_on_a_connection_is_watched_too(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert b"200 OK" in client.recv(1 << 16)
    time.sleep(LIMIT_S * 2)  # an idle connection is uvicorn's affair
    client.sendall(REQUEST)
    assert b"200 OK" in client.recv(1 << 16)
    begun = time.monotonic()
    client.sendall(REQUEST[:20])
    assert is_closed_in_time(client, begun)


def test_headers_in_two_pieces_are_fine(way: str) -> None:
    with served(way, 5.0) as port, connected(port) as client:
        client.sendall(REQUEST[:20])
        time.sleep(0.1)
        client.sendall(REQUEST[20:])
        assert b"200 OK" in client.recv(1 << 16)


def test_a_body_that_trickles_is_told_so(client: socket.socket) -> None:
    client.sendall(REQUEST[:-1])
    assert b"408" in client.recv(1 << 16)


def test_a_client_that_sends_far_too_much_hears_why(client: socket.socket) -> None:
    size = 8 << 20
    client.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
    piece = bytes(1 << 20)
    for _ in range(size // len(piece)):
        client.sendall(piece)
    assert b" 413 " in client.recv(1 << 16)


def test_head_and_body_leave_together(client: socket.socket) -> None:
    for _ in range(20):
        client.sendall(REQUEST)
        assert client.recv(1 << 16).endswith(b"\r\n\r\n2"), "one segment, one waking"


def test_requests_sent_in_one_piece_are_answered_in_order(client: socket.socket) -> None:
    client.sendall(REQUEST * 5)
    found = b""
    while found.count(b"200 OK") < 5 or not found.endswith(b"2"):
        found += client.recv(1 << 16)
    assert found.count(b"\r\n\r\n2") == 5
