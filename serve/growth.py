"""What numbers from Prometheus count as, from one look to the next.

Counters say what happened since ever, so what both of a variant's counters grew by is what
happened in the stretch. A counter that fell was started anew, and then nobody knows what happened,
so that stretch is left out.

Example::

    before = Reading(source=10.0, total=100.0)
    grown(metric, before, Reading(12.0, 150.0))    # OwnerSums(n=50, total=2.0, …)
"""

from __future__ import annotations

from dataclasses import dataclass

from governance.errors import ConfigurationError
from serve.config import MetricKind, OwnerMetric
from serve.delta import OwnerSums

__all__ = ["Reading", "UnsettledError", "fell", "grown"]

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Reading:
    """What one variant's queries gave at one moment; ``total`` where there is such a query."""

    source: float
    total: float | None = None


class UnsettledError(Exception):
    """The two counters do not fit together yet: one was scraped before the other grew."""


def fell(metric: OwnerMetric, before: Reading, now: Reading) -> bool:
    """Whether a counter was started anew. A sum of values below 0 may fall by itself."""
    if now.total is None or before.total is None:
        return False
    grows = metric.range is None or metric.range[0] >= 0
    return now.total < before.total or (grows and now.source < before.source)


def grown(metric: OwnerMetric, before: Reading, now: Reading) -> OwnerSums:
    """What happened between two readings of a variant that did not fall.

    Raises:
        ConfigurationError: the numbers are no counts, or a mean lies outside its range.
        UnsettledError: more events than trials; the stretch has to go on.
    """
    if metric.total is None:
        return _single(metric, now.source)
    assert now.total is not None and before.total is not None  # noqa: PT018
    n = _whole(now.total - before.total, "total")
    difference = now.source - before.source
    if metric.kind is MetricKind.RATE:
        events = _whole(difference, "source")
        if events > n:
            raise UnsettledError
        return OwnerSums(n, float(events), float(events))
    low, high = metric.range or (0.0, 1.0)
    scaled = (difference - n * low) / (high - low)
    slack = _ROUNDING * (1 + n)
    if not -slack <= scaled <= n + slack:
        if n:
            raise ConfigurationError(
                f"the values' mean is {difference / n:g}, outside the range", "widen 'range'"
            )
        raise UnsettledError
    return OwnerSums(n, min(max(scaled, 0.0), float(n)), None)


def _single(metric: OwnerMetric, value: float) -> OwnerSums:
    low, high = metric.range or (0.0, 1.0)
    scaled = min(max((value - low) / (high - low), 0.0), 1.0)
    return OwnerSums(1, scaled, scaled * scaled)


def _whole(number: float, what: str) -> int:
    whole = round(number)
    if abs(number - whole) > _ROUNDING * max(1.0, abs(number)):
        raise ConfigurationError(
            f"{what!r} grew by {number:g}, which is no count",
            "let the query give a counter itself, as sum(x_total), not rate() or increase()",
        )
    return whole
