"""A line of JSON for each request, written by a thread of its own.

A request only appends to a queue; the thread makes the lines, several times a second. When the
thread cannot follow, the oldest lines are lost, and the next line written says how many.

Example::

    log = AccessLog(Path("access.jsonl").open("ab"))
    log.start()
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import BinaryIO

import orjson

from serve.answer import Answer, Header
from serve.delta import ErrorClass
from serve.split import Assignment

__all__ = ["AccessLog"]

_logger = logging.getLogger(__name__)

_Entry = tuple[float, int, tuple[Header, ...], str, str, Assignment, float, ErrorClass | None]

_IDENTITY = {
    b"x-chancery-variant": "variant",
    b"x-chancery-model": "model",
    b"x-chancery-version": "version",
    b"x-chancery-signer": "signer",
}


class AccessLog:
    """Writes what requests leave behind.

    Args:
        out: Where lines go.
        kept: Lines that may wait.
        pause_s: Seconds between two looks.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        out: BinaryIO,
        kept: int = 100_000,
        pause_s: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._out = out
        self._waiting: deque[_Entry] = deque(maxlen=kept)
        self._pause_s = pause_s
        self._clock = clock
        self._added = self._written = self._missing = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def add(
        self,
        answer: Answer,
        headers: Mapping[str, str],
        assignment: Assignment,
        ms: float,
        error: ErrorClass | None,
    ) -> None:
        """Note a request that was answered."""
        self._added += 1
        request_id, trace = headers.get("x-request-id", ""), headers.get("traceparent", "")
        at, status, told = self._clock(), answer.status, answer.headers
        self._waiting.append((at, status, told, request_id, trace, assignment, ms, error))

    @property
    def alive(self) -> bool:
        """Whether the thread writes."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines = []
        while True:
            try:
                entry = self._waiting.popleft()
            except IndexError:
                break
            lines.append(_line(*entry))
        self._written += len(lines)
        lost = self._added - self._written - len(self._waiting) - self._missing
        if lost > 0 and lines:
            self._missing += lost
            lines.append(orjson.dumps({"lost": lost}, option=orjson.OPT_APPEND_NEWLINE))
        if lines:
            try:
                self._out.write(b"".join(lines))
                self._out.flush()
            except OSError as error:  # a full disk: requests are answered all the same
                _logger.warning("%d lines of the access log are lost: %r", len(lines), error)

    def _run(self) -> None:
        while not self._end.wait(self._pause_s):
            self.flush()


def _line(
    at: float,
    status: int,
    headers: tuple[Header, ...],
    request_id: str,
    traceparent: str,
    assignment: Assignment,
    ms: float,
    error: ErrorClass | None,
) -> bytes:
    line: dict[str, object] = {
        "time": _thousandths(at),
        "requestId": request_id,
        "traceId": traceparent[3:35],
        "status": status,
        "latencyMs": _thousandths(ms),
        "assigned": assignment.variant,
        "reason": assignment.reason.value,
    }
    if assignment.experiment:
        line["experiment"] = assignment.experiment
        line["arm"] = assignment.arm
        line["key"] = assignment.key
    if error is not None:
        line["error"] = error.value
    line.update(_told(headers))
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _thousandths(value: float) -> float:
    """Rounded to three digits; ``round`` takes ten times as long."""
    return int(value * 1e3 + 0.5) / 1e3


@lru_cache(256)  # they differ by variant and model only
def _told(headers: tuple[Header, ...]) -> Mapping[str, object]:
    """Who answered, out of an answer's headers."""
    told: dict[str, object] = {}
    for name, value in headers:
        if name in _IDENTITY:
            told[_IDENTITY[name]] = value.decode("ascii", "replace")
        elif name == b"x-chancery-retried":
            told["retried"] = True
    return told
