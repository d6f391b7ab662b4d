"""What benchmarks count is what happened: a load generator that hides silence proves nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-kind: good\r\n\r\n{}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def modules() -> Any:
    """The benchmarks' modules; they import each other by their short names."""
    import load
    import memory
    import soak

    return load, memory, soak


@contextmanager
def server(answer: Callable[[socket.socket, int], bool]) -> Iterator[int]:
    """Calls ``answer`` with the connection and the number of the request, until it says no."""
    listening, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()
    numbers = iter(range(1_000_000))

    def serve(connection: socket.socket) -> None:
        with connection:
            while not ended.is_set():
                try:
                    if not connection.recv(1 << 16) or not answer(connection, next(numbers)):
                        return
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        ended.set()
        listening.close()


def run(port: int, **options: Any) -> Any:
    load, _, _ = modules()
    request = load.request_bytes(b"{}")
    return load.Load(
        ("127.0.0.1", port), [request], **{"clients": 2, "seconds": 0.4, **options}
    ).run()


def test_answers_are_counted_by_status_and_text() -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        if number % 2:
            connection.sendall(OK)
        else:  # in pieces
            for piece in (b"HTTP/1.1 503 No\r\ncontent-", b"length: 4\r\n\r\nab", b"cd"):
                connection.sendall(piece)
                time.sleep(0.002)
        return True

    with server(answer) as port:
        found = run(port, count=["x-kind: good"], timeline=True)
    assert set(found["statuses"]) == {"200", "503"}
    assert sum(found["statuses"].values()) == found["answered"] > 10
    assert found["counted"] == {"x-kind: good": found["statuses"]["200"]}
    assert (found["lost"], found["late"]) == (0, 0)
    seconds = [second["counts"] for second in found["timeline"]]
    assert sum(counts.get("200", 0) for counts in seconds) == found["statuses"]["200"]


def test_silence_is_not_taken_for_anything_else() -> None:
    ports = []

    def answer(connection: socket.socket, number: int) -> bool:
        if number == 5:
            ports.append(connection.getpeername()[1])
            connection.sendall(OK[:20])
            return False  # in the middle of an answer
        connection.sendall(OK)
        return True

    with server(answer) as port:
        found = run(port)
    assert found["lost"] == 1
    assert [port for _, port in found["losses"]] == ports
    assert set(found["statuses"]) == {"200"}


def test_an_idle_connection_that_is_closed_loses_nothing() -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        connection.sendall(OK)
        if number % 3 == 0:
            connection.shutdown(socket.SHUT_WR)
        return number % 3 != 0

    with server(answer) as port:
        found = run(port, rate=10.0, seconds=1.5)
    assert found["lost"] == 0
    assert found["connections_ended"] > 2
    assert set(found["statuses"]) == {"200"}


def test_what_does_not_come_is_late() -> None:
    with server(lambda connection, number: True) as port:
        found = run(port, clients=1, seconds=1.0, timeout_s=0.2)
    assert found["late"] >= 2
    assert found["answered"] == 0


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        time.sleep(0.05)  # twenty a second, of forty
        connection.sendall(OK)
        return True

    with server(answer) as port:
        found = run(port, clients=1, rate=40.0, seconds=1.0)
    assert found["latency_ms"]["longest"] > 300, "waiting for a free connection is waiting"


def test_growth_is_told_from_noise() -> None:
    _, memory, _ = modules()

    def samples(name: str, per_hour: float, until: float = 1800.0) -> list[Any]:
        found = []
        for at in range(0, int(until), 10):
            size = 100 * 2**20 * (1 + per_hour * at / 3600 + 0.002 * ((at // 10) % 3 - 1))
            found.append(memory.Sample(float(at), name, int(size), int(size)))
        return found

    series = [*samples("gateway 1", 0.0), *samples("gateway 2", 0.1), *samples("gateway 3", 0, 900)]
    found = memory.growth(series, warm_up_s=300)
    assert abs(found["gateway 1"]["pss_growth_30_min"]) < 0.001
    low, high = found["gateway 2"]["pss_growth_95"]
    assert 0.045 < low <= high < 0.055
    assert found["gateway 2"]["judged"]
    assert not found["gateway 3"]["judged"], "it did not live to the end"


def test_a_soak_excuses_only_what_a_kill_explains() -> None:
    _, _, soak = modules()

    def told(port: int, at: int) -> dict[str, bool]:
        load = {
            "statuses": {"200": 10, "503": 1}, "lost": 1, "late": 0, "losses": [[4.0, port]],
            "timeline": [{"second": at, "counts": {"200": 10, "503": 1}}],
        }  # fmt: skip
        story = soak.Story.__new__(soak.Story)
        story.killed_connections = {1234}
        story.events = [
            soak.Event(3.9, "a gateway is killed", {}),
            soak.Event(60.2, "a model replica is killed", {}),
            soak.Event(1.0, "rollout over", {"outcome": "promoted"}),
            soak.Event(2.0, "rollout over", {"outcome": "rolled_back"}),
        ]
        accounts, aims = soak.judge(load, story, {})
        assert accounts["asked"] == 12
        return {aim.name: aim.met for aim in aims}

    assert all(told(port=1234, at=61).values())
    assert not told(port=999, at=61)["silence that no killed gateway explains"]
    assert not told(port=1234, at=30)["answers other than 2xx that no killed replica explains"]
