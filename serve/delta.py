"""What one variant did since the last report: counts that add up.

Latencies (and owner values of kind ``quantile``) are counted in buckets of equal width on a log
scale, ``SUBDIVISIONS`` to an octave, so a value is known to 1.1 %. Nothing here depends on the
order of requests within a delta; the judge depends on the order of deltas.

Example::

    delta = Delta(requests=2, errors={ErrorClass.RAISED: 1}, latency={bucket_of(12.5): 2})
    (delta + delta).requests    # 4
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "SUBDIVISIONS",
    "Delta",
    "ErrorClass",
    "OwnerSums",
    "add_counts",
    "bucket_of",
    "first_bucket_from",
    "lower_edge",
]

SUBDIVISIONS = 64
"""Buckets to an octave."""

_SMALLEST = 1e-3  # the lower edge of bucket 0: 1 µs where the unit is milliseconds
_LAST_BUCKET = SUBDIVISIONS * 64


class ErrorClass(StrEnum):
    """Why a request has no good answer.

    ``CLIENT`` (the request itself is wrong) and ``SHARED`` (stable, asked again, failed as well)
    are not the variant's fault: such requests are left out of the comparison. Without that, one
    client with a poisoned row and a sticky key would condemn the variant it sticks to.
    """

    RAISED = "raised"
    TIMEOUT = "timeout"
    WRONG_SHAPE = "wrong_shape"
    UNAVAILABLE = "unavailable"
    CLIENT = "client"
    SHARED = "shared"

    @property
    def charged(self) -> bool:
        """Whether the variant is to blame."""
        return self not in (ErrorClass.CLIENT, ErrorClass.SHARED)


def bucket_of(value: float) -> int:
    """The bucket that counts ``value`` (milliseconds for latencies; 0.001 and less is bucket 0)."""
    if not value > _SMALLEST:
        return 0
    return min(int(SUBDIVISIONS * math.log2(value / _SMALLEST)), _LAST_BUCKET)


def lower_edge(bucket: int) -> float:
    """The smallest value that ``bucket`` counts."""
    return _SMALLEST * math.exp2(bucket / SUBDIVISIONS)


def first_bucket_from(value: float) -> int:
    """The first bucket whose values are all ``value`` or more."""
    if not value > _SMALLEST:
        return 0
    return min(math.ceil(SUBDIVISIONS * math.log2(value / _SMALLEST) - 1e-9), _LAST_BUCKET)


def add_counts(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    """Bucket by bucket."""
    if not other:
        return dict(one)
    total = dict(one)
    for key, count in other.items():
        total[key] = total.get(key, 0) + count
    return total


@dataclass(frozen=True, slots=True)
class OwnerSums:
    """Sums of an owner-defined metric.

    Attributes:
        n: Observations.
        total: ``rate``: how many were events (a whole number). ``mean``: sum of the values, each
            moved and scaled from its configured range to [0, 1] and cut there.
        squares: Sum of the squares of the scaled values; None where the source cannot tell (the
            judge then uses ``total``, their upper bound).
        buckets: ``quantile``: counts by bucket.

    Raises:
        ValueError: sums that no observations could have.
    """

    n: int = 0
    total: float = 0.0
    squares: float | None = 0.0
    buckets: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slack = 1e-6 * (1 + self.n)
        squares = self.total if self.squares is None else self.squares
        if self.n < 0 or not -slack <= self.total <= self.n + slack:
            raise ValueError(f"{self.n} observations cannot add up to {self.total}")
        if not -slack <= squares <= self.total + slack:
            raise ValueError(f"values from 0 to 1 with sum {self.total} have no squares {squares}")
        _check_counts(self.buckets, self.n, "an owner metric's buckets")

    def __add__(self, other: OwnerSums) -> OwnerSums:
        squares = (
            None if self.squares is None or other.squares is None else self.squares + other.squares
        )
        return OwnerSums(
            self.n + other.n,
            self.total + other.total,
            squares,
            add_counts(self.buckets, other.buckets),
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything the judge wants to know of one variant between two reports.

    Attributes:
        requests: Requests that ended.
        errors: Of these, without a good answer, by class.
        latency: Requests by latency bucket; a timed-out request counts with its time limit.
        owner: Sums of owner-defined metrics by name.
        outputs: Answers by output bin.

    Raises:
        ValueError: negative counts, or more errors or latencies than requests.
    """

    requests: int = 0
    errors: Mapping[ErrorClass, int] = field(default_factory=dict)
    latency: Mapping[int, int] = field(default_factory=dict)
    owner: Mapping[str, OwnerSums] = field(default_factory=dict)
    outputs: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.requests < 0:
            raise ValueError(f"{self.requests} requests")
        if any(count < 0 for count in self.errors.values()):
            raise ValueError("a negative count of errors")
        if sum(self.errors.values()) > self.requests:
            raise ValueError(f"more errors than the {self.requests} requests")
        _check_counts(self.latency, self.requests, "latencies")
        _check_counts(self.outputs, None, "outputs")

    def __bool__(self) -> bool:
        """Whether anything happened."""
        return bool(self.requests or self.owner or self.outputs)

    @property
    def judged(self) -> int:
        """Requests that say something about the variant."""
        return self.requests - sum(n for c, n in self.errors.items() if not c.charged)

    @property
    def charged(self) -> int:
        """Errors that are the variant's fault."""
        return sum(n for c, n in self.errors.items() if c.charged)

    def __add__(self, other: Delta) -> Delta:
        return Delta(
            self.requests + other.requests,
            {c: n for c in ErrorClass if (n := self.errors.get(c, 0) + other.errors.get(c, 0))},
            add_counts(self.latency, other.latency),
            {
                name: self.owner.get(name, OwnerSums()) + other.owner.get(name, OwnerSums())
                for name in sorted({*self.owner, *other.owner})
            },
            add_counts(self.outputs, other.outputs),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats; ``from_dict`` is its exact inverse."""
        return {
            "requests": self.requests,
            "errors": {c.value: n for c, n in self.errors.items()},
            "latency": {str(k): n for k, n in self.latency.items()},
            "owner": {
                name: {
                    "n": sums.n,
                    "total": repr(float(sums.total)),
                    "squares": None if sums.squares is None else repr(float(sums.squares)),
                    "buckets": {str(k): n for k, n in sums.buckets.items()},
                }
                for name, sums in self.owner.items()
            },
            "outputs": {str(k): n for k, n in self.outputs.items()},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Delta:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: unknown error class, or counts that cannot be.
            KeyError: a part is missing.
        """
        return cls(
            int(document["requests"]),
            {ErrorClass(c): int(n) for c, n in document["errors"].items()},
            {int(k): int(n) for k, n in document["latency"].items()},
            {
                name: OwnerSums(
                    int(sums["n"]),
                    float(sums["total"]),
                    None if sums["squares"] is None else float(sums["squares"]),
                    {int(k): int(n) for k, n in sums["buckets"].items()},
                )
                for name, sums in document["owner"].items()
            },
            {int(k): int(n) for k, n in document["outputs"].items()},
        )


def _check_counts(counts: Mapping[int, int], at_most: int | None, what: str) -> None:
    if any(key < 0 or count < 0 for key, count in counts.items()):
        raise ValueError(f"{what}: a negative bucket or count")
    if at_most is not None and sum(counts.values()) > at_most:
        raise ValueError(f"{what}: more than the {at_most} there were")
