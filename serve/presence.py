"""Which gateways are there, and whom each can ask.

A canary that had traffic when the controller before this one went may be gone with it. It is
awaited: until every gateway that is there can ask it, it gets no traffic, and no blame for that.

Example::

    presence = Presence(silence_ms=2000, settle_ms=2000, now=now)
    presence.heard(report, now)
    presence.connected("canary", now)
"""

from __future__ import annotations

from collections.abc import Mapping

from serve.plan import Report

__all__ = ["Presence"]

_MANY = 1000


class Presence:
    """What gateways said last of their lanes.

    Args:
        silence_ms: After which a gateway does not count as there.
        settle_ms: In the beginning, time for gateways to show up.
        now: The time.
        awaited: The rollout that was found with a canary that had traffic; empty: none was.
    """

    def __init__(self, silence_ms: int, settle_ms: int, now: int, awaited: str = "") -> None:
        self.awaited = awaited
        self._silence_ms = silence_ms
        self._settled_ms = now + settle_ms
        self._gateways: dict[str, tuple[int, Mapping[str, int]]] = {}

    def heard(self, report: Report, now: int) -> None:
        """A gateway is there."""
        self._gateways[report.source] = (now, report.lanes)
        if len(self._gateways) > _MANY:
            late = now - self._silence_ms
            self._gateways = {k: v for k, v in self._gateways.items() if v[0] >= late}
        if self.awaited and self.connected("canary", now):
            self.awaited = ""

    def connected(self, variant: str, now: int) -> bool:
        """Whether every gateway that is there can ask it: a variant is not blamed for the wait."""
        late = now - self._silence_ms
        told = [lanes for seen, lanes in self._gateways.values() if seen >= late]
        return all(lanes.get(variant, 0) for lanes in told) if told else now >= self._settled_ms
