"""Decides how many replicas a variant has: a pure function of demand, bounds, time and what is.

- *Up* at once, as soon as demand exceeds what there is by a tenth; at most to the double (or four
  more) at a time, and again only when those that were added answer, or have had their time.
- *Down* only when fewer would have done all through the quiet time, and then to the most that were
  needed in it.
- *To none* when nobody asked for the idle time, and only where the bounds allow none; *from none*
  at once when a request waits.
- What is not known changes nothing: without reports of gateways, nothing ends.

Example::

    scaled = advance(scale, bounds, scaled, Demand(rps=210.0), running=2, now_ms=now)
    scaled.replicas, scaled.reason    # 5, "210 requests/s at 50 each"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from governance.deployment_resources import Scale
from serve.schedule import Bounds

__all__ = ["Demand", "Scaled", "advance"]

_TOLERANCE = 1.1
_DOUBLE = 2
_FEW = 4
_START_MS = 30_000  # after which replicas that do not start are no reason to wait
_BUSY_STEP_MS = 10_000  # how exactly the last request's time is kept: each step is saved


@dataclass(frozen=True, slots=True)
class Demand:
    """What clients want of a variant.

    Attributes:
        rps: Requests a second.
        in_flight: Requests that are being answered, or wait, on average.
        held: Requests that wait for the first replica.
        known: Whether gateways told.
    """

    rps: float = 0.0
    in_flight: float = 0.0
    held: int = 0
    known: bool = True

    @property
    def asked(self) -> bool:
        """Whether anybody wants anything."""
        return bool(self.rps or self.in_flight or self.held)

    def __add__(self, other: Demand) -> Demand:
        return Demand(
            self.rps + other.rps,
            self.in_flight + other.in_flight,
            self.held + other.held,
            self.known and other.known,
        )

    def share(self, part: float) -> Demand:
        """A part of it."""
        return replace(self, rps=self.rps * part, in_flight=self.in_flight * part)

    def or_more(self, other: Demand) -> Demand:
        """The higher of each."""
        return Demand(
            max(self.rps, other.rps),
            max(self.in_flight, other.in_flight),
            max(self.held, other.held),
            self.known and other.known,
        )


@dataclass(frozen=True, slots=True)
class Scaled:
    """Where a variant stands; kept with its deployment, so that whoever takes over goes on.

    Attributes:
        replicas: That it should have.
        changed_ms: Since when.
        busy_ms: When somebody last wanted something of it, about.
        quiet_ms: Since when fewer would do; None: they would not.
        quiet_most: The most that were needed since then.
        reason: For ``replicas``, in words.
    """

    replicas: int
    changed_ms: int
    busy_ms: int
    quiet_ms: int | None = None
    quiet_most: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "replicas": self.replicas,
            "changedMs": self.changed_ms,
            "busyMs": self.busy_ms,
            "quietMs": self.quiet_ms,
            "quietMost": self.quiet_most,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Scaled:
        """Inverse of ``to_dict``."""
        return cls(
            document["replicas"],
            document["changedMs"],
            document["busyMs"],
            document["quietMs"],
            document["quietMost"],
            document["reason"],
        )


def advance(
    scale: Scale,
    bounds: Bounds,
    before: Scaled | None,
    demand: Demand,
    *,
    running: int,
    now_ms: int,
    awake: bool = False,
) -> Scaled:
    """How many there should be now.

    Args:
        scale: What was asked for.
        bounds: That hold now.
        before: What was decided last; None: nothing yet.
        demand: Of clients.
        running: Replicas that answer.
        now_ms: The time.
        awake: Whether there must be one in any case, as while a rollout runs.
    """
    if before is None:
        first = max(1, bounds.least, min(running, bounds.most))
        return Scaled(first, now_ms, now_ms, reason="it begins")
    if demand.asked and now_ms - before.busy_ms >= _BUSY_STEP_MS:
        before = replace(before, busy_ms=now_ms)
    idle = now_ms - before.busy_ms >= scale.idle_s * 1000
    sleeps = not (awake or demand.held) and (idle or not (demand.known or before.replicas))
    least = max(bounds.least, 0 if sleeps else 1)
    most = max(bounds.most, least)
    have = before.replicas
    needed, why = _needed(scale, demand, have)
    wanted = min(max(needed, least), most)
    if needed != wanted:
        why = _of_bounds(bounds, wanted, least, why)
    if wanted > have:
        return _up(before, wanted, why, least, running, now_ms)
    if have > most:
        return Scaled(most, now_ms, before.busy_ms, reason=why)
    if wanted == have or not demand.known:
        return replace(before, quiet_ms=None, quiet_most=0)
    return _down(scale, before, wanted, why or "nobody asks", now_ms)


def _up(before: Scaled, wanted: int, reason: str, least: int, running: int, now_ms: int) -> Scaled:
    have = before.replicas
    if wanted > least:  # the demand asks, not the bounds
        starting = running < have and now_ms - before.changed_ms < _START_MS
        if starting and have > least:
            return replace(before, quiet_ms=None, quiet_most=0)  # those that come may do
        wanted = max(least, min(wanted, max(have * _DOUBLE, have + _FEW)))
    return Scaled(wanted, now_ms, before.busy_ms, reason=reason)


def _down(scale: Scale, before: Scaled, wanted: int, reason: str, now_ms: int) -> Scaled:
    if wanted == 0 and before.replicas == 1:
        return Scaled(0, now_ms, before.busy_ms, reason=reason)  # idle was quiet enough
    if before.quiet_ms is None:
        return replace(before, quiet_ms=now_ms, quiet_most=wanted)
    most = max(before.quiet_most, wanted)
    if now_ms - before.quiet_ms < scale.quiet_s * 1000:
        return replace(before, quiet_most=most)
    return Scaled(most, now_ms, before.busy_ms, reason=reason)


def _needed(scale: Scale, demand: Demand, have: int) -> tuple[int, str]:
    """Replicas for the demand, and why."""
    measured = {
        "rps": (demand.rps, "requests/s"),
        "in_flight": (demand.in_flight + demand.held, "requests in flight"),
    }
    needed, why = 0, ""
    for target, name in scale.targets:
        much, what = measured[name]
        replicas = math.ceil(much / target)
        if replicas > have and much <= have * target * _TOLERANCE:
            replicas = have
        if replicas > needed:
            needed, why = replicas, f"{much:.0f} {what} at {target:g} for each"
    return needed, why


def _of_bounds(bounds: Bounds, wanted: int, least: int, why: str) -> str:
    edge = "at least" if wanted == least else "at most"
    said = [f"{edge} {wanted}" + (f" ({bounds.reason})" if bounds.reason else "")]
    return "; ".join([*said, why] if why else said)
