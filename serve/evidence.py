"""One test of a rollout: what it counts, what it bets, what it has found.

Most tests count events in two streams, so one e-value serves them all; only the event differs, and
each is fixed before the block it is counted in:

- *errors and owner rates*: the event itself (or its absence, where higher is better);
- *a quantile* (latency): "above stable's quantile as seen so far, times ratio, plus a constant" at
  the canary, against "above stable's quantile" at stable. Where the canary's latency is at most
  ratio times stable's plus the constant, the former is never likelier, so the level is exact. A
  confidence sequence of the quantile itself (Howard and Ramdas, "Sequential estimation of
  quantiles", Bernoulli 28(3), 2022) holds for each variant alone and must be crossed by the other:
  it needs several times the requests to see the same slowing;
- *the latency as a whole*: not a rate but ranks among stable's past values, the canary's divided by
  the ratio; the null is that these are not larger (in distribution) than stable's;
- *the outputs*: "the answer lies in one of the bins that the canary has favoured so far", against
  the same of stable. For any such set the two rates differ by at most the total variation
  distance, so a tolerance of that distance is kept exactly;
- *a guard rail*: an event of the canary alone, against a fixed rate. A block in which stable breaks
  the same limit is not counted: the cause is then not the canary.

A block is kept open until both variants are in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from serve.bets import (
    BETS_ON_MEANS,
    BETS_ON_RATES,
    BETS_ON_SHIFTS,
    limit_factors,
    mean_factors,
    rate_factors,
    shift_factors,
)
from serve.delta import (
    SUBDIVISIONS,
    Delta,
    OwnerSums,
    add_counts,
    bucket_of,
    first_bucket_from,
    lower_edge,
)
from serve.wealth import Wealth

__all__ = ["CanaryTest", "CanaryTestKind", "Evidence", "Sums"]

_ENOUGH = 20  # observations of stable (and, for outputs, of the canary) before the first bet
_MEMORY = 20_000  # observations; beyond it old and new are halved together
_SHORT_MEMORY = 200


class CanaryTestKind(StrEnum):
    EVENTS = "events"
    QUANTILE = "quantile"
    MEAN = "mean"
    SHIFT = "shift"
    OUTPUTS = "outputs"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class CanaryTest:
    """What is tested. Rates and scaled means are parts of 1.

    Attributes:
        name: ``errors``, ``latency.p99``, ``metric.NAME``, ``outputs``, ``guard.max_p99_ms`` …
        kind: Which event is counted.
        source: ``errors``, ``latency``, ``outputs``, or an owner metric's name.
        weight: Share of the level; all tests' shares add up to 1.
        tolerance: By how much the canary's rate or scaled mean may be higher.
        margin: What non-inferiority must exclude; None where it is not asked for.
        higher_is_better: Events (or values) are good ones.
        quantile: Which quantile.
        ratio: What the quantile may be multiplied by.
        plus: What may be added to it.
        limit: The rate a guard rail allows; for its latencies ``plus`` is the limit itself.
        low: What a scaled mean of 0 stands for.
        width: And what 1 stands for, less that.
    """

    name: str
    kind: CanaryTestKind
    source: str
    weight: float
    tolerance: float = 0.0
    margin: float | None = None
    higher_is_better: bool = False
    quantile: float = 0.0
    ratio: float = 1.0
    plus: float = 0.0
    limit: float = 0.0
    low: float = 0.0
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Sums:
    """Observations, the sum of their values (of events: their count), and of the squares."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def rate(self) -> float:
        """The mean; 0 where there is nothing."""
        return self.total / self.n if self.n else 0.0

    def faded(self, memory: int) -> Sums:
        """Halved until no more than ``memory`` observations are left."""
        faded = self
        while faded.n > memory:
            faded = Sums(faded.n // 2, faded.total / 2, faded.squares / 2)
        return faded

    def to_list(self) -> list[Any]:
        return [self.n, repr(float(self.total)), repr(float(self.squares))]

    @classmethod
    def from_list(cls, parts: list[Any]) -> Sums:
        return cls(int(parts[0]), float(parts[1]), float(parts[2]))


_NOTHING = Sums()
_BETS = {CanaryTestKind.MEAN: BETS_ON_MEANS, CanaryTestKind.SHIFT: BETS_ON_SHIFTS}
Pair = tuple[Sums, Sums]
Counts = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one test has found so far. Pairs are (canary, stable).

    Attributes:
        against: Wealth bet against "the canary is not worse".
        showing: Wealth bet against "the canary is worse by the margin"; None where there is none.
        shown: Whether that ever reached its threshold.
        opened: The block that is not complete yet.
        mark: For what its events are, where that depends on the past: the first bucket above
            stable's quantile, or the bins.
        guess: Stable's rate of that event, as known when the block was opened.
        seen: All complete blocks.
        recent: The same, with the old ones fading.
        buckets: Past values by bucket, fading.
        waiting: The open block's values by bucket, where ranks are compared.
        excused: Whether stable broke the guard rail in the last block as well.
    """

    against: Wealth
    showing: Wealth | None = None
    shown: bool = False
    opened: Pair = (_NOTHING, _NOTHING)
    mark: tuple[int, ...] | None = None
    guess: float = 0.0
    seen: Pair = (_NOTHING, _NOTHING)
    recent: Pair = (_NOTHING, _NOTHING)
    buckets: tuple[Counts, Counts] = field(default_factory=lambda: ({}, {}))
    waiting: tuple[Counts, Counts] = field(default_factory=lambda: ({}, {}))
    excused: bool = False

    @classmethod
    def start(cls, test: CanaryTest) -> Evidence:
        """Nothing seen."""
        bets = _BETS.get(test.kind, BETS_ON_RATES)
        showing = Wealth.start(bets) if test.margin is not None else None
        return cls(against=Wealth.start(bets), showing=showing)

    def informed(self, test: CanaryTest) -> bool:
        """Whether it knows enough of the past to bet on what comes."""
        if test.kind in (CanaryTestKind.EVENTS, CanaryTestKind.MEAN):
            return self.recent[1].n >= _ENOUGH
        canary, stable = (sum(counts.values()) for counts in self.buckets)
        if test.kind is CanaryTestKind.OUTPUTS:
            stable = min(canary, stable)
        return stable >= _ENOUGH

    def reopened(self) -> Evidence:
        """Without the incomplete block: what follows is not comparable with it."""
        return replace(self, opened=(_NOTHING, _NOTHING), mark=None, waiting=({}, {}))

    def after(
        self, test: CanaryTest, canary: Delta, stable: Delta, *, alone: bool, show_at: float
    ) -> Evidence:
        """With what both variants did in the same stretch of time.

        Args:
            test: The test this is the evidence of.
            canary: What the canary did.
            stable: What stable did.
            alone: Whether the canary has all the traffic: only guard rails then apply.
            show_at: ln of the wealth that shows non-inferiority.
        """
        if alone and test.kind is not CanaryTestKind.LIMIT:
            return self
        if test.kind is CanaryTestKind.SHIFT:
            return self._ranked(test, canary, stable)
        mark, guess, buckets = self.mark, self.guess, self.buckets
        if test.kind in (CanaryTestKind.QUANTILE, CanaryTestKind.OUTPUTS):
            if mark is None:
                mark, guess = _look_back(test, *self.buckets)
            buckets = (
                _faded(add_counts(self.buckets[0], _buckets(test, canary))),
                _faded(add_counts(self.buckets[1], _buckets(test, stable))),
            )
            if mark is None:
                return replace(self, buckets=buckets)
        opened = (
            self.opened[0] + _counted(test, canary, mark, of_canary=True),
            self.opened[1] + _counted(test, stable, mark, of_canary=False),
        )
        if not opened[0].n or not (opened[1].n or alone):
            if not opened[0].n and not opened[1].n:
                mark = None
            return replace(self, opened=opened, mark=mark, guess=guess, buckets=buckets)
        return self._closed(test, opened, guess, buckets, show_at)

    def _closed(
        self,
        test: CanaryTest,
        opened: Pair,
        guess: float,
        buckets: tuple[Counts, Counts],
        show_at: float,
    ) -> Evidence:
        against, showing, shown, excused = self.against, self.showing, self.shown, False
        memory = _SHORT_MEMORY if test.kind is CanaryTestKind.LIMIT else _MEMORY
        recent = (
            (self.recent[0] + opened[0]).faded(memory),
            (self.recent[1] + opened[1]).faded(memory),
        )
        if test.kind is CanaryTestKind.LIMIT:
            excused = recent[1].n > 0 and recent[1].rate > test.limit
            if not excused:
                against = against.played(
                    limit_factors(opened[0].n, int(opened[0].total), test.limit)
                )
        elif test.kind is CanaryTestKind.MEAN:
            if self.recent[1].n >= _ENOUGH:
                centres = (_expected(self.recent[0]), _expected(self.recent[1]))
                sums = [(s.n, s.total, s.squares) for s in opened]
                against = against.played(mean_factors(sums[0], sums[1], centres, test.tolerance))
                if showing is not None and test.margin is not None:
                    turned = [(s.n, s.n - s.total, s.n - 2 * s.total + s.squares) for s in opened]
                    showing = showing.played(
                        mean_factors(
                            turned[0], turned[1], (1 - centres[0], 1 - centres[1]), -test.margin
                        )
                    )
        elif test.kind is not CanaryTestKind.EVENTS or self.recent[1].n >= _ENOUGH:
            if test.kind is CanaryTestKind.EVENTS:
                guess = _expected(self.recent[1])
            (nc, bc), (ns, bs) = ((s.n, int(s.total)) for s in opened)
            against = against.played(rate_factors(nc, bc, ns, bs, guess, test.tolerance))
            if showing is not None and test.margin is not None:
                showing = showing.played(
                    rate_factors(nc, nc - bc, ns, ns - bs, 1 - guess, -test.margin)
                )
        if showing is not None and showing.log_total >= show_at:
            shown = True
        return Evidence(
            against=against,
            showing=showing,
            shown=shown,
            seen=(self.seen[0] + opened[0], self.seen[1] + opened[1]),
            recent=recent,
            buckets=buckets,
            excused=excused,
        )

    def _ranked(self, test: CanaryTest, canary: Delta, stable: Delta) -> Evidence:
        """The latency as a whole: the canary's, divided, has its ranks among stable's past."""
        here = add_counts(self.waiting[0], canary.latency)
        there = add_counts(self.waiting[1], stable.latency)
        if not any(here.values()) or not any(there.values()):
            return replace(self, waiting=(here, there))
        buckets = (self.buckets[0], _faded(add_counts(self.buckets[1], there)))
        past = self.buckets[1]
        if sum(past.values()) < _ENOUGH:
            return replace(self, buckets=buckets, waiting=({}, {}))
        divided: dict[int, int] = {}
        for bucket, n in here.items():
            as_if = bucket_of((lower_edge(bucket) * (1 + 1e-9) - test.plus) / test.ratio)
            divided[as_if] = divided.get(as_if, 0) + n
        ranks = [_ranks(past, counts) for counts in (divided, there)]
        sums = [Sums(sum(n for _, n in r), sum(rank * n for rank, n in r)) for r in ranks]
        return replace(
            self,
            against=self.against.played(shift_factors(ranks[0], ranks[1])),
            seen=(self.seen[0] + sums[0], self.seen[1] + sums[1]),
            buckets=buckets,
            waiting=({}, {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats; ``from_dict`` is its exact inverse."""
        return {
            "against": self.against.to_dict(),
            "showing": None if self.showing is None else self.showing.to_dict(),
            "shown": self.shown,
            "opened": [s.to_list() for s in self.opened],
            "mark": None if self.mark is None else list(self.mark),
            "guess": repr(self.guess),
            "seen": [s.to_list() for s in self.seen],
            "recent": [s.to_list() for s in self.recent],
            "buckets": [{str(k): n for k, n in counts.items()} for counts in self.buckets],
            "waiting": [{str(k): n for k, n in counts.items()} for counts in self.waiting],
            "excused": self.excused,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evidence:
        """Exact inverse of ``to_dict``."""

        def pair(parts: list[list[Any]]) -> Pair:
            return Sums.from_list(parts[0]), Sums.from_list(parts[1])

        counts, waiting = (
            [{int(k): int(n) for k, n in c.items()} for c in document[name]]
            for name in ("buckets", "waiting")
        )
        showing, mark = document["showing"], document["mark"]
        return cls(
            against=Wealth.from_dict(document["against"]),
            showing=None if showing is None else Wealth.from_dict(showing),
            shown=bool(document["shown"]),
            opened=pair(document["opened"]),
            mark=None if mark is None else tuple(int(part) for part in mark),
            guess=float(document["guess"]),
            seen=pair(document["seen"]),
            recent=pair(document["recent"]),
            buckets=(counts[0], counts[1]),
            waiting=(waiting[0], waiting[1]),
            excused=bool(document["excused"]),
        )


def _expected(sums: Sums) -> float:
    """A rate or mean from the past, kept off 0 and 1 by half an observation each way."""
    return (sums.total + 0.5) / (sums.n + 1)


def _faded(counts: dict[int, int]) -> dict[int, int]:
    while sum(counts.values()) > _MEMORY:
        counts = {key: half for key, n in counts.items() if (half := n // 2)}
    return counts


def _ranks(past: Counts, counts: Counts) -> list[tuple[float, int]]:
    """The middle rank, from 0 to 1, of each bucket's values among past ones; and how many."""
    found, below, whole = [], 0, sum(past.values()) + 1
    rest = sorted(past, reverse=True)
    for bucket in sorted(counts):
        while rest and rest[-1] < bucket:
            below += past[rest.pop()]
        found.append(((below + past.get(bucket, 0) / 2 + 0.5) / whole, counts[bucket]))
    return found


def _buckets(test: CanaryTest, delta: Delta) -> Counts:
    if test.source == "latency":
        return delta.latency
    if test.source == "outputs":
        return delta.outputs
    return delta.owner[test.source].buckets if test.source in delta.owner else {}


def _look_back(
    test: CanaryTest, canary: Counts, stable: Counts
) -> tuple[tuple[int, ...] | None, float]:
    """The event of the next block and stable's rate of it; None as long as too little is known."""
    n = sum(stable.values())
    if n < _ENOUGH:
        return None, 0.0
    if test.kind is CanaryTestKind.QUANTILE:
        low = test.higher_is_better  # the canary is worse when its values are below
        wanted, past = (1 - test.quantile if low else test.quantile) * n, 0
        for bucket in sorted(stable, reverse=low):
            past += stable[bucket]
            if past >= wanted:
                break
        edge = bucket if low else bucket + 1
        return (edge,), _expected(Sums(n, n - past))
    nc = sum(canary.values())
    if nc < _ENOUGH:
        return None, 0.0
    favoured = tuple(sorted(b for b, k in canary.items() if k / nc > stable.get(b, 0) / n))
    if not favoured:
        return None, 0.0
    return favoured, _expected(Sums(n, sum(stable.get(bucket, 0) for bucket in favoured)))


def _counted(
    test: CanaryTest, delta: Delta, mark: tuple[int, ...] | None, *, of_canary: bool
) -> Sums:
    """What the delta adds to the open block."""
    if test.source == "errors":
        return Sums(delta.judged, delta.charged)
    if test.kind in (CanaryTestKind.EVENTS, CanaryTestKind.MEAN):
        return _owner(test, delta.owner.get(test.source, OwnerSums()))
    counts = _buckets(test, delta)
    if not counts:
        return _NOTHING
    n = sum(counts.values())
    if test.kind is CanaryTestKind.OUTPUTS:
        return Sums(n, sum(counts.get(bucket, 0) for bucket in mark or ()))
    if test.kind is CanaryTestKind.LIMIT:
        edge = first_bucket_from(test.plus)
    else:
        edge = (mark or (0,))[0]
        if of_canary and test.higher_is_better:
            edge -= math.ceil(SUBDIVISIONS * math.log2(test.ratio) - 1e-9)
        elif of_canary:
            edge = first_bucket_from(lower_edge(edge) * test.ratio + test.plus)
    if test.higher_is_better:
        return Sums(n, sum(count for bucket, count in counts.items() if bucket < edge))
    return Sums(n, sum(count for bucket, count in counts.items() if bucket >= edge))


def _owner(test: CanaryTest, sums: OwnerSums) -> Sums:
    squares = sums.total if sums.squares is None else sums.squares
    if test.higher_is_better:
        return Sums(sums.n, sums.n - sums.total, sums.n - 2 * sums.total + squares)
    return Sums(sums.n, sums.total, squares)
