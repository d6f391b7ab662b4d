"""Compares variants of one act, measured alternately within one run.

Each round times every variant once, in an order that turns from round to round, so that whatever
else the machine does meets all of them alike. A second plain variant (``control``) shows how far
apart two equal things come out here: a ratio means nothing below that.

A sample keeps its beginning and end, so that waiting inside it can be taken off afterwards, and the
CPU time of its thread, which other people's load hardly changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter_ns, thread_time_ns
from typing import Any

__all__ = ["Aim", "Interval", "Samples", "interleave", "percentile", "ratio"]

Interval = tuple[int, int, int]
"""Nanoseconds: beginning and end on the system-wide monotonic clock, CPU time of the thread."""

Samples = dict[str, list[Interval]]
"""Per variant, one interval a round."""

_RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim and what was measured.

    Attributes:
        name: What it is about.
        limit: The bound.
        measured: The number.
        at_least: Whether the bound is a lower one.
    """

    name: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def to_dict(self) -> dict[str, Any]:
        return {
            "aim": self.name,
            "at_least" if self.at_least else "at_most": self.limit,
            "measured": round(self.measured, 4),
            "met": self.met,
        }

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict} {self.name}: {self.measured:.3f} (aim {sign} {self.limit:g})"


def interleave(
    variants: Sequence[str],
    prepare: Callable[[str, int], Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 5,
) -> Samples:
    """Time every variant once a round.

    Args:
        variants: Names.
        prepare: Given a variant and a turn, does what is not timed and returns what is.
        rounds: Rounds that count.
        warm_up: Rounds before them that don't.
    """
    samples: Samples = {name: [] for name in variants}
    for turn in range(-warm_up, rounds):
        shift = turn % len(variants)
        order = [*variants[shift:], *variants[:shift]]
        for name in order if turn % 2 else reversed(order):
            act = prepare(name, turn + warm_up)
            cpu, began = thread_time_ns(), perf_counter_ns()
            act()
            ended = perf_counter_ns()
            if turn >= 0:
                samples[name].append((began, ended, thread_time_ns() - cpu))
    return samples


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Ratio of the medians, with a 95 % bootstrap interval (rounds drawn as pairs)."""
    chance = random.Random(1)
    count = min(len(numerator), len(denominator))
    found = []
    for _ in range(_RESAMPLES):
        drawn = [chance.randrange(count) for _ in range(count)]
        found.append(median(numerator[i] for i in drawn) / median(denominator[i] for i in drawn))
    found.sort()
    return {
        "ratio": round(median(numerator) / median(denominator), 4),
        "ratio_95": [
            round(found[int(_RESAMPLES * 0.025)], 4),
            round(found[int(_RESAMPLES * 0.975)], 4),
        ],
    }


def percentile(values: Iterable[float], percent: int) -> float:
    """The ``percent``-th percentile."""
    known = list(values)
    return quantiles(known, n=100, method="inclusive")[percent - 1] if len(known) > 1 else known[0]
