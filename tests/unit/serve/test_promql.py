"""Queries of a variant, and what may answer for Prometheus."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from benchmarks.surroundings import free_port
from governance.errors import ConfigurationError, UnreachableError
from serve.promql import Prometheus, check_query, substituted

ODD = {"variant": "canary", "model": "a\"b\\c\nd'e", "version": "4", "application": "x-v4"}


class Server(ThreadingHTTPServer):
    """Says what it is told, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.status, self.body, self.headers = 200, b"", {}
        self.asked: list[dict[str, str]] = []
        self.held = threading.Event()
        self.held.set()

    def says(self, kind: str, result: Any, status: str = "success") -> None:
        data = {"resultType": kind, "result": result}
        self.body = json.dumps({"status": status, "data": data}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        form = parse_qs(self.rfile.read(size).decode())
        self.server.asked.append({"path": self.path} | {k: v[0] for k, v in form.items()})
        self.server.held.wait(10)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.held.set()
        server.shutdown()


# -- variables


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ('x{v="$version"}', 'x{v="4"}'),
        ("x{v='$version',w=\"a$variant.b\"}", "x{v='4',w=\"acanary.b\"}"),
        ("x{m=`$version`}", "x{m=`4`}"),
        ('x{m="$model"}', 'x{m="a\\"b\\\\c\\nd\'e"}'),
        ("x{m='$model'}", "x{m='a\"b\\\\c\\nd\\'e'}"),
        ('x{v="a$"}', 'x{v="a$"}'),
        ('x{v="$versions"}', 'x{v="$versions"}'),
        ('x{v="\\"$version"}', 'x{v="\\"4"}'),
        ('x{v="$version"} # isn\'t it?\n+ 1', 'x{v="4"} \n+ 1'),
        ('x{v="#$version"}', 'x{v="#4"}'),
        ("1 # $version", "1 "),
    ],
)
def test_variables_are_filled_in_between_quotes(query: str, asked: str) -> None:
    assert substituted(query, ODD) == asked


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("x{v=$version}", "outside quotes"),
        ('x{v="a"} $version', "outside quotes"),
        ('x{v="$version}', "has no end"),
        ("x{m=`$model`}", ""),
    ],
)
def test_what_cannot_be_filled_in_is_refused(query: str, why: str) -> None:
    values = {**ODD, "model": "a`b"}
    with pytest.raises(ConfigurationError, match=why or "between backticks"):
        substituted(query, values)


@pytest.mark.parametrize("query", ["up", 'x{m="$model"}', 'x{v="$versions"}'])
def test_a_query_has_to_tell_the_variants_apart(query: str) -> None:
    with pytest.raises(ConfigurationError, match="the same of stable and canary"):
        check_query(query)
    for name in ("variant", "version", "application"):
        check_query(f'x{{v="${name}"}}')


# -- answers


def test_a_value(server: Server) -> None:
    prometheus = Prometheus(server.url, 5)
    server.says("vector", [{"metric": {}, "value": [1790000000.1, "12.5"]}])
    assert prometheus.value('x{v="4"}', 1790000000.1234) == 12.5
    asked = server.asked[0]
    assert asked["path"] == "/api/v1/query"
    assert (asked["query"], asked["time"]) == ('x{v="4"}', "1790000000.123")
    server.says("scalar", [1790000000, "3"])
    assert prometheus.value("3", 0) == 3.0
    server.says("vector", [])
    assert prometheus.value("x", 0) is None


def test_a_query_that_is_wrong_is_said_to_be(server: Server) -> None:
    prometheus = Prometheus(server.url, 5)
    server.status = 400
    server.body = b'{"status":"error","errorType":"bad_data","error":"1:3: parse error"}'
    with pytest.raises(ConfigurationError, match="refuses the query: 1:3: parse error"):
        prometheus.value("x{", 0)
    server.status = 200
    two = [{"metric": {"a": str(n)}, "value": [0, "1"]} for n in range(2)]
    for kind, result in (("vector", two), ("matrix", []), ("string", [0, "x"])):
        server.says(kind, result)
        with pytest.raises(ConfigurationError, match="not one"):
            prometheus.value("x", 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"status":"success"}',
        b'{"status":"success","data":[]}',
        b'{"status":"error","data":{"resultType":"scalar","result":[0,"1"]}}',
        b'{"status":"success","data":{"resultType":"scalar"}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[]}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1]}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1,"x"]}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1,"NaN"]}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1,"+Inf"]}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1,{}]}}',
        b'{"status":"success","data":{"resultType":"vector","result":[1]}}',
        b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}',
        b'{"status":"success","data":{"resultType":"vector","result":{"a":1}}}',
        b" " * ((1 << 20) + 5),
    ],
)
def test_an_odd_answer_is_none(server: Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(UnreachableError):
        Prometheus(server.url, 5).value("x", 0)


def test_nobody_there_or_nobody_who_answers(server: Server) -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        Prometheus(f"http://127.0.0.1:{free_port()}", 5).value("x", 0)
    server.status, server.body = 503, b"starting"
    with pytest.raises(UnreachableError, match="answers with 503"):
        Prometheus(server.url, 5).value("x", 0)
    server.held.clear()
    with pytest.raises(UnreachableError, match="does not answer"):
        Prometheus(server.url, 0.3).value("x", 0)


def test_an_answer_that_sends_elsewhere_is_none(server: Server) -> None:
    server.status, server.headers = 302, {"location": f"{server.url}/elsewhere"}
    with pytest.raises(UnreachableError, match="answers with 302"):
        Prometheus(server.url, 5).value("x", 0)
    assert len(server.asked) == 1
