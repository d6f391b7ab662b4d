"""Measures the wait for the covering checkpoint apart: the time inside ``Ledger.cover``.

In this process the method is wrapped and its intervals go into a list. A server is another
process: it is started with ``--app-name governance-timed``, which is the app ``governance`` with
the same wrapper, writing its intervals to a file. The entry point of that app exists only in a
temporary folder on the server's ``PYTHONPATH`` (``timed_app_environment``). The clock is the
system-wide monotonic one, so intervals of two processes can be laid over each other.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any

from comparison import Interval

__all__ = [
    "TIMED_APP",
    "covered_within",
    "create_app",
    "read_intervals",
    "record_covers",
    "timed_app_environment",
]

TIMED_APP = "governance-timed"
_SINK = "CHANCERY_BENCHMARK_COVERS"


def record_covers(tell: Callable[[Interval], Any]) -> None:
    """Wrap ``Ledger.cover`` in this process; ``tell`` gets the interval of each call."""
    from governance.ledger.log import Ledger

    original = Ledger.cover

    def cover(self: Ledger, event_id: str) -> None:
        cpu, began = thread_time_ns(), perf_counter_ns()
        try:
            original(self, event_id)
        finally:
            tell((began, perf_counter_ns(), thread_time_ns() - cpu))

    Ledger.cover = cover  # type: ignore[method-assign]


def timed_app_environment(folder: Path, sink: Path) -> dict[str, str]:
    """What a server needs in its environment to find the timed app and where to write."""
    information = folder / "governance_timed-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: governance-timed\nVersion: 0\n"
    )
    (information / "entry_points.txt").write_text(
        f"[mlflow.app]\n{TIMED_APP} = covering:create_app\n"
    )
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).resolve().parent)]),
        _SINK: str(sink),
    }


def create_app() -> Any:
    """The app ``governance`` with the wrapper."""
    from mlflow_plugins.server_app import create_app as create_governance_app

    sink = os.open(os.environ[_SINK], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    record_covers(lambda i: os.write(sink, f"{i[0]} {i[1]} {i[2]}\n".encode()))
    return create_governance_app()


def read_intervals(sink: Path) -> list[Interval]:
    """What a server has written so far."""
    if not sink.exists():
        return []
    lines = (line.split() for line in sink.read_text().splitlines())
    return [(int(began), int(ended), int(cpu)) for began, ended, cpu in lines]


def covered_within(
    samples: Sequence[Interval], covers: Sequence[Interval]
) -> list[tuple[int, int]]:
    """For each sample the nanoseconds that covering took inside it: passed, and of CPU."""
    ordered = sorted(covers)
    found = []
    for began, ended, _ in samples:
        passed, busy = 0, 0
        for cover in ordered[bisect_left(ordered, (began, 0, 0)) :]:
            if cover[0] > ended:
                break
            if cover[1] <= ended:
                passed += cover[1] - cover[0]
                busy += cover[2]
        found.append((passed, busy))
    return found
