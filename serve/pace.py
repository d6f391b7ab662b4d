"""How often the lanes of one listener send batches while it is busy.

A batch costs its processes as much as several requests do. A lane with a small part of the traffic,
as a canary's, is free nearly whenever a request comes, and would send a batch for each: a tenth of
the requests could cost as much as the other nine. So while many requests are on their way, a lane
whose share of them is small waits for company, but never longer after its last batch than batches
here take anyway: its requests are not slower than the others'. With few requests on their way
nothing waits.

Example::

    pace = Pace()                       # of all lanes of a listener
    batcher = Batcher(lane, limits, pace=pace)
"""

from __future__ import annotations

__all__ = ["Pace"]

_BUSY = 16  # requests on their way
_SMALL = 0.25  # of them wait for the lane
_LONGEST_S = 0.010
_REMEMBERED = 64  # requests whose batches make most of the mean


class Pace:
    """See the module.

    Attributes:
        in_flight: Requests on their way through all lanes; kept by whoever has them.
        batch_s: Seconds that batches take lately, weighted by the requests in them.
    """

    __slots__ = ("batch_s", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.batch_s = 0.0

    def took(self, requests: int, seconds: float) -> None:
        """A batch came back."""
        self.batch_s += min(1.0, requests / _REMEMBERED) * (seconds - self.batch_s)

    def gap_s(self, waiting: int) -> float:
        """Seconds there are to be between the starts of two batches of a lane.

        Args:
            waiting: Requests that wait for the lane.
        """
        if self.in_flight < _BUSY or waiting > _SMALL * self.in_flight:
            return 0.0
        return min(self.batch_s, _LONGEST_S)
