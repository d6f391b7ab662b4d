"""The application answers MLflow's routes in MLflow's words, and gives clients bounded room."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from serve.answer import Answer, OverloadedError
from serve.asgi import AppLimits, ScoringApp


class Port:
    """Remembers what was asked; answers the body's length, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[bytes, dict[str, str]]] = []

    async def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.asked.append((body, dict(headers)))
        if self.error:
            raise self.error
        return Answer(200, b"%d" % len(body), headers=((b"x-chancery-version", b"3"),))


class Told:
    """What a client was told."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        start, self.rest = sent[0], sent[1:]
        self.status: int = start["status"]
        self.headers = {k.decode(): v.decode() for k, v in start["headers"]}
        self.body = b"".join(message["body"] for message in self.rest)


async def exchange(
    app: ScoringApp,
    method: str = "POST",
    path: str = "/invocations",
    chunks: tuple[bytes, ...] = (b"{}",),
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),),
    *,
    ends: bool = True,
    pause_s: float = 0.0,
) -> Told | None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    if ends:
        messages[-1]["more_body"] = False
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        await asyncio.sleep(pause_s if read > 1 else 0)
        return messages[read - 1] if read <= len(messages) else {"type": "http.disconnect"}

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "scheme": "http", "query_string": b"",
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers],
    }  # fmt: skip
    await app(scope, receive, send)
    assert app.held_bytes == 0, "the room a request takes is given back"
    return Told(sent) if sent else None


def ask(app: ScoringApp, *arguments: Any, **options: Any) -> Told:
    told = asyncio.run(exchange(app, *arguments, **options))
    assert told is not None
    return told


def test_an_invocation_reaches_the_port_and_its_answer_comes_back() -> None:
    port = Port()
    told = ask(ScoringApp(port), chunks=(b'{"inp', b"uts", b'": 1}'))
    assert port.asked[0][0] == b'{"inputs": 1}'
    assert port.asked[0][1]["content-type"] == "application/json"
    assert (told.status, told.body) == (200, b"13")
    assert told.headers["content-type"] == "application/json"
    assert told.headers["content-length"] == "2"
    assert told.headers["x-chancery-version"] == "3"


def test_of_a_repeated_header_the_first_counts() -> None:
    port = Port()
    ask(ScoringApp(port), headers=(("content-type", "text/csv"), ("content-type", "x/y")))
    assert port.asked[0][1]["content-type"] == "text/csv"


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/ping", 200, b"\n"),
        ("GET", "/health", 200, b"\n"),
        ("GET", "/version", 200, b"3.17.2"),
        ("GET", "/invocations", 405, b'{"detail":"Method Not Allowed"}'),
        ("PUT", "/invocations", 405, b'{"detail":"Method Not Allowed"}'),
        ("POST", "/ping", 405, b'{"detail":"Method Not Allowed"}'),
        ("HEAD", "/health", 405, b'{"detail":"Method Not Allowed"}'),
        ("GET", "/", 404, b'{"detail":"Not Found"}'),
        ("POST", "/elsewhere", 404, b'{"detail":"Not Found"}'),
        ("GET", "/metrics", 404, b'{"detail":"Not Found"}'),
    ],
)
def test_routes(method: str, path: str, status: int, body: bytes) -> None:
    port = Port()
    told = ask(ScoringApp(port, version="3.17.2"), method, path)
    assert (told.status, told.body) == (status, body)
    assert told.headers["content-type"] == "application/json"
    assert not port.asked


def test_a_refused_method_names_the_allowed_one() -> None:
    assert ask(ScoringApp(Port()), "GET", "/invocations").headers["allow"] == "POST"


def test_a_trailing_slash_is_redirected() -> None:
    told = ask(ScoringApp(Port()), "POST", "/invocations/", headers=(("host", "h:1"),))
    assert told.status == 307
    assert told.headers["location"] == "http://h:1/invocations"
    assert "content-type" not in told.headers


def test_ill_health_and_metrics() -> None:
    async def metrics() -> tuple[str, bytes]:
        return "text/plain; version=0.0.4", b"up 1\n"

    app = ScoringApp(Port(), healthy=lambda: False, metrics=metrics)
    assert ask(app, "GET", "/ping").status == 503
    told = ask(app, "GET", "/metrics")
    assert (told.status, told.body) == (200, b"up 1\n")
    assert told.headers["content-type"] == "text/plain; version=0.0.4"


# -- limits

SMALL = AppLimits(body_bytes=10, total_bytes=15, read_s=0.05, discard_bytes=20)


@pytest.mark.parametrize("chunks", [(b"x" * 11,), (b"x" * 6, b"x" * 6), (b"x" * 6,) * 20])
def test_a_body_that_grows_too_large_is_refused(chunks: tuple[bytes, ...]) -> None:
    port = Port()
    told = ask(ScoringApp(port, limits=SMALL), chunks=chunks)
    assert told.status == 413
    assert json.loads(told.body)["error_code"] == "REQUEST_TOO_LARGE"
    assert told.headers["connection"] == "close"
    assert not port.asked


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    assert ask(ScoringApp(Port(), limits=SMALL), chunks=(b"x" * 10,)).status == 200


@pytest.mark.parametrize("headers", [(("content-length", "11"),), (("content-length", "9" * 30),)])
def test_a_body_that_says_it_is_too_large_is_refused(headers: Any) -> None:
    assert ask(ScoringApp(Port(), limits=SMALL), headers=headers, chunks=(b"x" * 11,)).status == 413


def test_a_client_that_asks_before_it_sends_is_refused_before_it_sends() -> None:
    headers = (("content-length", "11"), ("expect", "100-continue"))
    told = ask(ScoringApp(Port(), limits=SMALL), headers=headers, chunks=(b"",), ends=False)
    assert told.status == 413


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    port = Port()
    told = ask(ScoringApp(port, limits=SMALL), chunks=(b"x", b"x", b"x"), pause_s=0.04)
    assert told.status == 408
    assert told.headers["connection"] == "close"
    assert not port.asked


def test_all_bodies_together_have_a_budget() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def wait(body: bytes, headers: Mapping[str, str]) -> Answer:
            await gate.wait()
            return Answer(200, b"")

        app = ScoringApp(wait, limits=SMALL)
        scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": []}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 10}

        async def send(message: Any) -> None:
            sent.append(message)

        first = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0.01)
        assert app.held_bytes == 10
        await app(scope, receive, send)
        assert sent[0]["status"] == 503
        assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
        gate.set()
        await first
        assert sent[2]["status"] == 200
        assert app.held_bytes == 0

    asyncio.run(test())


def test_a_client_that_goes_away_is_not_answered() -> None:
    port = Port()
    assert asyncio.run(exchange(ScoringApp(port), chunks=(b"x",), ends=False)) is None
    assert not port.asked


# -- what the port raises


def test_back_pressure_says_when_to_come_again() -> None:
    told = ask(ScoringApp(Port(OverloadedError("1024 requests wait", retry_after_s=3))))
    assert told.status == 503
    assert told.headers["retry-after"] == "3"
    assert json.loads(told.body)["error_code"] == "OVERLOADED"


def test_time_that_ran_out_is_told_in_mlflows_words() -> None:
    told = ask(ScoringApp(Port(TimeoutError())))
    assert (told.status, told.body) == (504, b"Request processing time exceeded limit")


def test_what_is_unforeseen_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    told = ask(ScoringApp(Port(RuntimeError("secret"))))
    assert (told.status, told.body) == (500, b"Internal Server Error")
    assert told.headers["content-type"] == "text/plain; charset=utf-8"
    assert "secret" in caplog.text


# -- identifiers

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def identified(*headers: tuple[str, str]) -> tuple[Told, dict[str, str]]:
    port = Port()
    return ask(ScoringApp(port), headers=headers), port.asked[0][1]


def test_identifiers_of_the_client_are_kept() -> None:
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    told, seen = identified(
        ("x-request-id", "order-17"), ("traceparent", parent), ("tracestate", "a=b")
    )
    assert told.headers["x-request-id"] == seen["x-request-id"] == "order-17"
    assert seen["traceparent"] == told.headers["traceparent"]
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", seen["traceparent"])
    assert seen["traceparent"] != parent, "our span is a child of the client's"
    assert seen["tracestate"] == "a=b"


@pytest.mark.parametrize(
    "bad",
    ["", "a b", "x" * 129, "a\tb", "é", "-", 'x"y', "00-" + "0" * 32 + "-" + "1" * 16 + "-01"],
)
def test_malformed_identifiers_are_replaced(bad: str) -> None:
    told, seen = identified(("x-request-id", bad), ("traceparent", bad), ("tracestate", "a=b"))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", told.headers["traceparent"])
    assert "tracestate" not in seen
    if not bad.startswith("00-"):
        assert re.fullmatch("[0-9a-f]{32}", told.headers["x-request-id"])


def test_each_request_gets_identifiers_of_its_own() -> None:
    app = ScoringApp(Port())
    one, two = ask(app), ask(app)
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert one.headers["traceparent"] != two.headers["traceparent"]
    assert "x-request-id" in ask(app, "GET", "/nowhere").headers


# -- other scopes


def test_lifespan_and_websockets() -> None:
    async def test() -> None:
        sent: list[str] = []
        incoming = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, str]:
            return {"type": next(incoming)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        app = ScoringApp(Port())
        await app({"type": "lifespan"}, receive, send)
        await app({"type": "websocket"}, receive, send)
        assert sent == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
            "websocket.close",
        ]

    asyncio.run(test())
