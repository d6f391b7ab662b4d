"""What clients want of each application, from what the gateways report.

A gateway tells with each report how many requests it was asked for so far, how many are on their
way, and how many wait for a first replica. Counts only grow, so a report that is lost or comes
twice changes nothing. A gateway that is silent for two seconds does not count.

Example::

    demand = Demands()
    demand.hear(report, now)
    demand.of("fraud-3", now)    # Demand(rps=120.0, in_flight=3.5)
"""

from __future__ import annotations

from collections import deque

from serve.autoscaling import Demand
from serve.plan import Load, Report

__all__ = ["Demands"]

_WINDOW_MS = 5_000
_NEWEST_MS = 2_000
_SHORTEST_MS = 800  # below which a rate is a guess
_SILENT_MS = 2_000
_SOURCES = 1_000


class Demands:
    """The last seconds of every gateway."""

    def __init__(self) -> None:
        self._heard: dict[str, deque[tuple[int, Report]]] = {}

    def hear(self, report: Report, now_ms: int) -> None:
        """A gateway reports."""
        told = self._heard.setdefault(report.source, deque())
        told.append((now_ms, report))
        while len(told) > 2 and now_ms - told[1][0] >= _WINDOW_MS:
            told.popleft()
        if len(self._heard) > _SOURCES:
            self._forget(now_ms)

    def _forget(self, now_ms: int) -> None:
        self._heard = {
            source: told
            for source, told in self._heard.items()
            if now_ms - told[-1][0] <= _SILENT_MS
        }

    def of(self, application: str, now_ms: int) -> Demand:
        """What is wanted of an application, by all gateways that are there."""
        self._forget(now_ms)
        total = Demand(known=bool(self._heard))
        for told in self._heard.values():
            total += _of_one(application, told)
        return total


def _of_one(application: str, told: deque[tuple[int, Report]]) -> Demand:
    seen = [(at, report.load[application]) for at, report in told if application in report.load]
    if not seen:
        return Demand()
    end, last = seen[-1]
    in_flight = sum(load.in_flight for _, load in seen) / len(seen)
    held = last.held if told[-1][0] == end else 0
    newest = next(((at, load) for at, load in seen if end - at <= _NEWEST_MS), seen[0])
    rps = max(_rate(seen[0], seen[-1]), _rate(newest, seen[-1]))  # what rises is seen at once
    return Demand(rps, in_flight, held)


def _rate(first: tuple[int, Load], last: tuple[int, Load]) -> float:
    asked, lasted = last[1].asked - first[1].asked, last[0] - first[0]
    return asked * 1000 / lasted if lasted >= _SHORTEST_MS and asked > 0 else 0.0
