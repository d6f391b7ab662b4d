"""The process in which owner's metrics are called; ``serve.metric_process`` starts and watches it.

It talks over one socket, whose number is its argument: batches come in, sums go out. Before it
imports or calls a metric it names it, so that whoever waits knows which one hangs or kills the
process. It ends with the gateway, has a lower priority, and writes nothing but standard error.

Messages (a letter, then what belongs to it):

======  ======================  ==================================================================
to it   ``m`` + JSON            the metrics
to it   ``b`` + ``pack_batch``  a batch: the fields of each ``ScoredRequest``
from it ``c`` + a number        the metric of that number is imported or called now
from it ``r`` + JSON            sums by metric and variant; what is wrong with each metric
======  ======================  ==================================================================
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from serve.config import MetricKind
from serve.delta import bucket_of
from serve.observing import CallableMetric
from serve.scored import ImproperValueError, ScoredRequest, Shown, observation

__all__ = ["main", "pack_batch", "receive", "send", "unpack_batch"]

_NICE = 10
_NAMED_EVERY_S = 0.2
_LENGTH = struct.Struct("!cI")


def send(channel: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    """One message."""
    channel.sendall(_LENGTH.pack(kind, len(payload)) + payload)


def receive(channel: socket.socket) -> tuple[bytes, bytes]:
    """One message.

    Raises:
        EOFError: the other side is gone.
    """
    kind, length = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    return kind, _exactly(channel, length)


def _exactly(channel: socket.socket, length: int) -> bytes:
    parts, left = [], length
    while left:
        part = channel.recv(min(left, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def pack_batch(requests: Sequence[Shown]) -> bytes:
    """The fields of each as JSON, then all bodies and answers."""
    heads = [[*fields, len(body), len(answer)] for *fields, body, answer in requests]
    written = json.dumps(heads).encode()
    parts = [_LENGTH.pack(b"h", len(written)), written]
    for *_, body, answer in requests:
        parts += (body, answer)
    return b"".join(parts)


def unpack_batch(payload: bytes) -> list[ScoredRequest]:
    """Inverse of ``pack_batch``."""
    _, length = _LENGTH.unpack_from(payload)
    at = _LENGTH.size + length
    found = []
    heads = json.loads(payload[_LENGTH.size : at])
    for variant, model, version, status, ms, kind, body, answer in heads:
        middle, end = at + body, at + body + answer
        parts = payload[at:middle], payload[middle:end]
        found.append(ScoredRequest(variant, model, version, status, ms, kind, *parts))
        at = end
    return found


class _Calls:
    """Sums of one metric's calls for one variant."""

    def __init__(self) -> None:
        self.calls = self.errors = self.n = 0
        self.total = self.squares = 0.0
        self.buckets: dict[int, int] = {}

    def add(self, kind: MetricKind, value: float) -> None:
        self.n += 1
        if kind is MetricKind.QUANTILE:
            bucket = bucket_of(value)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
            return
        self.total += value
        self.squares += value * value


class _Metric:
    """A metric and its function, once it is imported."""

    def __init__(self, number: int, metric: CallableMetric) -> None:
        self.number = number
        self.metric = metric
        self.function: Callable[[ScoredRequest], Any] | None = None
        self.trouble = ""
        self.first = ""

    def load(self) -> None:
        module, _, name = self.metric.source.partition(":")
        try:
            self.function = getattr(importlib.import_module(module), name)
        except Exception as error:  # noqa: BLE001 - somebody else's code
            self.trouble = f"{self.metric.source} cannot be imported: {_place(error)}"
            return
        if not callable(self.function):
            self.trouble = f"{self.metric.source} is no function"

    def call(self, request: ScoredRequest, sums: _Calls) -> None:
        assert self.function is not None
        sums.calls += 1
        try:
            value = observation(self.metric, self.function(request), random.randrange)
        except Exception as error:  # noqa: BLE001 - somebody else's code
            sums.errors += 1
            if not self.first:
                self.first = _place(error)
                traceback.print_exc()
            return
        if value is not None:
            sums.add(self.metric.kind, value)


def _place(error: Exception) -> str:
    """Type and place; a text may hold what a client sent, so only ours and imports' are told."""
    last = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    where = "" if last is None else f" at {os.path.basename(last.filename)}:{last.lineno}"
    told = isinstance(error, ImproperValueError | ImportError)
    return f"{type(error).__name__}{f' ({error})' if told else ''}{where}"[:300]


class _Worker:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._metrics: list[_Metric] = []
        self._named = (-1, 0.0)

    def run(self) -> None:
        while True:
            kind, payload = receive(self._channel)
            if kind == b"m":
                self._load(json.loads(payload))
            else:
                self._batch(unpack_batch(payload))

    def _name(self, metric: _Metric) -> None:
        now = time.monotonic()
        number, at = self._named
        if number != metric.number or now - at > _NAMED_EVERY_S:
            self._named = metric.number, now
            send(self._channel, b"c", str(metric.number).encode())

    def _load(self, documents: list[dict[str, Any]]) -> None:
        for number, document in enumerate(documents):
            metric = _Metric(number, CallableMetric.from_dict(document))
            self._name(metric)
            metric.load()
            self._metrics.append(metric)
        self._answer({})

    def _batch(self, requests: list[ScoredRequest]) -> None:
        found: dict[tuple[int, str], _Calls] = {}
        for metric in self._metrics:
            if metric.trouble:
                continue
            for request in requests:
                self._name(metric)
                key = metric.number, request.variant
                metric.call(request, found.setdefault(key, _Calls()))
        self._answer(found)

    def _answer(self, found: dict[tuple[int, str], _Calls]) -> None:
        sums = [
            {
                "metric": number,
                "variant": variant,
                "calls": calls.calls,
                "errors": calls.errors,
                "n": calls.n,
                "total": calls.total,
                "squares": calls.squares,
                "buckets": {str(k): n for k, n in calls.buckets.items()},
            }
            for (number, variant), calls in found.items()
        ]
        metrics = [{"trouble": m.trouble, "first": m.first} for m in self._metrics]
        self._named = (-1, 0.0)
        send(self._channel, b"r", json.dumps({"sums": sums, "metrics": metrics}).encode())


def _end_with_parent() -> None:
    """Also when a metric hangs: nobody else would end it then."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux: it ends when its socket does
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """``python -m serve.metric_worker NUMBER``."""
    _end_with_parent()
    os.nice(_NICE)
    gone = suppress(EOFError, ConnectionError)  # the gateway
    with socket.socket(fileno=int(sys.argv[1])) as channel, gone:
        _Worker(channel).run()


if __name__ == "__main__":
    main()
