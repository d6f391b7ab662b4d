"""Slow headers end a connection; everything else about it is uvicorn's, on either way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import uvicorn

from serve.answer import Answer
from serve.asgi import AppLimits, ScoringApp
from serve.direct import DirectProtocol
from serve.listener import GuardedProtocol

LIMIT_S = 0.3
REQUEST = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Impatient(GuardedProtocol):
    header_s = LIMIT_S


@pytest.fixture(scope="module", params=["guarded", "direct"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    async def submit(body: bytes, headers: Mapping[str, str]) -> Answer:
        return Answer(200, b"%d" % len(body))

    limits = AppLimits(body_bytes=1 << 20, discard_bytes=64 << 20, read_s=1.5)
    app: Any = ScoringApp(submit, limits=limits)
    listening = socket.create_server(("127.0.0.1", 0))
    direct = request.param == "direct"
    protocol = DirectProtocol.of(app, header_s=LIMIT_S) if direct else Impatient
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol, interface="asgi3", log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield int(listening.getsockname()[1])
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def seconds_until_closed(client: socket.socket) -> float:
    started = time.monotonic()
    while client.recv(1 << 16):
        pass
    return time.monotonic() - started


def test_a_client_that_says_nothing_is_cut_off(client: socket.socket) -> None:
    assert LIMIT_S / 2 < seconds_until_closed(client) < 3


def test_headers_that_trickle_are_cut_off(client: socket.socket) -> None:
    try:
        for sent in range(len(REQUEST)):
            client.sendall(REQUEST[sent : sent + 1])
            time.sleep(LIMIT_S / 20)
    except OSError:
        assert 10 < sent < 50
    else:
        pytest.fail("nobody minded")


def test_a_later_request_on_a_connection_is_watched_too(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert b"200 OK" in client.recv(1 << 16)
    time.sleep(LIMIT_S * 2)  # an idle connection is uvicorn's affair
    client.sendall(REQUEST)
    assert b"200 OK" in client.recv(1 << 16)
    client.sendall(REQUEST[:20])
    assert LIMIT_S / 2 < seconds_until_closed(client) < 3


def test_headers_in_two_pieces_are_fine(client: socket.socket) -> None:
    client.sendall(REQUEST[:20])
    time.sleep(LIMIT_S / 3)
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
