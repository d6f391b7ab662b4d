"""What a gateway counts of one variant: deltas for the judge, totals for Prometheus.

A request costs a few dictionary updates. Only requests that were assigned by chance are judged;
testers' and shadow-free repeats at stable are counted aside, because they are no fair sample.

Example::

    tally = Tally()
    tally.add(None, 3.2)
    tally.take().requests    # 1
"""

from __future__ import annotations

from serve.delta import Delta, ErrorClass, add_counts, bucket_of

__all__ = ["Counts", "Tally"]


class Counts:
    """Requests, errors by class, and latencies by bucket (``serve.delta``)."""

    __slots__ = ("errors", "latency", "requests", "total_ms")

    def __init__(self) -> None:
        self.requests = 0
        self.total_ms = 0.0
        self.errors: dict[ErrorClass, int] = {}
        self.latency: dict[int, int] = {}

    def add(self, error: ErrorClass | None, latency_ms: float) -> None:
        """Count a request.

        The latency counts only when the request was answered well or ran out of time: an error
        may be quick, which says nothing of how quick the model is.
        """
        self.requests += 1
        if error is not None:
            self.errors[error] = self.errors.get(error, 0) + 1
            if error is not ErrorClass.TIMEOUT:
                return
        self.total_ms += latency_ms
        bucket = bucket_of(latency_ms)
        self.latency[bucket] = self.latency.get(bucket, 0) + 1

    def merge(self, other: Counts) -> None:
        """Add what another counted."""
        self.requests += other.requests
        self.total_ms += other.total_ms
        for error, count in other.errors.items():
            self.errors[error] = self.errors.get(error, 0) + count
        self.latency = add_counts(self.latency, other.latency)


class Tally:
    """Counts of one variant: those to report, and all."""

    def __init__(self) -> None:
        self._fresh = Counts()
        self._reported = Counts()
        self._aside = Counts()

    def add(self, error: ErrorClass | None, latency_ms: float, *, judged: bool = True) -> None:
        """Count a request; ``judged``: for the next report too."""
        (self._fresh if judged else self._aside).add(error, latency_ms)

    def take(self) -> Delta:
        """What was counted since the last time, for a report."""
        fresh, self._fresh = self._fresh, Counts()
        self._reported.merge(fresh)
        return Delta(fresh.requests, fresh.errors, fresh.latency)

    def total(self) -> Counts:
        """Everything since the start."""
        total = Counts()
        for part in (self._reported, self._fresh, self._aside):
            total.merge(part)
        return total
