"""A load generator that costs little: one process, one loop, HTTP/1.1 on kept-alive connections.

It shares the machine with the server it measures, so it must not be what is measured: it speaks
over raw non-blocking sockets and ``epoll``, parses no more of an answer than its end, and takes
some 10 µs of CPU a request. It imports the standard library alone, and says how much CPU it took.

*Closed loop* (``rate`` 0): each of ``clients`` connections asks again as soon as it is answered.
*Open loop*: ``rate`` requests a second are due at even distances, whatever the server does; each
goes out on an idle connection, and its latency counts from when it was due, not from when a
connection was free for it.

What may become of a request, each counted:

- *answered*: a whole answer came; by status.
- *lost*: the connection ended after the request was sent and before the answer was whole. That is
  silence: the client knows nothing. Each is noted with its time and the client's port.
- *late*: the answer did not come within ``timeout_s``; the connection is given up.

A connection that the server closes while it is idle is opened anew and counts as nothing; one that
cannot be opened is tried again after 50 ms and counted as refused.

Example::

    load = Load(("127.0.0.1", 8080), [request_bytes(body)], clients=64, seconds=10)
    print(load.run()["requests_per_s"])

    echo '{"port": 8080, "bodies": ["…"], "clients": 64, "seconds": 10}' | python benchmarks/load.py
"""

from __future__ import annotations

import errno
import json
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

__all__ = ["Load", "Running", "percentiles", "request_bytes"]

_READ = 1 << 16
_REOPEN_S = 0.05
_SWEEP_S = 0.25
_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_BUSY = frozenset({errno.EINPROGRESS, errno.EAGAIN})


def request_bytes(
    body: bytes, path: str = "/invocations", headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole POST request."""
    told = {
        "host": "127.0.0.1",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds."""
    known = sorted(latencies_ms)
    if not known:
        return {}
    at = {name: known[min(int(len(known) * part), len(known) - 1)] for name, part in _PARTS}
    return {name: round(value, 3) for name, value in {**at, "longest": known[-1]}.items()}


_PARTS = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


class _Connection:
    """One client's connection, and the request on its way in it."""

    __slots__ = ("due", "got", "open", "parts", "port", "sent", "socket", "wanted")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.open = False  # whether the handshake is done
        self.port = 0
        self.sent = 0.0  # when the request left; 0.0: idle
        self.due = 0.0  # when it should have
        self.parts: list[bytes] = []  # of an answer that came in pieces
        self.got = 0
        self.wanted = 0


class Load:
    """Asks until the time is over.

    Args:
        address: Of the server.
        requests: Bytes of requests, from `request_bytes`; they are asked in turn.
        clients: Connections; in an open loop at most so many requests are on their way.
        seconds: How long; what happened in the first ``warm_s`` of it is not counted.
        warm_s: Seconds before anything counts.
        rate: Requests a second, for an open loop; 0: a closed loop.
        timeout_s: Seconds until an answer is given up.
        count: Texts whose presence in an answer's head is counted.
        timeline: Whether to tell of each second apart, and when each answer with such a text came.
    """

    def __init__(
        self,
        address: tuple[str, int],
        requests: Sequence[bytes],
        *,
        clients: int,
        seconds: float,
        warm_s: float = 0.0,
        rate: float = 0.0,
        timeout_s: float = 30.0,
        count: Sequence[str] = (),
        timeline: bool = False,
    ) -> None:
        self._address = address
        self._requests = cycle(requests)
        self._seconds = seconds
        self._warm_s = warm_s
        self._rate = rate
        self._timeout_s = timeout_s
        self._count = [(text, text.encode()) for text in count]
        self._poll = select.epoll()
        self._all = [_Connection() for _ in range(clients)]
        self._by_file: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        self._reopen: deque[tuple[float, _Connection]] = deque()
        self._ended = False
        self._latencies = array("d")
        self._statuses: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()
        self._lost: list[tuple[float, int]] = []
        self._errors: list[tuple[float, str]] = []
        self._late = self._refused = self._reset = 0
        self._seconds_seen: dict[int, tuple[Counter[str], array[float]]] = {}
        self._timeline = timeline

    def stop(self) -> None:
        """End soon: what is on its way is waited for."""
        self._ended = True

    def run(self) -> dict[str, Any]:
        """Ask; what happened."""
        begun = time.time()
        self._zero = now = time.perf_counter()
        self._counting = not self._warm_s
        cpu = time.process_time()
        counted_from, ends, sweep = now, now + self._seconds, now
        due, step = now, 1 / self._rate if self._rate else 0.0
        for connection in self._all:
            self._connect(connection)
        while not self._ended and now < ends:
            wait = 0.1
            if step:
                now = time.perf_counter()
                while due <= now and self._idle:
                    if self._send(self._idle.popleft(), due):
                        due += step
                wait = max(0.0, min(due - now, 0.1)) if self._idle else 0.1
            for file, event in self._poll.poll(wait):
                connection = self._by_file.get(file)
                if connection is not None:
                    self._ready(connection, event)
            now = time.perf_counter()
            if not self._counting and now - self._zero >= self._warm_s:
                self._forget()
                cpu, counted_from = time.process_time(), now
            if now >= sweep:
                self._sweep(now)
                sweep = now + _SWEEP_S
        elapsed = now - counted_from
        cpu = time.process_time() - cpu
        self._ended = True
        self._drain()
        return self._result(begun, elapsed, cpu)

    def _forget(self) -> None:
        """The warm-up is over."""
        self._counting = True
        self._latencies = array("d")
        for counts in (self._statuses, self._counted):
            counts.clear()
        self._lost.clear()
        self._late = self._refused = self._reset = 0

    # -- connections

    def _connect(self, connection: _Connection) -> None:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        found.setsockopt(*_NO_DELAY)
        connection.socket, connection.open, connection.sent = found, False, 0.0
        connection.parts, connection.got, connection.wanted = [], 0, 0
        self._by_file[found.fileno()] = connection
        if found.connect_ex(self._address) not in (0, *_BUSY):
            self._hang_up(connection, refused=True)
            return
        self._poll.register(found.fileno(), select.EPOLLOUT)

    def _hang_up(self, connection: _Connection, *, refused: bool = False) -> None:
        """The connection is over; a new one follows."""
        found = connection.socket
        assert found is not None
        if connection.sent:
            self._lost.append((time.perf_counter() - self._zero, connection.port))
            self._note("lost", 0.0)
            connection.sent = 0.0
        self._refused += refused
        self._reset += not refused
        if connection in self._idle:
            self._idle.remove(connection)
        del self._by_file[found.fileno()]
        found.close()
        connection.socket = None
        pause = _REOPEN_S if refused else 0.0
        self._reopen.append((time.perf_counter() + pause, connection))

    def _sweep(self, now: float) -> None:
        """Open connections anew, and give up answers that do not come."""
        while self._reopen and self._reopen[0][0] <= now:
            self._connect(self._reopen.popleft()[1])
        for connection in self._all:
            if connection.sent and now - connection.sent > self._timeout_s:
                self._late += 1
                self._note("late", 0.0)
                connection.sent = 0.0
                self._hang_up(connection)

    def _drain(self) -> None:
        """Wait for what is on its way; it counts as far as it is answered."""
        ends = time.perf_counter() + self._timeout_s
        while any(one.sent for one in self._all) and time.perf_counter() < ends:
            for file, event in self._poll.poll(0.1):
                connection = self._by_file.get(file)
                if connection is not None:
                    self._ready(connection, event)
        for connection in self._all:
            if connection.sent:
                self._late += 1
            if connection.socket is not None:
                connection.socket.close()
        self._poll.close()

    # -- requests

    def _send(self, connection: _Connection, due: float) -> bool:
        """Whether the request left; not on a connection that was closed while it was idle."""
        assert connection.socket is not None
        request = next(self._requests)
        connection.sent, connection.due = time.perf_counter(), due
        try:
            sent = connection.socket.send(request)
        except OSError:
            connection.sent = 0.0
            self._hang_up(connection)
            return False
        if sent != len(request):
            raise RuntimeError("the request does not fit into the socket's buffer")
        return True

    def _ready(self, connection: _Connection, event: int) -> None:
        found = connection.socket
        assert found is not None
        if not connection.open:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._hang_up(connection, refused=True)
                return
            connection.open, connection.port = True, found.getsockname()[1]
            self._poll.modify(found.fileno(), select.EPOLLIN)
            self._next(connection)
            return
        try:
            data = found.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(connection)
            return
        if connection.got:
            connection.parts.append(data)
            connection.got += len(data)
            if connection.got < connection.wanted:
                return
            data = b"".join(connection.parts)
        end = data.find(b"\r\n\r\n")
        wanted = end + 4 + _length(data, end) if end > 0 else len(data) + 1
        if len(data) < wanted:
            connection.parts, connection.got, connection.wanted = [data], len(data), wanted
            return
        connection.parts, connection.got = [], 0
        self._answered(connection, data, end)

    def _answered(self, connection: _Connection, data: bytes, end: int) -> None:
        now = time.perf_counter()
        ms = (now - connection.due) * 1e3
        connection.sent = 0.0
        status = data[9:12].decode()
        self._latencies.append(ms)
        self._statuses[status] += 1
        if self._timeline:
            self._note(status, ms)
        for text, found in self._count:
            if data.find(found, 0, end) >= 0:
                self._counted[text] += 1
                if self._timeline:
                    self._note(text, 0.0)
        if data.find(b"onnection: close", 0, end) >= 0:
            self._hang_up(connection)
        else:
            self._next(connection)

    def _next(self, connection: _Connection) -> None:
        if self._ended:
            return
        if self._rate:
            self._idle.append(connection)
        else:
            self._send(connection, time.perf_counter())

    # -- what happened

    def _note(self, what: str, ms: float) -> None:
        if not self._timeline:
            return
        second = int(time.perf_counter() - self._zero)
        seen = self._seconds_seen.get(second)
        if seen is None:
            seen = self._seconds_seen[second] = (Counter(), array("d"))
        seen[0][what] += 1
        if ms:
            seen[1].append(ms)

    def _result(self, begun: float, elapsed: float, cpu: float) -> dict[str, Any]:
        answered = len(self._latencies)
        result: dict[str, Any] = {
            "begun": begun,
            "seconds": round(elapsed, 3),
            "answered": answered,
            "requests_per_s": round(answered / elapsed, 1),
            "statuses": dict(self._statuses),
            "lost": len(self._lost),
            "late": self._late,
            "refused": self._refused,
            "connections_ended": self._reset,
            "latency_ms": percentiles(self._latencies),
            "cpu_us_per_request_of_generator": round(1e6 * cpu / max(answered, 1), 2),
        }
        if self._lost:
            result["losses"] = [[round(at, 3), port] for at, port in self._lost]
        if self._count:
            result["counted"] = {text: self._counted[text] for text, _ in self._count}
        if self._timeline:
            result["timeline"] = [
                {"second": second, "counts": dict(counts), "latency_ms": percentiles(latencies)}
                for second, (counts, latencies) in sorted(self._seconds_seen.items())
            ]
        return result


def _length(data: bytes, end: int) -> int:
    """The content length that an answer's head tells."""
    at = data.find(b"ontent-length: ", 0, end)
    if at < 0:
        at = data.lower().find(b"ontent-length: ", 0, end)
    if at < 0:
        raise RuntimeError(f"an answer without content-length: {data[:end]!r}")
    at += 15
    stop = data.find(b"\r\n", at)
    return int(data[at:stop])


class Running:
    """A generator in a process of its own.

    Args:
        spec: ``port``, ``bodies``, ``path``, ``users`` (how many, named by the header ``x-user``),
            and what else `Load` takes.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        command = [sys.executable, "-S", str(Path(__file__).resolve())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(spec))
        self._process.stdin.close()

    def stop(self) -> None:
        """Let it end soon."""
        self._process.send_signal(signal.SIGTERM)

    def result(self) -> dict[str, Any]:
        """Wait for its end; what happened."""
        assert self._process.stdout is not None
        told = self._process.stdout.read()
        if self._process.wait() or not told:
            raise RuntimeError(f"the load generator failed: {told}")
        found: dict[str, Any] = json.loads(told)
        return found


def main() -> None:
    spec = json.load(sys.stdin)
    bodies, path = [body.encode() for body in spec.pop("bodies")], spec.pop("path", "/invocations")
    users = [{"x-user": f"user-{at}"} for at in range(spec.pop("users", 0))] or [{}]
    requests = [request_bytes(body, path, user) for body in bodies for user in users]
    load = Load(("127.0.0.1", spec.pop("port")), requests, **spec)
    signal.signal(signal.SIGTERM, lambda *_: load.stop())
    json.dump(load.run(), sys.stdout)


if __name__ == "__main__":
    main()
