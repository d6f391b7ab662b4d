"""Which bounds a schedule sets at a moment.

A window follows the clock on the wall of its zone, through both changes of summer time: it begins
with the first moment at which that clock shows its begin or later, and ends with the last at which
it shows its end. Before it begins its replicas are started (``prewarm_s``), so that they are there
when it does.

Example::

    scale = Scale(1, 8, schedule=(Window.parse("Mon-Fri 08:00-18:00 Europe/Berlin = 4..8"),))
    bounds_at(scale, now_ms())    # Bounds(least=4, most=8) on a Monday at 07:55
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from governance.deployment_resources import Scale, Window

__all__ = ["Bounds", "bounds_at"]

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Bounds:
    """At least and at most so many replicas; ``reason``: the window that says so."""

    least: int
    most: int
    reason: str = ""


def bounds_at(scale: Scale, now_ms: int) -> Bounds:
    """What holds at a time (milliseconds since the epoch)."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    ahead = now + timedelta(seconds=scale.prewarm_s)
    inside, soon = [], []
    for window in scale.schedule:
        for begin, end in _spans(window, now):
            if begin <= now < end:
                inside.append(window)
            elif now < begin <= ahead:
                soon.append(window)
    least, most = scale.least, scale.most
    if inside:
        least = max(window.least for window in inside)
        most = max(window.most for window in inside)
    early = max((window.least for window in soon), default=0)
    if early > least:
        said = next(window for window in soon if window.least == early)
        return Bounds(early, max(most, early), f"{said} begins soon")
    return Bounds(least, most, "; ".join(map(str, dict.fromkeys(inside))))


def _spans(window: Window, now: datetime) -> list[tuple[datetime, datetime]]:
    """Begin and end of the window about now, in UTC."""
    today = now.astimezone(_zone(window.zone)).date()
    around = [today + step * _DAY for step in (-1, 0, 1)]
    return [_span(window, day) for day in around if day.weekday() in window.days]


@lru_cache(maxsize=1024)
def _span(window: Window, day: date) -> tuple[datetime, datetime]:
    last = day if window.end > window.begin else day + _DAY
    return (
        _moment(day, window.begin, window.zone, fold=0),
        _moment(last, window.end, window.zone, fold=1),
    )


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _moment(day: date, minutes: int, zone: str, *, fold: int) -> datetime:
    """When the clock there shows a time; the second time it does, with ``fold``.

    A time that the clock leaves out comes with the first one that it shows after it.
    """
    there = _zone(zone)
    wall = datetime(day.year, day.month, day.day) + minutes * _MINUTE
    found = wall.replace(tzinfo=there, fold=fold).astimezone(UTC)
    if found.astimezone(there).replace(tzinfo=None) == wall:
        return found
    found = wall.replace(tzinfo=there, fold=1).astimezone(UTC)  # before the gap
    while found.astimezone(there).replace(tzinfo=None) < wall:
        found += _MINUTE
    return found
