"""Eight clients at once: acts a second with audit and without.

Each client is a process with a store of each kind (or a REST client of each server); all do the
same in short segments, plain and governed alternately, for the same seconds. A *training* is a
whole script: run, metrics, batch, end, logged model, registration, alias; its last two acts wait
for the checkpoint. *Logging* is a training without the registry's part.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from comparison import percentile

__all__ = ["CLIENTS", "TargetSpec", "measure_throughput"]

CLIENTS = 8
_METRICS = 10
_START_DELAY_S = 0.6  # the background sequencer has emptied the outbox by then


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What a client process needs to open a ``Target``."""

    uri: str
    folder: Path
    governed: bool


def measure_throughput(
    specs: Mapping[str, TargetSpec], *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Acts a second of each variant in ``specs`` (``plain`` and ``governed``), per workload."""
    found: dict[str, Any] = {"clients": CLIENTS, "segment_seconds": seconds, "rounds": rounds}
    with _clients(specs) as clients:
        for workload in ("logging", "training"):
            rates: dict[str, list[float]] = {name: [] for name in specs}
            _segment(clients, next(iter(specs)), workload, seconds / 2)
            for turn in range(rounds):
                for name in specs if turn % 2 else reversed(list(specs)):
                    rates[name].append(_segment(clients, name, workload, seconds))
            plain, governed = rates["plain"], rates["governed"]
            paired = [b / a for a, b in zip(plain, governed, strict=True)]
            found[workload] = {
                "plain_per_second": round(median(plain), 1),
                "governed_per_second": round(median(governed), 1),
                "ratio": round(median(governed) / median(plain), 4),
                "ratio_of_pairs": [round(percentile(paired, p), 4) for p in (10, 50, 90)],
            }
    return found


def _segment(clients: list[Connection], name: str, workload: str, seconds: float) -> float:
    start = time.monotonic() + _START_DELAY_S
    for client in clients:
        client.send((name, workload, start, seconds))
    return sum(_answer(client) for client in clients)


def _answer(client: Connection) -> float:
    if not client.poll(180):
        raise SystemExit("a client process does not answer")
    return float(client.recv())


@contextmanager
def _clients(specs: Mapping[str, TargetSpec]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(CLIENTS)]
    processes = [
        context.Process(target=_client, args=(theirs, dict(specs)), daemon=True)
        for _, theirs in pairs
    ]
    try:
        for process in processes:
            process.start()
        ours = [connection for connection, _ in pairs]
        for connection in ours:
            _answer(connection)
        yield ours
    finally:
        for connection, _ in pairs:
            connection.close()
        for process in processes:
            process.terminate()
            process.join(20)


def _client(connection: Connection, specs: dict[str, TargetSpec]) -> None:
    from operations import Target

    targets = {name: Target(s.uri, s.folder, s.governed) for name, s in specs.items()}
    connection.send(0.0)
    while True:
        try:
            name, workload, start, seconds = connection.recv()
        except EOFError:
            return
        target = targets[name]
        target.enter()
        time.sleep(max(0.0, start - time.monotonic()))
        began = time.monotonic()
        acts = 0
        for done in _script(target, whole=workload == "training"):
            acts += done
            if time.monotonic() > start + seconds:
                break
        connection.send(acts / (time.monotonic() - began))


def _script(target: Any, *, whole: bool) -> Iterator[int]:
    """The training script over and over; yields after each act (one)."""
    from operations import metric

    turn = 0
    while True:
        run = target.create_run()
        yield 1
        for step in range(_METRICS):
            target.tracking.log_metric(run, metric("loss", step))
            yield 1
        batch = [metric(f"metric-{i}", 0) for i in range(100)]
        target.tracking.log_batch(run, metrics=batch, params=[], tags=[])
        yield 1
        if whole:
            model = target.create_logged_model(run)
            yield 2  # created, then marked ready
            name = target.next_model(turn)
            version = target.create_model_version(name, model, run)
            yield 1
            target.registry.set_registered_model_alias(name, "candidate", str(version.version))
            yield 1
        target.finish(run)
        yield 1
        turn += 1
