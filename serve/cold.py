"""Where requests wait while the first replica of a model starts.

Only a bounded number, of a bounded size, and for a bounded time; one too many, or one that waited
in vain, is told at once when to come again (503 with ``Retry-After``). How many wait goes to the
controller with the next report, a quarter of a second later at most.

Example::

    room = WaitingRoom()
    await room.wait(pool.ready, len(body), hold_s=60)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve.answer import OverloadedError

__all__ = ["ColdLimits", "WaitingRoom"]


@dataclass(frozen=True, slots=True)
class ColdLimits:
    """What may wait for one application.

    Args:
        requests: At a time.
        total_bytes: Of all their bodies.
        retry_after_s: Told to those that are turned away; about what a start takes.
    """

    requests: int = 256
    total_bytes: int = 32 << 20
    retry_after_s: int = 5


class WaitingRoom:
    """Of one application.

    Attributes:
        held: Requests that wait now.
        turned_away: Requests that could not wait, or waited in vain.
    """

    def __init__(self, limits: ColdLimits | None = None) -> None:
        self._limits = limits or ColdLimits()
        self._bytes = 0
        self.held = 0
        self.turned_away = 0

    async def wait(
        self, ready: Callable[[float], Awaitable[bool]], size: int, hold_s: float
    ) -> None:
        """Wait until somebody can be asked.

        Args:
            ready: Waits so many seconds for a lane; whether there is one.
            size: Of the request's body.
            hold_s: How long.

        Raises:
            OverloadedError: too many wait already, or nobody came.
        """
        limits = self._limits
        if self.held >= limits.requests or self._bytes + size > limits.total_bytes:
            raise self._away(f"{self.held} requests wait already while the model starts")
        self.held += 1
        self._bytes += size
        try:
            if not await ready(hold_s):
                raise self._away(f"the model did not start within {hold_s:g} s")
        finally:
            self.held -= 1
            self._bytes -= size

    def _away(self, why: str) -> OverloadedError:
        self.turned_away += 1
        return OverloadedError(why, retry_after_s=self._limits.retry_after_s)
