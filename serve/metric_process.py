"""Calls an owner's metrics beside a gateway: a bounded backlog, a thread, a process of their own.

A request costs the gateway's loop an append. The thread hands batches to the process
(``serve.metric_worker``) and takes sums back. The process has its own interpreter, so that a metric
that computes, or hangs in C code, holds nothing of the gateway up, and it can be killed.

- The backlog is full: the request is left out and counted. Whether one is left out depends on what
  waits, never on the variant or the answer, so the sample stays fair.
- A call takes longer than ``hang_s``, or ends the process: that metric is switched off for the
  rollout, and the others go on in a fresh process.
- A module that this machine's setting does not allow is never imported.

Example::

    process = MetricProcess(observing.metrics, allowed=("fraud_metrics",))
    process.offer(("canary", "fraud", "4", 200, 3.5, "application/json", body, answer))
    process.take()    # {"canary": {"fraud-share": OwnerSums(…)}}
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from governance.settings import METRIC_MODULES, module_allowed
from serve.delta import OwnerSums
from serve.metric_worker import pack_batch, receive, send
from serve.observing import CallableMetric, MetricNews
from serve.scored import Shown

__all__ = ["MetricLimits", "MetricProcess"]

_log = logging.getLogger(__name__)

_RESTARTS = 3
_BATCH = 32
_BATCH_BYTES = 4 << 20
_HIDDEN = ("MLFLOW_", "CHANCERY_", "AWS_")


@dataclass(frozen=True, slots=True)
class MetricLimits:
    """What metrics may take.

    Attributes:
        backlog: Requests that wait.
        backlog_bytes: Of their bodies and answers; one more may begin below it.
        hang_s: One call.
        import_s: Starting the process and importing the modules.
    """

    backlog: int = 512
    backlog_bytes: int = 16 << 20
    hang_s: float = 10.0
    import_s: float = 60.0


@dataclass(slots=True)
class _Told:
    """Of one metric."""

    calls: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    first: str = ""
    off: str = ""


class MetricProcess:
    """See the module.

    Args:
        metrics: What is called.
        allowed: Modules that may be imported.
        limits: What metrics may take.
    """

    def __init__(
        self,
        metrics: Sequence[CallableMetric],
        allowed: tuple[str, ...],
        limits: MetricLimits | None = None,
    ) -> None:
        self._limits = limits or MetricLimits()
        self._told = {metric.name: _Told() for metric in metrics}
        self._metrics = [metric for metric in metrics if module_allowed(metric.module, allowed)]
        self._room = Condition()
        self._backlog: deque[Shown] = deque()
        self._waiting_bytes = 0
        self._batch: list[Shown] = []
        self._sums: dict[str, dict[str, OwnerSums]] = {}
        self._closed = self._all_off = self._ready = False
        self._restarts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._current: CallableMetric | None = None
        self.dropped: dict[str, int] = {}
        for metric in metrics:
            if metric not in self._metrics:
                self._switch_off(
                    metric,
                    f"the module {metric.module!r} is not allowed on this machine; its "
                    f"{METRIC_MODULES} says which are",
                )
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    # -- the gateway's loop

    def offer(self, shown: Shown) -> None:
        """Have the metrics asked about a request, if there is room."""
        limits = self._limits
        with self._room:
            if (
                self._all_off
                or len(self._backlog) >= limits.backlog
                or self._waiting_bytes >= limits.backlog_bytes
            ):
                self._drop([shown])
                return
            self._backlog.append(shown)
            self._waiting_bytes += _size(shown)
            self._room.notify()

    def take(self) -> dict[str, dict[str, OwnerSums]]:
        """Sums by variant and metric, since the last time."""
        with self._room:
            taken, self._sums = self._sums, {}
        return taken

    def news(self) -> dict[str, MetricNews]:
        """How each metric does."""
        with self._room:
            return {
                name: MetricNews(dict(told.calls), dict(told.errors), told.first, told.off)
                for name, told in self._told.items()
            }

    def close(self) -> None:
        """Ask no more. Does not wait."""
        with self._room:
            self._closed = True
            self._backlog.clear()
            self._room.notify()
            if self._child is not None:
                self._child.kill()

    def _drop(self, requests: Iterable[Shown]) -> None:
        for shown in requests:
            self.dropped[shown[0]] = self.dropped.get(shown[0], 0) + 1

    def _switch_off(self, metric: CallableMetric, why: str) -> None:
        self._told[metric.name].off = why
        self._all_off = all(told.off for told in self._told.values())
        _log.warning("the metric %r is switched off: %s", metric.name, why)

    # -- the thread

    def _run(self) -> None:
        while not self._all_off and not self._closed:
            self._batch, self._current, self._ready = [], None, False
            try:
                with self._started() as channel:
                    while not self._all_off and (batch := self._next()):
                        send(channel, b"b", pack_batch(batch))
                        self._hear(channel)
            except TimeoutError:
                limits = self._limits
                self._blame(
                    f"a call took longer than {limits.hang_s:g} s"
                    if self._ready
                    else f"its import took longer than {limits.import_s:g} s"
                )
            except (OSError, EOFError, ValueError) as error:
                self._blame(f"the process that calls it ended ({type(error).__name__})")
            finally:
                self._end()

    def _started(self) -> socket.socket:
        """A channel to a fresh process that has imported the metrics."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "serve.metric_worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno() if _has_number(sys.stderr) else None,
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                )
            with self._room:
                self._child = child
                if self._closed:
                    raise EOFError
            ours.settimeout(self._limits.import_s)
            documents = [metric.to_dict() for metric in self._metrics]
            send(ours, b"m", json.dumps(documents).encode())
            self._hear(ours)
            ours.settimeout(self._limits.hang_s)
            self._ready = True
        except BaseException:
            ours.close()
            raise
        return ours

    def _next(self) -> list[Shown]:
        """What waits; nothing: it is over."""
        batch: list[Shown] = []
        size = 0
        with self._room:
            while not self._backlog and not self._closed:
                self._room.wait()
            while self._backlog and len(batch) < _BATCH and size < _BATCH_BYTES:
                shown = self._backlog.popleft()
                size += _size(shown)
                batch.append(shown)
            self._waiting_bytes -= size
            self._batch = batch
        return [] if self._closed else batch

    def _hear(self, channel: socket.socket) -> None:
        """Until the answer; a message names the metric whose turn it is."""
        while True:
            kind, payload = receive(channel)
            if kind == b"r":
                break
            self._current = self._metrics[int(payload)]
        self._current = None
        self._count(json.loads(payload))

    def _count(self, answer: Mapping[str, Any]) -> None:
        with self._room:
            for found in answer["sums"]:
                name, variant = self._metrics[found["metric"]].name, found["variant"]
                told = self._told[name]
                told.calls[variant] = told.calls.get(variant, 0) + found["calls"]
                told.errors[variant] = told.errors.get(variant, 0) + found["errors"]
                buckets = {int(k): n for k, n in found["buckets"].items()}
                sums = OwnerSums(found["n"], found["total"], found["squares"], buckets)
                if sums.n:
                    of_variant = self._sums.setdefault(variant, {})
                    of_variant[name] = of_variant.get(name, OwnerSums()) + sums
            for metric, state in zip(self._metrics, answer["metrics"], strict=True):
                told = self._told[metric.name]
                told.first = told.first or state["first"]
                if state["trouble"] and not told.off:
                    self._switch_off(metric, state["trouble"])

    def _blame(self, why: str) -> None:
        """Switch off the metric whose turn it was; all, where there was none, again and again."""
        with self._room:
            if self._closed:
                return
            self._drop(self._batch)
            if self._current is None and self._restarts < _RESTARTS:
                self._restarts += 1  # it was killed between two batches: by somebody else
                return
            guilty = list(self._metrics) if self._current is None else [self._current]
            self._metrics = [metric for metric in self._metrics if metric not in guilty]
            for metric in guilty:
                self._switch_off(metric, why)
            if self._all_off:
                self._drop(self._backlog)
                self._backlog.clear()
                self._waiting_bytes = 0

    def _end(self) -> None:
        with self._room:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


def _size(shown: Shown) -> int:
    return len(shown[-2]) + len(shown[-1])


def _has_number(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _environment() -> dict[str, str]:
    """Ours, with the modules that we can import, and without what is the gateway's own business."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_HIDDEN)}
    return {**kept, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
