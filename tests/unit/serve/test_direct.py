"""What goes the short way, what does not, and that a client cannot tell."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn

from serve.answer import JSON, Answer, OverloadedError
from serve.asgi import AppLimits, ScoringApp
from serve.direct import DIRECT_BYTES, DirectProtocol

KEEP_ALIVE_S = 1


class Served:
    """A listener whose port says how often which way was taken."""

    def __init__(self, read_s: float = 10.0) -> None:
        self.asgi = 0
        self.asked: list[tuple[bytes, Mapping[str, str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        limits = AppLimits(body_bytes=1 << 20, total_bytes=3 << 20, read_s=read_s)
        self.app = ScoringApp(self._submit, limits=limits, healthy=lambda: True)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(listening.getsockname()[1])
        self.server = uvicorn.Server(
            uvicorn.Config(
                self._count,
                http=DirectProtocol.of(self.app, header_s=5.0),
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=5,
            )
        )
        self.thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    async def _count(self, scope: Any, receive: Any, send: Any) -> None:
        self.asgi += scope["type"] == "http"
        await self.app(scope, receive, send)

    async def _submit(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.asked.append((body, headers))
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if body == b"full":
            raise OverloadedError("too many")
        if body == b"odd":
            return Answer(200, b"{}", JSON, ((b"x-odd", b"a\r\nset-cookie: b"),))
        if body == b"close":
            return Answer(200, b"{}", JSON, ((b"connection", b"close"),))
        return Answer(200, b"%d" % len(body), JSON, ((b"x-chancery-version", b"3"),))

    def end(self) -> None:
        self.gate.set()
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.end()


@pytest.fixture
def client(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        yield connection


def request(body: bytes = b"{}", *headers: str, path: str = "/invocations") -> bytes:
    told = ["host: x", f"content-length: {len(body)}", "Content-Type: application/json", *headers]
    return f"POST {path} HTTP/1.1\r\n".encode() + "\r\n".join(told).encode() + b"\r\n\r\n" + body


def read(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(client)
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += _some(client)
    assert len(body) == int(headers["content-length"])
    return int(status.split()[1]), headers, body


def _some(client: socket.socket) -> bytes:
    data = client.recv(1 << 16)
    if not data:
        raise ConnectionResetError("the connection was closed")
    return data


def closed(client: socket.socket) -> bool:
    return client.recv(1 << 16) == b""


def test_an_answer_is_the_same_on_either_way(served: Served, client: socket.socket) -> None:
    client.sendall(request(b"{}", "x-request-id: me-1"))
    short = read(client)
    assert served.asgi == 0
    client.sendall(request(b"{}", "x-request-id: me-1", "expect: 100-continue"))
    client.recv(len(b"HTTP/1.1 100 Continue\r\n\r\n"))
    long = read(client)
    assert served.asgi == 1
    for _, headers, _ in (short, long):
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", headers.pop("traceparent"))
    assert short == long
    (_, first), (_, second) = served.asked
    differ = {"traceparent", "expect"}
    assert {k: v for k, v in first.items() if k not in differ} == {
        k: v for k, v in second.items() if k not in differ
    }


def test_of_a_repeated_header_the_first_counts(served: Served, client: socket.socket) -> None:
    client.sendall(request(b"{}", "X-User: one", "x-user: two"))
    read(client)
    assert served.asked[0][1]["x-user"] == "one"
    assert served.asgi == 0


@pytest.mark.parametrize(
    "asked",
    [
        request(b"x" * (DIRECT_BYTES + 1)),
        request(path="/invocations?x=1"),
        request(path="/%69nvocations"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request().replace(b"content-length: 2", b"transfer-encoding: chunked").replace(
            b"\r\n\r\n{}", b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        ),
    ],
    ids=["large", "a query", "escaped", "HTTP/1.0", "chunked"],
)  # fmt: skip
def test_what_is_not_ordinary_goes_uvicorns_way(
    served: Served, client: socket.socket, asked: bytes
) -> None:
    client.sendall(asked)
    assert read(client)[0] == 200
    assert served.asgi == 1


def test_other_routes_and_a_body_in_pieces_share_a_connection(
    served: Served, client: socket.socket
) -> None:
    client.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read(client)[0] == 200
    asked = request(b'{"a": 1}')
    for piece in (asked[:30], asked[30:-6], asked[-6:-1], asked[-1:]):
        client.sendall(piece)
        time.sleep(0.03)
    assert read(client)[2] == b"8"
    client.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read(client)[0] == 404
    assert served.asgi == 2


def test_requests_that_do_not_wait_are_answered_in_order(
    served: Served, client: socket.socket
) -> None:
    ping = b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"
    served.gate.clear()
    client.sendall(request(b"1") + request(b"22") + ping + request(b"333"))
    time.sleep(0.1)
    served.gate.set()
    found = b""
    while found.count(b"HTTP/1.1 200") < 4 or not found.endswith(b"3"):
        found += _some(client)
    bodies = re.findall(rb"\r\n\r\n(.*?)(?=HTTP|$)", found, re.S)
    assert bodies == [b"1", b"2", b"\n", b"3"]
    client.sendall(request(b"4444"))
    assert read(client)[2] == b"4", "the connection goes on"


@pytest.fixture
def impatient() -> Iterator[Served]:
    """Waits but a moment for a body."""
    served = Served(read_s=0.3)
    yield served
    served.end()


def test_a_body_that_does_not_come_is_told_so(impatient: Served) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=5) as client:
        client.sendall(request(b"{}", "x-request-id: late")[:-1])
        status, headers, body = read(client)
        assert (status, headers["connection"], headers["x-request-id"]) == (408, "close", "late")
        assert json.loads(body)["error_code"] == "REQUEST_TIMEOUT"
        assert closed(client)
    assert not impatient.asked


def test_all_bodies_together_have_a_budget(served: Served) -> None:
    served.gate.clear()
    size, count = 60 << 10, 60
    fit = (3 << 20) // size
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 5))
            for _ in range(count)
        ]
        for one in clients:
            one.sendall(request(b"x" * size))
        refused, _, _ = select.select(clients, [], [], 5)
        while len(refused) < count - fit:
            refused, _, _ = select.select(clients, [], [], 5)
        served.gate.set()
        statuses = Counter(read(one)[0] for one in clients)
    assert statuses == {200: fit, 503: count - fit}
    assert served.app.held_bytes == 0


@pytest.mark.parametrize(
    ("asked", "status"),
    [(request(b"full"), 503), (request(b"close"), 200), (request(b"{}", "connection: close"), 200)],
    ids=["overloaded", "the port says so", "the client says so"],
)
def test_connections_end_when_somebody_says_so(
    client: socket.socket, asked: bytes, status: int
) -> None:
    client.sendall(asked)
    found, headers, _ = read(client)
    assert found == status
    if status == 503:
        assert headers["retry-after"] == "1"
        client.sendall(request())
        assert read(client)[0] == 200
    else:
        assert headers["connection"] == "close"
        assert closed(client)


def test_a_header_that_splits_the_answer_is_never_written(
    served: Served, client: socket.socket
) -> None:
    client.sendall(request(b"odd"))
    assert closed(client)
    assert served.app.held_bytes == 0


def last_sent_of(client: socket.socket) -> float | None:
    """When the last of four requests was sent; None: the pauses became too long for it."""
    sent = time.monotonic()
    for _ in range(4):
        before, sent = sent, time.monotonic()
        try:
            client.sendall(request())
            status, _, _ = read(client)
        except ConnectionError:
            assert time.monotonic() - before >= KEEP_ALIVE_S, "it was closed too soon"
            return None
        assert status == 200
        time.sleep(KEEP_ALIVE_S * 0.4)
    return sent


def test_an_idle_connection_is_closed_in_time_and_no_sooner(served: Served) -> None:
    for _ in range(20):  # a machine that does other things may make a pause too long
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
            sent = last_sent_of(client)
            if sent is not None:
                assert closed(client)
                assert time.monotonic() - sent > KEEP_ALIVE_S * 0.99
                return
    pytest.fail("no connection had only short pauses")


def test_a_request_longer_than_the_idle_limit_is_answered(
    served: Served, client: socket.socket
) -> None:
    client.sendall(request())
    read(client)
    served.gate.clear()
    client.sendall(request(b"long"))
    time.sleep(KEEP_ALIVE_S * 1.5)
    served.gate.set()
    assert read(client)[2] == b"4"


def test_a_client_that_goes_away_costs_nothing(served: Served) -> None:
    served.gate.clear()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port), 5) as client:
            client.sendall(request())
    while len(served.asked) < 20:
        time.sleep(0.01)
    served.gate.set()
    with socket.create_connection(("127.0.0.1", served.port), 5) as client:
        client.sendall(request())
        assert read(client)[0] == 200
    deadline = time.monotonic() + 5
    while served.app.held_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.app.held_bytes == 0
    assert not served.server.server_state.tasks


def test_what_is_on_its_way_at_the_end_is_answered(served: Served, client: socket.socket) -> None:
    served.gate.clear()
    client.sendall(request(b"12345"))
    while not served.asked:
        time.sleep(0.01)
    served.server.should_exit = True
    time.sleep(0.3)
    served.gate.set()
    status, headers, body = read(client)
    assert (status, headers["connection"], body) == (200, "close", b"5")
    assert closed(client)


def test_what_is_no_http_is_refused(client: socket.socket) -> None:
    client.sendall(
        b"POST /invocations HTTP/1.1\r\nhost: x\r\n"
        b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x"
    )
    assert b" 400 " in client.recv(1 << 16)
