"""How a rollout went over time: what the picture, the terminal and MLflow show of it.

A series has a point for each second of a short rollout; a longer one has coarser points, never more
than ``MOST``: when there are too many, neighbours become one and the interval doubles. Counts add
up exactly; quantiles of merged points are averages, weighted by requests, and are only looked at,
never judged (``serve.judge`` has evidence of its own). It lies in the deployment's course, so that
it survives the controller and needs no other store.

Example::

    series = followed(None, state, observation.deltas, now_ms)
    series.points[-1].canary.charged
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from serve.delta import SUBDIVISIONS, Delta, lower_edge
from serve.rollout import RolloutState

__all__ = ["MOST", "Point", "Series", "Side", "followed", "quantile"]

MOST = 240
"""Points, at most."""

_FIRST_MS = 1000
_NOTHING = Delta()


def quantile(latency: Mapping[int, int], part: float) -> float | None:
    """A quantile of counted latencies in milliseconds, to 1.1 %; None where there are none."""
    total = sum(latency.values())
    if not total:
        return None
    wanted, past = part * total, 0
    for bucket in sorted(latency):
        past += latency[bucket]
        if past >= wanted:
            return lower_edge(bucket) * 2 ** (0.5 / SUBDIVISIONS)  # its middle
    return lower_edge(max(latency))


@dataclass(frozen=True, slots=True)
class Side:
    """One variant in one interval.

    Attributes:
        requests: That ended.
        judged: Of these, those that say something about the variant.
        charged: Of these, errors that are its fault.
        p50: Median latency in milliseconds; None where no request was answered.
        p95: The 95 % quantile.
        p99: The 99 % quantile.
    """

    requests: int = 0
    judged: int = 0
    charged: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, delta: Delta) -> Side:
        """What a delta says, with the precision that is kept."""
        found = (quantile(delta.latency, part) for part in (0.5, 0.95, 0.99))
        p50, p95, p99 = (None if ms is None else round(ms, 3) for ms in found)
        return cls(delta.requests, delta.judged, delta.charged, p50, p95, p99)

    def merged(self, other: Side) -> Side:
        """Both intervals as one."""

        def mean(one: float | None, two: float | None) -> float | None:
            if one is None or two is None:
                return one if two is None else two
            total = self.requests + other.requests
            return round((one * self.requests + two * other.requests) / max(total, 1), 3)

        return Side(
            self.requests + other.requests,
            self.judged + other.judged,
            self.charged + other.charged,
            mean(self.p50, other.p50),
            mean(self.p95, other.p95),
            mean(self.p99, other.p99),
        )

    def to_list(self) -> list[int]:
        """Whole numbers only: latencies in microseconds, -1 for None."""
        times = [-1 if ms is None else round(1000 * ms) for ms in (self.p50, self.p95, self.p99)]
        return [self.requests, self.judged, self.charged, *times]

    @classmethod
    def from_list(cls, parts: Sequence[int]) -> Side:
        """Inverse of ``to_list``."""
        p50, p95, p99 = (None if us < 0 else us / 1000 for us in parts[3:6])
        return cls(int(parts[0]), int(parts[1]), int(parts[2]), p50, p95, p99)


@dataclass(frozen=True, slots=True)
class Point:
    """One interval of a rollout.

    Attributes:
        at_ms: Its end.
        phase: Where the rollout stood in it.
        step: Which step, 0-based.
        percent: The canary's share of the traffic in it.
        canary: What the canary did.
        stable: What stable did.
        log_e: The evidence against the canary at its end, all tests together.
        tests: Of each test, in the order of ``Series.tests``.
    """

    at_ms: int
    phase: str
    step: int
    percent: float
    canary: Side = Side()
    stable: Side = Side()
    log_e: float = 0.0
    tests: tuple[float, ...] = ()

    def merged(self, later: Point) -> Point:
        """This interval and the next as one."""
        return replace(
            later, canary=self.canary.merged(later.canary), stable=self.stable.merged(later.stable)
        )

    def to_list(self) -> list[Any]:
        """For JSON without floats: evidence in thousandths."""
        return [
            self.at_ms,
            self.phase,
            self.step,
            f"{self.percent:.10g}",
            self.canary.to_list(),
            self.stable.to_list(),
            round(1000 * self.log_e),
            [round(1000 * value) for value in self.tests],
        ]

    @classmethod
    def from_list(cls, parts: Sequence[Any]) -> Point:
        """Inverse of ``to_list``."""
        return cls(
            int(parts[0]),
            parts[1],
            int(parts[2]),
            float(parts[3]),
            Side.from_list(parts[4]),
            Side.from_list(parts[5]),
            parts[6] / 1000,
            tuple(value / 1000 for value in parts[7]),
        )


@dataclass(frozen=True, slots=True)
class Series:
    """All of a rollout.

    Attributes:
        rollout_id: Of which.
        began_ms: When it was first heard of.
        tests: Names of its tests.
        thresholds: Where each test alone would roll back, as ``Point.tests``.
        threshold: Where all together do.
        every_ms: Length of an interval.
        points: Closed intervals, oldest first.
        phase: In which the open interval lies.
        step: In which it lies.
        percent: The canary's share in it.
        since_ms: When it began.
        canary: What the canary did in it.
        stable: What stable did in it.
        step_canary: What the canary did in the whole step (of a rollout that ended: in its last).
        step_stable: What stable did in it.
        versions: Of stable and canary, when the rollout began; empty: not known.
    """

    rollout_id: str
    began_ms: int
    tests: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    threshold: float = 0.0
    every_ms: int = _FIRST_MS
    points: tuple[Point, ...] = ()
    phase: str = ""
    step: int = 0
    percent: float = 0.0
    since_ms: int = 0
    canary: Delta = _NOTHING
    stable: Delta = _NOTHING
    step_canary: Delta = _NOTHING
    step_stable: Delta = _NOTHING
    versions: tuple[int, ...] = ()

    @classmethod
    def begun(cls, state: RolloutState, now_ms: int, versions: tuple[int, ...] = ()) -> Series:
        """Nothing seen yet."""
        found = sorted((v.test, round(v.threshold, 3)) for v in state.judge.verdicts())
        return cls(
            rollout_id=state.id,
            began_ms=now_ms,
            tests=tuple(name for name, _ in found),
            thresholds=tuple(value for _, value in found),
            threshold=round(state.judge.threshold, 3),
            phase=state.phase.value,
            step=state.step,
            percent=state.percent,
            since_ms=now_ms,
            versions=versions,
        )

    def after(self, state: RolloutState, deltas: Mapping[str, Delta], now_ms: int) -> Series:
        """With what was seen until now, and where that led."""
        canary, stable = (_plain(deltas.get(name)) for name in ("canary", "stable"))
        series = replace(self, canary=self.canary + canary, stable=self.stable + stable)
        series = replace(
            series,
            step_canary=series.step_canary + canary,
            step_stable=series.step_stable + stable,
        )
        moved = (state.phase.value, state.step) != (self.phase, self.step)
        if not moved and now_ms - self.since_ms < self.every_ms:
            return series
        series = series._closed(state, now_ms)
        if not moved:
            return series
        series = replace(series, phase=state.phase.value, step=state.step, percent=state.percent)
        if state.phase.terminal:
            return series._closed(state, now_ms)
        return replace(series, step_canary=_NOTHING, step_stable=_NOTHING)

    def _closed(self, state: RolloutState, now_ms: int) -> Series:
        """The open interval is a point, unless it is none."""
        empty = not self.canary.requests and not self.stable.requests and bool(self.points)
        if now_ms == self.since_ms and empty and not state.phase.terminal:
            return self
        evidence = {verdict.test: verdict.log_e for verdict in state.judge.verdicts()}
        point = Point(
            now_ms,
            self.phase,
            self.step,
            self.percent,
            Side.of(self.canary),
            Side.of(self.stable),
            round(state.judge.log_e, 3),
            tuple(round(evidence.get(name, 0.0), 3) for name in self.tests),
        )
        series = replace(
            self,
            points=(*self.points, point),
            since_ms=now_ms,
            canary=_NOTHING,
            stable=_NOTHING,
        )
        return series._thinned() if len(series.points) > MOST else series

    def _thinned(self) -> Series:
        """Half as many points: neighbours become one, those of one step where that is enough."""
        runs = [list(run) for _, run in groupby(self.points, lambda p: (p.phase, p.step))]
        points = [point for run in runs for point in _pairs(run)]
        if len(points) > MOST:
            points = _pairs(points)
        return replace(self, points=tuple(points), every_ms=2 * self.every_ms)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats; ``from_dict`` is its exact inverse."""
        return {
            "rolloutId": self.rollout_id,
            "beganMs": self.began_ms,
            "tests": list(self.tests),
            "thresholds": [round(1000 * value) for value in self.thresholds],
            "threshold": round(1000 * self.threshold),
            "everyMs": self.every_ms,
            "points": [point.to_list() for point in self.points],
            "phase": self.phase,
            "step": self.step,
            "percent": f"{self.percent:.10g}",
            "sinceMs": self.since_ms,
            "open": [self.canary.to_dict(), self.stable.to_dict()],
            "versions": list(self.versions),
            "inStep": [self.step_canary.to_dict(), self.step_stable.to_dict()],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Series:
        """Inverse of ``to_dict``.

        Raises:
            KeyError: a part is missing.
            ValueError: counts that cannot be.
        """
        canary, stable = (Delta.from_dict(found) for found in document["open"])
        step_canary, step_stable = (Delta.from_dict(found) for found in document["inStep"])
        return cls(
            rollout_id=document["rolloutId"],
            began_ms=document["beganMs"],
            tests=tuple(document["tests"]),
            thresholds=tuple(value / 1000 for value in document["thresholds"]),
            threshold=document["threshold"] / 1000,
            every_ms=document["everyMs"],
            points=tuple(Point.from_list(parts) for parts in document["points"]),
            phase=document["phase"],
            step=document["step"],
            percent=float(document["percent"]),
            since_ms=document["sinceMs"],
            canary=canary,
            stable=stable,
            step_canary=step_canary,
            step_stable=step_stable,
            versions=tuple(document.get("versions", ())),
        )


def followed(
    series: Series | None,
    state: RolloutState,
    deltas: Mapping[str, Delta],
    now_ms: int,
    versions: tuple[int, ...] = (),
) -> Series:
    """The series with an observation in it; a new one where a new rollout begins.

    Args:
        series: As it was.
        state: The rollout after the observation.
        deltas: What was seen, by variant.
        now_ms: The time.
        versions: Of stable and canary.
    """
    if series is None or series.rollout_id != state.id:
        series = Series.begun(state, now_ms, versions)
    return series.after(state, deltas, now_ms)


def _pairs(points: Sequence[Point]) -> list[Point]:
    """Each two as one; an odd last one stays."""
    found = [one.merged(two) for one, two in zip(points[::2], points[1::2], strict=False)]
    return [*found, points[-1]] if len(points) % 2 else found


def _plain(delta: Delta | None) -> Delta:
    """Requests, errors and latencies."""
    if delta is None or not delta.requests:
        return _NOTHING
    return Delta(delta.requests, delta.errors, delta.latency)
